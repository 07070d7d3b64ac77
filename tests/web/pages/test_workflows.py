import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from celery_monitor.records.event import Event
from tests.factories import make_event, make_id
from tests.web.pages.house import HOSTILE, House, open_house

ROOT = make_id(500)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with open_house(tmp_path) as opened:
        yield opened


def task(house: House, number: int, end: str | None = "succeeded", **more: object) -> None:
    """A task of the workflow, a child of its root unless it is said of which."""
    body: dict[str, object] = {"name": "shop.pick", "args": f"({number},)", "root_id": ROOT, "parent_id": ROOT}
    known: dict[str, object] = {"uuid": make_id(number), "timestamp": house.now - 60}
    events: list[Event] = [make_event("task-received", **{**known, **body, **more})]
    if end:
        events.append(make_event(f"task-{end}", **known, exception="KeyError('x')" if end == "failed" else None))
    house.write(*events)


def fill(house: House) -> None:
    task(house, 500, name="shop.check_out", parent_id=None)
    for number in range(1, 9):
        task(house, number)
    task(house, 20, None, name="shop.add_up", parent_id=make_id(3))
    task(house, 21, "failed", name="shop.label", parent_id=make_id(4))


def test_nothing_yet_says_what_would_appear(house: House) -> None:
    task(house, 500, parent_id=None)
    assert "No workflows yet" in house.text("/workflows")


def test_list_has_the_root_with_its_counts(house: House) -> None:
    fill(house)
    text = house.text("/workflows")
    assert "shop.check_out" in text
    assert "waiting 11" in text  # its root has succeeded, and not all that it sent has ended
    assert f'href="/workflows/{ROOT}"' in house.html("/workflows")


def test_tree_folds_children_of_one_name_and_says_what_it_waits_for(house: House) -> None:
    fill(house)
    text = house.text(f"/workflows/{ROOT}")
    assert "8 × shop.pick" in text
    assert "received 1 × shop.add_up" in text
    assert "1 failed: the rest of their chain or chord is not sent" in text
    opened = house.text(f"/workflows/{ROOT}?parent={ROOT}&name=shop.pick")
    assert "shop.add_up" in opened
    assert "shop.label" in opened


def test_search_shows_the_tasks_above_and_nothing_else(house: House) -> None:
    fill(house)
    text = house.text(f"/workflows/{ROOT}?q=state:failed")
    assert "1 found" in text
    tree = text[text.index("1 found") :]
    assert "shop.label" in tree
    assert "shop.check_out" in tree
    assert "shop.add_up" not in tree
    assert "No tasks of this workflow match" in house.text(f"/workflows/{ROOT}?q=nowhere")
    house.html(f"/workflows/{ROOT}?q=colour:red", status=400)


def test_root_that_was_never_seen_is_said_to_be_missing(house: House) -> None:
    task(house, 1)
    assert "Root not recorded" in house.text(f"/workflows/{ROOT}")
    assert "Root not recorded" in house.text("/workflows")


def test_unknown_workflow_is_not_found(house: House) -> None:
    house.html("/workflows/nothing", status=404)


def test_hostile_names_and_ids_are_text(house: House) -> None:
    known = {"timestamp": house.now - 9, "root_id": HOSTILE, "parent_id": HOSTILE}
    house.write(*(make_event("task-received", uuid=make_id(n), name=f"{HOSTILE}{n % 2}", **known) for n in range(14)))
    listed = house.html("/workflows")
    [address] = set(re.findall(r'href="(/workflows/[^"]+)"', listed))
    assert "<img src=x" not in listed
    assert "7 × <img src=x" in house.text(unescape(address))
    assert "<img src=x" not in house.html(unescape(address))


def test_task_leads_to_its_workflow(house: House) -> None:
    fill(house)
    assert f'href="/workflows/{ROOT}"' in house.html(f"/tasks/{make_id(3)}")


def test_api_tells_the_tree(house: House) -> None:
    fill(house)
    answer = house.client.get(f"/api/v1/workflows/{ROOT}").json()
    assert (answer["states"], len(answer["items"])) == ({"SUCCESS": 9, "RECEIVED": 1, "FAILURE": 1}, 11)
    assert answer["waiting_for"] == [{"state": "RECEIVED", "name": "shop.add_up", "queue": None, "count": 1}]
    assert answer["critical_path"] == [ROOT, make_id(3), make_id(20)]
    [item] = house.client.get("/api/v1/workflows").json()["items"]
    assert (item["root"]["id"], item["tasks"]) == (ROOT, 11)


def test_workflow_that_stands_still_comes_first_with_what_it_waits_for(house: House) -> None:
    fill(house)
    for number in (30, 31):
        task(house, number, None)
    text = house.text("/workflows")
    assert "1 workflow is stalled. 3 tasks, 2 of them shop.pick received , no event since" in text
    assert text.count("3 tasks, 2 of them shop.pick") == 2
    assert "A workflow is stalled for 1 min, waiting for shop.pick." in house.text("/")
    task(house, 32, None, timestamp=house.now)
    assert "stalled" not in house.text("/workflows")
