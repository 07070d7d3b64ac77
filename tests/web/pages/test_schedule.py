from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import json

from celery_monitor.records.queue import Queue
from celery_monitor.records.schedule import BeatHealth, OverdueEntry, ScheduleEntry, UnreadEntry
from celery_monitor.settings.values import Broker
from celery_monitor.store.queues import save_queues
from celery_monitor.store.schedule import save_beat_health, save_schedule
from tests.factories import make_event, make_id
from tests.web.pages.conftest import Browser
from tests.web.pages.house import HOSTILE, House, open_house


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with open_house(tmp_path) as opened:
        yield opened


def entry(name: str, **more: Any) -> ScheduleEntry:
    given = {"cluster": "shop", "name": name, "task": "shop.count", "schedule": "60.0", "every": 60.0}
    return ScheduleEntry(**{**given, "args_json": "[]", "kwargs_json": "{}", **more})


def send(house: House, number: int, ago: float, client: str = "gen7@beat", name: str = "shop.count") -> None:
    known = {"uuid": make_id(number), "timestamp": house.now - ago, "name": name}
    house.write(make_event("task-sent", hostname=client, queue="stock", args="()", kwargs="{}", **known))


def test_schedule_that_nobody_told_is_not_known(house: House) -> None:
    assert "Schedule unknown" in house.text("/schedule")
    save_schedule(house.store, "shop", [], house.now)
    assert "Nothing is scheduled" in house.text("/schedule")


def test_entry_without_a_run_is_unknown_and_not_zero(house: House) -> None:
    house.write()
    save_schedule(house.store, "shop", [entry("count stock")], house.now)
    text = house.text("/schedule")
    assert "count stock shop.count every minute 60.0 none seen unknown unknown unknown unknown" in text
    assert "overdue" not in text


def test_entry_that_is_overdue_comes_first_and_is_said(house: House) -> None:
    save_schedule(house.store, "shop", [entry("alive", task="shop.beat"), entry("dead")], house.now)
    for number in range(4):
        send(house, number, 10.0 + 60 * number, name="shop.beat")
        send(house, 10 + number, 600.0 + 60 * number)
    text = house.text("/schedule")
    assert "1 entry is overdue" in text
    assert text.index("dead") < text.index("alive")
    assert "Beat seems to have stopped" not in text


def test_beat_that_sends_nothing_any_more_is_said(house: House) -> None:
    save_schedule(house.store, "shop", [entry("one", task="shop.beat"), entry("two")], house.now)
    for number in range(4):
        send(house, number, 900.0 + 60 * number, name="shop.beat")
        send(house, 10 + number, 600.0 + 60 * number)
    assert "Beat seems to have stopped" in house.text("/schedule")


def fall_silent(house: House) -> None:
    """Two entries that were sent until a moment ago, by the record; it is looked at again later."""
    save_schedule(house.store, "shop", [entry("one", task="shop.beat"), entry("two")], house.now)
    for number in range(4):
        send(house, number, 300.0 + 60 * number, name="shop.beat")
        send(house, 10 + number, 300.0 + 60 * number)


@pytest.mark.parametrize(
    ("health", "known_until"),
    [
        ({"updated_at": -290.0}, -290.0),
        ({"lag_seconds": 280.0}, -280.0),
        ({"connected": False, "lag_seconds": None, "last_event_at": -295.0}, -295.0),
    ],
)
def test_nobody_is_accused_of_what_the_receiver_may_not_have_seen(
    house: House, health: dict[str, Any], known_until: float
) -> None:
    fall_silent(house)
    assert "Beat seems to have stopped" in house.text("/schedule")
    moments = {name: house.now + value if name.endswith("_at") else value for name, value in health.items()}
    house.write(**moments)
    text = house.text("/schedule")
    assert "Beat seems to have stopped" not in text
    assert "overdue" not in text.replace("so no entry is marked overdue", "")
    assert "Scheduled runs in the last" in text
    assert "are unknown. The receiver is stopped, disconnected or behind" in text
    assert text.count(", unknown") == 2
    for item in house.client.get("/api/v1/schedule").json()["items"]:
        assert item["overdue"] is None
        assert item["missed"] == []
        assert item["known_until"] == pytest.approx(house.now + known_until, abs=30)


def test_schedule_that_no_receiver_wrote_accuses_nobody(house: House) -> None:
    save_schedule(
        house.store, "shop", [entry("one", beat_last_at=house.now - 900, beat_next_at=house.now - 600)], house.now
    )
    text = house.text("/schedule")
    assert "Scheduled runs are unknown. No receiver has run" in text
    assert "is overdue" not in text


def test_cluster_that_is_in_the_record_alone_accuses_nobody_either(tmp_path: Path) -> None:
    with open_house(tmp_path, broker=(Broker("mail", "redis://127.0.0.1:1/1"),)) as house:
        fall_silent(house)
        assert "Beat seems to have stopped" in house.text("/schedule")
        house.write(updated_at=house.now - 290)
        assert "Beat seems to have stopped" not in house.text("/schedule")
        assert "Scheduled runs in the last" in house.text("/schedule")


