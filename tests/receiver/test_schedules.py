"""The schedule as RedBeat and django-celery-beat really write it, and the signs that beat lives."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery.schedules import crontab
from celery.schedules import schedule as interval
from redbeat import RedBeatSchedulerEntry
from redbeat.schedules import rrule

from celery_monitor.brokers.beat import RedBeatContext, read_redbeat
from celery_monitor.core.sanitize import Redactor
from celery_monitor.core.schedule import in_words
from celery_monitor.errors import StoreUnavailable
from celery_monitor.receiver.schedules import Schedules
from celery_monitor.records.schedule import ScheduleEntry
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import open_store
from celery_monitor.store.foreign import read_periodic_tasks
from celery_monitor.store.schedule import read_beat_health, read_entries, schedule_reported_at
from celery_monitor.web.pages.schedule import SOURCES
from tests.apps.basic import BROKER_VARIABLE, CONFIG_VARIABLE, make_app
from tests.apps.django_beat import LAST, ONCE
from tests.receiver.watching import CLUSTER, watching
from tests.workers import ROOT, wait_for

NOW = 1_780_000_000.0


def written(name: str, **more: Any) -> None:
    RedBeatSchedulerEntry(name, **{"task": f"shop.{name}", **more}).save()


@contextmanager
def beat(redis_url: str, config: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "celery", "-A", "tests.apps.basic", "beat", "--max-interval", "1", "--pidfile="]
    process = subprocess.Popen(
        [*command, "-S", "redbeat.RedBeatScheduler"],
        cwd=ROOT,
        env={**os.environ, BROKER_VARIABLE: redis_url, CONFIG_VARIABLE: json.dumps(config)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def test_redbeat_entries_are_read_as_it_saves_them(redis_url: str) -> None:
    app = make_app(redis_url, redbeat_redis_url=redis_url, redbeat_redis_options={"retry_period": 2})
    written("count", schedule=interval(45.0, app=app), args=["Ada"], options={"queue": "stock"}, app=app)
    news = crontab(minute="*/20", hour=[7, 8], day_of_week="mon-fri", app=app)
    written("news", schedule=news, kwargs={"token": "abc"}, app=app)
    written("odd", schedule=rrule("DAILY", interval=2, app=app), args=[LAST], enabled=False, app=app)
    RedBeatSchedulerEntry.from_key("redbeat:count", app=app).next(last_run_at=LAST)
    reading = RedBeatContext(CLUSTER, Redactor(("token",)), "UTC", NOW)
    found = read_redbeat(Broker(CLUSTER, redis_url), Settings(), reading)
    assert (found.lock_seconds, found.unread) == (None, [])
    entries = {entry.name: entry for entry in found.entries}
    count, news, odd = entries["count"], entries["news"], entries["odd"]
    assert (count.task, count.every, count.queue, count.source) == ("shop.count", 45.0, "stock", "redbeat")
    assert (count.args, count.args_json, count.beat_last_at) == ("('Ada',)", '["Ada"]', LAST.timestamp())
    assert (news.minutes, news.hours, news.weekdays) == ((0, 20, 40), (7, 8), (1, 2, 3, 4, 5))
    assert (news.kwargs_json, "abc" in news.kwargs, news.beat_last_at) == (None, False, None)
    assert (count.total, news.total) == (1, None)
    assert (odd.enabled, odd.every, odd.args_json, odd.schedule[:6]) == (False, None, None, "rrule:")
    assert odd.beat_next_at is not None
    app.close()


def test_what_is_no_entry_of_redbeat_is_listed_and_hides_no_other(redis_url: str, tmp_path: Path) -> None:
    app = make_app(redis_url, redbeat_redis_url=redis_url, redbeat_redis_options={"retry_period": 2})
    written("count", schedule=interval(45.0, app=app), app=app)
    whole = {"name": "odd", "task": "shop.odd", "schedule": {"__type__": "interval", "every": 9.0}}
    broken = {
        "cut": json.dumps(whole)[:40],
        "list": "[1]",
        "nameless": json.dumps({**whole, "name": None}),
        "argued": json.dumps({**whole, "args": 1}),
        "half": json.dumps({**whole, "name": "half \ud800"}),
        "countless": json.dumps({**whole, "name": "countless"}),
    }
    with app.connection_for_read() as connection:
        client = connection.default_channel.client
        for name, definition in broken.items():
            client.hset(f"redbeat:{name}", "definition", definition)
        client.hset("redbeat:countless", "meta", json.dumps({"total_run_count": 10**30}))
        client.set("redbeat:text", "of another kind")
        client.zadd("redbeat::schedule", {f"redbeat:{name}": 1.0 for name in (*broken, "gone", "text")})
    store = open_store(f"sqlite:///{tmp_path}/record.db")
    try:
        broker = Broker(CLUSTER, redis_url)
        Schedules(store, broker, Settings(broker=(broker,))).step([], None, NOW)
        assert [each.name for each in read_entries(store)] == ["count"]
        health = read_beat_health(store, CLUSTER)
        reasons = {each.name: each.reason for each in health.unread_entries}
        assert health.unread == ()
        assert reasons.keys() == {"cut", "list", "nameless", "argued", "half", "countless", "gone", "text"}
        assert reasons["cut"].startswith("its definition is not JSON")
        assert reasons["argued"] == "its args are not a list, or its kwargs not an object"
        assert "lone surrogate" in reasons["half"]
        assert "WRONGTYPE" in reasons["text"]
        assert {each.source for each in health.unread_entries} == {"redbeat"}
    finally:
        store.close()
        app.close()


@pytest.mark.slow
def test_one_bad_row_of_django_hides_no_other(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/django.db"
    subprocess.run([sys.executable, "-m", "tests.apps.django_beat", url], check=True, cwd=ROOT)
    with closing(sqlite3.connect(tmp_path / "django.db")) as connection:
        tasks = "UPDATE django_celery_beat_periodictask SET"
        connection.execute("UPDATE django_celery_beat_intervalschedule SET every = 'often'")
        connection.execute(f"{tasks} total_run_count = 'many' WHERE name = 'close'")
        connection.execute(f"{tasks} task = CAST(x'73ff' AS TEXT) WHERE name = 'dusk'")
        connection.commit()
    store = open_store(f"sqlite:///{tmp_path}/record.db")
    try:
        broker = Broker(CLUSTER, "amqp://nobody")
        given = Settings(broker=(broker,), beat_database=(Broker("default", url),))
        Schedules(store, broker, given).step([], None, NOW)
        assert {each.name: each.task for each in read_entries(store)} == {"dusk": "s\ufffd", "news": "shop.news"}
        unread = read_beat_health(store, CLUSTER).unread_entries
        assert {(each.name, each.source) for each in unread} == {("count", "django"), ("close", "django")}
    finally:
        store.close()


def test_beat_that_runs_holds_its_lock_and_one_that_ended_is_missed(redis_url: str, tmp_path: Path) -> None:
    entry = {"task": "add", "schedule": 1.0, "args": [3, 4]}
    config = {"redbeat_redis_url": redis_url, "redbeat_redis_options": {}, "beat_schedule": {"sum": entry}}
    with watching(redis_url, tmp_path) as watch:
        with beat(redis_url, config):
            held = wait_for(lambda: (each := read_beat_health(watch.store, CLUSTER)).lock_until and each)
            assert held.lock_free_since is None
            [found] = wait_for(lambda: [each for each in read_entries(watch.store, CLUSTER) if each.total])
            assert (found.name, found.every, found.source) == ("sum", 1.0, "redbeat")
        free = wait_for(lambda: (each := read_beat_health(watch.store, CLUSTER)).lock_free_since and each)
        assert free.lock_until is None
        late = wait_for(lambda: (each := read_beat_health(watch.store, CLUSTER)).overdue and each)
        assert [each.name for each in late.overdue] == ["sum"]


@pytest.mark.slow
def test_django_celery_beat_is_read_as_its_models_write_it(database_url: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "tests.apps.django_beat", database_url], check=True, cwd=ROOT)
    rows = {row.name: row for row in read_periodic_tasks(database_url)}
    assert {name: row.kind for name, row in rows.items()} == {
        "count": "interval",
        "news": "crontab",
        "close": "clocked",
        "dusk": "solar",
    }
    assert (rows["count"].last_run_at, rows["count"].total_run_count) == (LAST.timestamp(), 12)
    assert (rows["close"].one_off, rows["dusk"].enabled, rows["news"].queue) == (True, False, "mail")
    found = learned(database_url, tmp_path)
    assert {name: in_words(entry) for name, entry in found.items()} == {
        "count": "every 2 minutes",
        "news": "at 07:30 on Monday",
        "close": f"once, at {ONCE:%Y-%m-%d %H:%M:%S} UTC",
        "dusk": None,
    }
    assert (found["count"].args_json, found["news"].timezone, found["news"].kwargs_json) == (
        '["Ada", 7]',
        "Asia/Tokyo",
        None,
    )
    assert found["dusk"].schedule == "solar: sunset at 52.5, 13.25"


def learned(django_url: str, directory: Path) -> dict[str, ScheduleEntry]:
    """The entries of a receiver that has nobody else to ask."""
    store = open_store(f"sqlite:///{directory}/learned.db")
    try:
        broker = Broker(CLUSTER, "amqp://nobody")
        given = Settings(broker=(broker,), beat_database=(Broker("default", django_url),))
        Schedules(store, broker, given).step([], None, NOW)
        assert read_beat_health(store, CLUSTER).unread == ()
        return {entry.name: entry for entry in read_entries(store)}
    finally:
        store.close()


def test_schedule_that_cannot_be_read_is_reported_and_nothing_is_made(tmp_path: Path) -> None:
    gone = f"sqlite:///{tmp_path}/gone.db"
    with pytest.raises(StoreUnavailable, match="django-celery-beat in sqlite:///"):
        read_periodic_tasks(gone)
    assert not (tmp_path / "gone.db").exists()
    store = open_store(f"sqlite:///{tmp_path}/record.db")
    try:
        broker = Broker(CLUSTER, "amqp://nobody")
        given = Settings(broker=(broker,), beat_database=(Broker(CLUSTER, gone),))
        Schedules(store, broker, given).step([], None, NOW)
        [reason] = read_beat_health(store, CLUSTER).unread
        assert reason.startswith("django-celery-beat: cannot read")
        assert schedule_reported_at(store, CLUSTER) is None
    finally:
        store.close()


def test_every_source_has_words() -> None:
    told = ScheduleEntry.__annotations__["source"]
    assert set(SOURCES) == set(told.__args__)
