import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from celery_monitor.records.worker import WorkerStatus
from celery_monitor.store.actions import read_actions
from celery_monitor.store.tasks.unfinished import MOST_STARTED
from celery_monitor.store.workers import read_workers
from tests.factories import make_event, make_id
from tests.web.pages.house import HOSTILE, House, open_house


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with open_house(tmp_path) as opened:
        yield opened


def post(house: House, **form: str) -> int:
    html = house.html("/workers")
    token = re.search(r'data-token="([^"]+)"', html)
    assert token
    response = house.client.post(
        "/workers/enable-events",
        data={"csrf_token": token.group(1), **form},
        headers={"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:5757"},
        follow_redirects=False,
    )
    return int(response.status_code)


def test_no_worker_says_how_to_start_one(house: House) -> None:
    assert "Start a receiver first" in house.text("/workers")
    house.write()
    assert "appears here within seconds: celery -A your_app worker -E" in house.text("/workers")


def test_worker_is_shown_with_what_is_known(house: House) -> None:
    house.worker("mail1@shop", pool_size=16, prefetch=64, queues=("emails", "sms"), events_enabled=True)
    text = house.text("/workers")
    assert "online mail1@shop" in text
    assert "2 of 16 64 731" in text
    assert "emails , sms on" in text or "emails, sms on" in text


def test_what_inspect_has_not_told_is_unknown(house: House) -> None:
    house.worker("mail1@shop")
    assert "2 of ? unknown 731" in house.text("/workers")


def beat(house: House, second: float, pid: int, kind: str = "heartbeat", hostname: str = "dup@shop") -> None:
    event = make_event(f"worker-{kind}", hostname=hostname, pid=pid, timestamp=house.now + second, freq=3.0, active=pid)
    house.write(event, arrived=house.now + second)


def test_two_processes_of_one_name_are_named_with_what_to_do(house: House) -> None:
    for second in range(10):
        beat(house, second, 31 + second % 2)
    words = "2 processes share the name dup@shop."
    assert words in house.text("/")
    assert f"{words} Remote control reaches all of them" in house.text("/workers")
    text = house.text("/workers/dup@shop")
    assert "2 processes have the name dup@shop. Queues of all of them are listed." in text
    assert re.search(r"online 32 .* online 31 ", text)
    [worker] = house.client.get("/api/v1/workers").json()["items"]
    assert worker["duplicates"] == [31, 32]
    assert [(each["pid"], each["state"], each["active"]) for each in worker["processes"]] == [
        (32, "online", 32),
        (31, "online", 31),
    ]


def test_task_of_a_worker_in_warm_shutdown_says_so_and_is_not_offered_again(house: House) -> None:
    task_id = make_id()
    beat(house, -9, 31)
    for kind in ("task-received", "task-started"):
        house.write(make_event(kind, uuid=task_id, hostname="dup@shop", pid=31, timestamp=house.now - 8))
    beat(house, -5, 31, "offline")
    assert "offline shutting down, finishing running tasks" in house.text("/workers/dup@shop")
    beat(house, -4, 32, "online")
    text = house.text(f"/tasks/{task_id}")
    assert "Worker shutting down: dup@shop (process 31)" in text
    found = house.client.get(f"/api/v1/tasks/{task_id}").json()
    assert (found["state"], found["worker_state"]) == ("STARTED", "shutting down")
    assert "Retry" not in text
    assert "2 processes" not in house.text("/workers")


def test_other_version_is_marked(house: House) -> None:
    for number in (1, 2):
        house.worker(f"mail{number}@shop")
    house.worker("old@shop", sw_ver="5.2.7")
    text = house.text("/workers")
    assert "Workers run different versions of Celery: 5.2.7, 5.5.3." in text
    assert "5.2.7 ≠" in text
    assert "5.5.3 ≠" not in text


def test_failure_rate_is_of_the_last_hour(house: House) -> None:
    house.worker("mail1@shop")
    for number, end in enumerate(["failed", "succeeded", "succeeded", "succeeded"]):
        known = {"uuid": make_id(number), "hostname": "mail1@shop"}
        more = {"exception": "KeyError('a')"} if end == "failed" else {"runtime": 1.5}
        house.write(
            make_event("task-received", timestamp=house.now - 60, name="shop.mail", **known),
            make_event(f"task-{end}", timestamp=house.now - 50, **known, **more),
        )
    assert "25.0 %" in house.text("/workers")