def test_beat_of_one_cluster_has_stopped_and_of_another_it_is_not_known(tmp_path: Path) -> None:
    clusters = (Broker("shop", "redis://127.0.0.1:1/0"), Broker("mail", "redis://127.0.0.1:1/1"))
    with open_house(tmp_path, broker=clusters) as house:
        fall_silent(house)
        save_schedule(house.store, "mail", [entry("three", cluster="mail", beat_last_at=house.now - 900)], house.now)
        text = house.text("/schedule")
        assert "Beat of shop seems to have stopped." in text
        assert "Scheduled runs of mail are unknown." in text


def test_entry_that_may_wait_in_a_queue_is_not_called_overdue(house: House) -> None:
    """Without task-sent nobody tells that beat sent it, and no worker has taken it yet."""
    save_schedule(house.store, "shop", [entry("one", task="shop.beat", queue="picks"), entry("two")], house.now)
    for number in range(4):
        for name, offset in (("shop.beat", 0), ("shop.count", 10)):
            known = {"uuid": make_id(offset + number), "timestamp": house.now - 600.0 - 60 * number, "name": name}
            house.write(make_event("task-received", hostname="pick@shop", args="()", kwargs="{}", **known))
    assert "Beat seems to have stopped" in house.text("/schedule")
    save_queues(house.store, "shop", [Queue(cluster="shop", name="picks", ready=31)], house.now)
    text = house.text("/schedule")
    assert "may be waiting in picks" in text
    assert "Beat seems to have stopped" not in text
    items = {each["name"]: each for each in house.client.get("/api/v1/schedule").json()["items"]}
    assert items["one"]["may_wait_in"] == "picks"
    assert items["one"]["overdue"] is not None


def take(house: House, number: int, ago: float) -> None:
    known = {"uuid": make_id(number), "timestamp": house.now - ago, "name": "shop.count"}
    house.write(make_event("task-received", hostname="pick@shop", args="()", kwargs="{}", **known))


def test_without_task_sent_late_is_unknown_and_missed_a_guess(house: House) -> None:
    """A run that waited two minutes in a queue looks as one that beat sent late, or not at all."""
    save_schedule(house.store, "shop", [entry("one")], house.now)
    for number, ago in enumerate((20, 80, 150, 335, 395)):
        take(house, number, ago)
    (item,) = house.client.get("/api/v1/schedule").json()["items"]
    assert (item["by_receipt"], item["late"], item["drift"], len(item["missed"])) == (True, None, None, 2)
    assert item["last"]["by_receipt"] is True
    text = house.text("/schedule")
    assert " received " in text
    assert " ~2 " in text
    html = house.html("/schedule")
    assert html.count("send time unknown (task_send_sent_event is off)") == 4
    assert "A run that waited in a queue may look missed." in html


def test_with_task_sent_late_and_missed_are_told(house: House) -> None:
    save_schedule(house.store, "shop", [entry("one")], house.now)
    for number, ago in enumerate((20, 80, 150, 335, 395)):
        send(house, number, ago)
    (item,) = house.client.get("/api/v1/schedule").json()["items"]
    assert (item["by_receipt"], item["late"], len(item["missed"])) == (False, 1, 2)
    assert "send time unknown" not in house.html("/schedule")


def test_hostile_entry_is_text(house: House) -> None:
    save_schedule(house.store, "shop", [entry(HOSTILE, task=HOSTILE, schedule=HOSTILE, args=HOSTILE)], house.now)
    html = house.html("/schedule")
    assert "<img src=x" not in html


def test_api_lists_the_schedule_in_pages_by_name(house: House) -> None:
    save_schedule(house.store, "shop", [entry(name) for name in ("c", "a", "b")], house.now)
    first = house.client.get("/api/v1/schedule?limit=2").json()
    second = house.client.get("/api/v1/schedule", params={"limit": 2, "cursor": first["next"]}).json()
    assert [[each["name"] for each in page["items"]] for page in (first, second)] == [["a", "b"], ["c"]]
    assert second["next"] is None


def test_api_tells_what_is_unknown(house: House) -> None:
    assert house.client.get("/api/v1/schedule").json() == {
        "items": [],
        "unread": [],
        "unheard": ["shop"],
        "beats": [json.decode(json.encode(BeatHealth(cluster="shop")))],
        "next": None,
    }
    save_schedule(house.store, "shop", [entry("count stock")], house.now)
    [item] = house.client.get("/api/v1/schedule").json()["items"]
    assert (item["name"], item["words"], item["last"], item["next"], item["missed"]) == (
        "count stock",
        "every minute",
        None,
        None,
        None,
    )


