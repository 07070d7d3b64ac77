"""The two paths through the house, as CONTRIBUTING.md lists them, are the ones that the code takes."""

import re
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from celery_monitor.records.task import TaskState
from celery_monitor.settings.values import Broker
from tests.factories import make_event, make_id
from tests.receiver.watching import watching
from tests.web.pages.house import BASE, open_house
from tests.workers import running_worker

DOCUMENT = Path(__file__).parent.parent / "CONTRIBUTING.md"
Calls = dict[int, list[str]]  # by thread, in their order


def stops(title: str) -> list[str]:
    """The functions of the numbered list under a heading, as ``store/writer.py Writer.write``."""
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text.partition(f"### {title}\n")[2].partition("\n#")[0]
    return [" ".join(match) for match in re.findall(r"^\d+\. `([a-z_/]+\.py)` `([\w.]+)`", section, re.MULTILINE)]


@contextmanager
def calls() -> Iterator[Calls]:
    """Every call of a function of ours, in threads that are started within."""
    found: Calls = defaultdict(list)

    def note(frame: FrameType, event: str, _: object) -> None:
        path = frame.f_code.co_filename
        if event == "call" and "/celery_monitor/" in path:
            module = path.rpartition("/celery_monitor/")[2]
            found[threading.get_ident()].append(f"{module} {frame.f_code.co_qualname}")

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def missing(wanted: list[str], called: list[str]) -> list[str]:
    """The stops from the first on that is not reached after those before it."""
    left = iter(called)
    return next((wanted[number:] for number, stop in enumerate(wanted) if stop not in left), [])


def assert_taken(wanted: list[str], found: Calls) -> None:
    assert len(wanted) > 4
    assert [] in (ways := [missing(wanted, each) for each in found.values()]), min(ways, key=len)


def test_from_an_event_to_a_row(redis_url: str, tmp_path: Path) -> None:
    with calls() as found, watching(redis_url, tmp_path) as watch, running_worker(redis_url) as worker:
        watch.wait_for_state(worker.send("fail", "row 17"), TaskState.FAILURE)
    assert_taken(stops("From an event to a row"), found)


def test_from_a_click_to_the_broker(redis_url: str, tmp_path: Path) -> None:
    task_id = make_id(17)
    fields = {"uuid": task_id, "name": "shop.pay", "args": "(31,)", "kwargs": "{}"}
    with calls() as found, open_house(tmp_path, broker=(Broker("shop", redis_url),)) as house:
        house.write(
            make_event("task-sent", queue="payments", timestamp=house.now - 9, **fields),
            make_event("task-received", timestamp=house.now - 8, **fields),
            make_event("task-failed", uuid=task_id, timestamp=house.now - 7, exception="E('x')", traceback="T"),
        )
        token = re.search(r'data-token="([^"]+)"', house.html("/actions"))
        assert token
        form = {"csrf_token": token[1], "confirm": "1"}
        headers = {"Sec-Fetch-Site": "same-origin", "Origin": BASE}
        page = house.client.post(f"/tasks/{task_id}/retry", data=form, headers=headers)
        assert page.status_code == 200, page.text
    assert_taken(stops("From a click to the broker"), found)


def test_a_stop_that_is_not_taken_is_found() -> None:
    assert missing(["a", "b", "c"], ["a", "c", "b"]) == ["c"]
    assert missing(["a", "b"], ["x", "a", "b"]) == []


@pytest.mark.parametrize("title", ["From an event to a row", "From a click to the broker"])
def test_the_document_lists_the_stops(title: str) -> None:
    assert stops(title)