def test_the_silent_come_first_then_as_people_count(house: House) -> None:
    for name in ("mail10@shop", "mail9@shop", "mail1@shop"):
        house.worker(name)
    house.worker("mail30@shop", status=WorkerStatus.SILENT)
    names = re.findall(r"mail\d+@shop", house.text("/workers"))
    assert names == ["mail30@shop", "mail1@shop", "mail9@shop", "mail10@shop"]


def test_what_a_worker_has_in_hand_is_told_by_its_events(house: House) -> None:
    house.worker("mail1@shop")
    assert "0, from events None, according to events." in house.text("/workers/mail1@shop")
    for number in (1, 2):
        known = {"uuid": make_id(number), "hostname": "mail1@shop"}
        house.write(make_event("task-received", timestamp=house.now - 90, name="shop.mail", args="(7,)", **known))
    house.write(make_event("task-started", timestamp=house.now - 60, uuid=make_id(1), hostname="mail1@shop"))
    text = house.text("/workers/mail1@shop")
    assert "Current tasks 2, from events" in text
    assert "▶ started shop.mail (7,)" in text
    assert "● received shop.mail (7,)" in text


def test_what_is_in_hand_is_unknown_where_events_are_off(house: House) -> None:
    house.worker("mail1@shop", events_enabled=False)
    assert "Task events are off, so the current tasks are unknown." in house.text("/workers/mail1@shop")


def test_worker_offline_for_long_folds_away(house: House) -> None:
    house.worker("gone@shop", online=False, last_heartbeat=house.now - 700, offline_at=house.now - 690)
    house.worker("left@shop", online=False, offline_at=house.now - 20)
    house.worker("mail1@shop")
    html = house.html("/workers")
    assert html.index("left@shop") < html.index("1 offline for a while") < html.index("gone@shop")


def test_skewed_clock_is_marked(house: House) -> None:
    house.worker("mail1@shop", skew=-7.25)
    assert '<span class="figure caution">−7.2 s</span>' in house.html("/workers")


def test_worker_without_events_offers_the_button(house: House) -> None:
    house.worker("mail1@shop", events_enabled=False)
    assert "Turn on events for all" in house.text("/workers")
    assert 'action="/workers/enable-events"' in house.html("/workers/mail1@shop")


def test_read_only_offers_no_button(tmp_path: Path) -> None:
    with open_house(tmp_path, read_only=True) as house:
        house.worker("mail1@shop", events_enabled=False)
        main = house.html("/workers").split('id="region-workers"')[1]
        assert "enable-events" not in main


def test_turning_events_on_passes_the_one_door_and_is_written_down(house: House) -> None:
    house.worker("mail1@shop", events_enabled=False)
    post(house, cluster="shop")  # the broker of this test does not exist
    (action,) = read_actions(house.store, limit=5).items
    assert (action.action, action.cluster, action.outcome) == ("worker.enable_events", "shop", "failed")


def test_turning_events_on_where_they_are_on_does_nothing(house: House) -> None:
    house.worker("mail1@shop", events_enabled=True)
    assert post(house, cluster="shop") == 303
    assert "Task events are already on." in house.text("/workers")
    assert read_actions(house.store, limit=5).items == []


def test_one_worker_has_its_page(house: House) -> None:
    house.worker("mail1@shop", pool="threads", queues=("emails",), pool_size=16)
    text = house.text("/workers/mail1@shop")
    assert "Busy processes 2 of 16" in text
    assert "Pool threads" in text


def test_worker_that_is_not_known_is_not_found(house: House) -> None:
    assert "Worker 'nope@x' not found" in house.text("/workers/nope@x", status=404)