def test_what_redbeat_and_django_say_is_shown_with_where_it_is_from(house: House) -> None:
    house.write()
    kept = {"source": "redbeat", "beat_last_at": house.now - 90, "beat_next_at": house.now - 30, "total": 3}
    off = entry("off", source="django", enabled=False, beat_last_at=house.now - 900, task="shop.off")
    save_schedule(house.store, "shop", [entry("due", **kept), off], house.now)
    text = house.text("/schedule")
    assert "1 entry is overdue" in text
    assert "From RedBeat, django-celery-beat." in text
    assert "disabled" in text
    [due, _] = house.client.get("/api/v1/schedule").json()["items"]
    assert (due["last"], due["last_at"], due["overdue"], due["total"]) == (
        None,
        kept["beat_last_at"],
        house.now - 30,
        3,
    )


def test_sign_of_beat_and_what_could_not_be_read_are_said(house: House) -> None:
    house.write()
    save_schedule(house.store, "shop", [entry("one")], house.now)
    save_beat_health(house.store, BeatHealth(cluster="shop", lock_until=house.now + 60, unread=("It is gone.",)))
    assert "A beat process holds RedBeat's lock" in house.text("/schedule")
    assert "A schedule cannot be read. It is gone. Showing the entries read last." in house.text("/schedule")
    late = (OverdueEntry(name="one", since=house.now - 300),)
    save_beat_health(house.store, BeatHealth(cluster="shop", lock_free_since=house.now - 99, overdue=late))
    assert "RedBeat's lock has been free for" in house.text("/schedule")
    house.write(updated_at=house.now - 60)
    assert "RedBeat's lock was free" in house.text("/schedule")
    assert "no beat runs" not in house.text("/schedule")


def test_run_now_shows_the_arguments_and_sends(browser: Browser) -> None:
    store = browser.app.state.store  # type: ignore[attr-defined]
    told = entry("count stock", args="('Ada',)", args_json='["Ada"]', queue="stock")
    save_schedule(store, "shop", [told], 9.0)
    page = "/schedule?run=count%20stock&of=shop"
    assert ">Run now<" in browser.get(page).text
    sent = browser.submit(page, "/schedule/run", of_cluster="shop", entry="count stock")
    assert "Sent shop.count as" in sent
    assert "to queue stock" in sent
    asked = browser.post(
        "/api/v1/schedule/run",
        json={"name": "count stock"},
        headers={"X-CSRF-Token": browser.token("/schedule"), "Sec-Fetch-Site": "same-origin"},
    )
    assert (asked.status_code, asked.json()["error"]["detail"]["args"]) == (409, "('Ada',)")


def test_two_entries_that_send_the_same_are_said_to_be_undecidable(house: House) -> None:
    """As beat sends both: what sends a third entry, too, is surely beat, and yet nobody knows for which of the two."""
    told = house.now - 40.0
    alike = [entry("fast", every=30.0, schedule="30.0"), entry("slow", source="redbeat", beat_last_at=told, total=3)]
    save_schedule(house.store, "shop", [entry("alive", task="shop.beat"), *alike], house.now)
    for number in range(4):
        send(house, number, 10.0 + 60 * number, name="shop.beat")
        send(house, 10 + number, 10.0 + 20 * number)
    items = {each["name"]: each for each in house.client.get("/api/v1/schedule").json()["items"]}
    assert (items["alive"]["sure"], items["alive"]["shared_with"]) == (True, [])
    for name, other in (("fast", "slow"), ("slow", "fast")):
        assert (items[name]["sure"], items[name]["shared_with"]) == (False, [other])
        assert (items[name]["last"], items[name]["missed"], items[name]["late"]) == (None, None, None)
        assert len(items[name]["runs"]) == 4
    assert (items["fast"]["last_at"], items["slow"]["last_at"]) == (None, told)
    text = house.text("/schedule")
    assert "~ shared with slow" in text
    assert "~ shared with fast" in text


def test_entries_that_cannot_be_read_are_listed(house: House) -> None:
    unread = [UnreadEntry(source="redbeat", name=HOSTILE, reason="its definition is not JSON")]
    unread += [UnreadEntry(source="app", name="", reason=f"reason {number}") for number in range(25)]
    health = BeatHealth(cluster="shop", at=house.now, unread=("RedBeat: away",), unread_entries=tuple(unread))
    save_beat_health(house.store, health)
    answer = house.client.get("/api/v1/schedule").json()
    assert answer["unread"][:2] == [
        {"cluster": "shop", "source": None, "name": None, "reason": "RedBeat: away"},
        {"cluster": "shop", "source": "redbeat", "name": HOSTILE, "reason": "its definition is not JSON"},
    ]
    assert (len(answer["unread"]), answer["unread"][2]["name"]) == (27, None)
    text = house.text("/schedule")
    assert "26 entries could not be read" in text
    assert "its definition is not JSON" in text
    assert "and 6 more" in text
    assert "<img src=x" not in house.client.get("/schedule").text