def test_hostile_name_is_text_and_its_page_opens(house: House) -> None:
    house.worker(HOSTILE, queues=(HOSTILE,), pool=HOSTILE, events_enabled=False)
    stored = read_workers(house.store)[0].hostname
    for path in ("/workers", f"/workers/{quote(stored, safe='')}"):
        html = house.html(path)
        assert "<img src=x" not in html
        assert "\u202e" not in html
        assert "⟦U+202E⟧" in html


def test_worker_that_may_be_stuck_names_the_tasks_that_end_it(house: House) -> None:
    """A pool that is restarted waits for what its processes are in, so their tasks are what can be terminated."""
    house.worker("mail1@shop", pool_size=1, active=1)
    for number in range(7):
        known = {"uuid": make_id(number), "hostname": "mail1@shop"}
        house.write(make_event("task-received", timestamp=house.now - 90, name="shop.mail", args="()", **known))
        house.write(make_event("task-started", timestamp=house.now - 89, **known))
        ended = {"timestamp": house.now - 88, "runtime": 0.5, "result": "1"}
        if number:
            house.write(make_event("task-succeeded", **known, **ended))
    house.worker("mail1@shop", pool_size=1, active=1)
    house.write(updated_at=house.now + 60, lag_seconds=0.1)  # a receiver that has been silent accuses nobody
    text = house.text("/workers/mail1@shop")
    assert "mail1@shop may be stuck: its only task has been running for" in text
    link = f'href="/tasks/{make_id(0)}?panel=terminate&amp;signal=SIGKILL"'
    assert link in house.html("/workers/mail1@shop")
    asked = house.html(f"/tasks/{make_id(0)}?panel=terminate&signal=SIGKILL")
    assert "<option selected>SIGKILL</option>" in asked


def test_while_nothing_is_heard_no_task_runs_longer(house: House) -> None:
    """A broker that stands still is noticed after some seconds; until then its workers are not to blame."""
    house.worker("mail1@shop", pool_size=1, active=1)
    for number in range(7):
        known = {"uuid": make_id(number), "hostname": "mail1@shop"}
        house.write(make_event("task-received", timestamp=house.now - 90, name="shop.mail", args="()", **known))
        house.write(make_event("task-started", timestamp=house.now - 89, **known))
        if number:
            house.write(make_event("task-succeeded", timestamp=house.now - 88.9, runtime=0.1, result="1", **known))
    house.worker("mail1@shop", pool_size=1, active=1)
    house.write(last_event_at=house.now - 87)
    assert "may be stuck" not in house.text("/")
    house.write(last_event_at=house.now)
    assert "mail1@shop may be stuck" in house.text("/")


def test_worker_of_which_not_all_tasks_were_read_is_not_accused(house: House) -> None:
    """What was cut off may be all that it usually runs."""
    for number in range(7):
        known = {"uuid": make_id(number), "hostname": "mail1@shop"}
        house.write(make_event("task-received", timestamp=house.now - 98, name="shop.mail", **known))
        if number < 5:
            house.write(make_event("task-succeeded", timestamp=house.now - 97, runtime=0.5, **known))
    old = [
        make_event("task-started", uuid=make_id(5 + each), hostname="mail1@shop", timestamp=house.now - 96 + each)
        for each in range(2)
    ]
    others = [
        make_event("task-started", uuid=make_id(100 + each), hostname="sms1@shop", timestamp=house.now - 20)
        for each in range(MOST_STARTED - 1)
    ]
    for others_too in (False, True):
        house.write(*old, *(others if others_too else []))
        house.worker("mail1@shop", pool_size=1, active=1)
        house.write(updated_at=house.now + 60, lag_seconds=0.1)
        assert ("all 2 running tasks" in house.text("/workers/mail1@shop")) is not others_too


def test_worker_that_starts_nothing_says_what_is_to_be_done_on_its_host(house: House) -> None:
    house.worker("mail1@shop", pool_size=1, active=0)
    known = {"uuid": make_id(0), "hostname": "mail1@shop"}
    house.write(make_event("task-received", timestamp=house.now - 90, name="shop.mail", args="()", **known))
    house.write(updated_at=house.now + 60, lag_seconds=0.1)
    text = house.text("/workers/mail1@shop")
    assert "1 received task not started" in text
    assert "none can be terminated from here" in text
    assert "kill process" in text
