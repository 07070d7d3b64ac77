"""One bad value from a worker, a broker, RedBeat or somebody's database never takes its neighbours."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event, Thread

import msgspec
import pytest
import redis
from celery import Celery
from kombu import Connection

from celery_monitor.brokers.beat import RedBeatContext, entries_of_conf, read_redbeat
from celery_monitor.brokers.queues import describe_payload
from celery_monitor.brokers.redis import RedisMessages
from celery_monitor.brokers.remote import Remote
from celery_monitor.brokers.results import read_result
from celery_monitor.control.inspect import query_worker
from celery_monitor.core.sanitize import Redactor
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import REDACTED_KEYS, Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.foreign import CELERY, ResultTable, read_periodic_tasks, read_results
from tests.workers import wait_for

redactor = Redactor(REDACTED_KEYS)
HOSTILE = {
    "half \ud800": "half \ud800",
    "nul": "a\0b",
    "uptime": 10**400,
    "rusage": {"utime": float("inf"), "stime": 1e308, "maxrss": float("nan")},
    "pool": {"processes": 10**30, "max-concurrency": [[[["\ud800"]]]]},
    "pid": "\ud800",
}


def settings_of(url: str) -> Settings:
    return Settings(broker=(Broker("shop", url),))


@contextmanager
def answering(url: str, name: str, answer: object) -> Iterator[None]:
    """A process that answers every question like a worker, with whatever it likes."""
    stop, listening = Event(), Event()
    handlers = dict.fromkeys(
        ("stats", "conf", "active", "registered", "revoked", "scheduled", "reserved", "ping"),
        lambda _state, **_arguments: answer,
    )

    def listen() -> None:
        with Connection(url) as connection:
            node = (
                Celery(broker=url)
                .control.mailbox(connection)
                .Node(name, state=None, channel=connection.default_channel, handlers=handlers)
            )
            with node.listen(callback=node.handle_message):
                listening.set()
                while not stop.is_set():
                    try:
                        connection.drain_events(timeout=0.1)
                    except TimeoutError:
                        continue

    thread = Thread(target=listen, daemon=True)
    thread.start()
    try:
        assert listening.wait(60)
        yield
    finally:
        stop.set()
        thread.join(60)


def replies(url: str) -> dict[str, object]:
    """The answers of both, asked again until both are subscribed."""
    remote, both = Remote(Broker("shop", url), settings_of(url)), {"bad@shop", "good@shop"}

    def answers() -> dict[str, object] | None:
        found = remote.ask("stats", timeout=2.0, expected=sorted(both))
        return {name: reply.ok for name, reply in found.items()} if both <= found.keys() else None

    return dict(wait_for(answers, what="answers of both"))


def test_a_worker_with_bad_values_in_its_answer_is_shown_beside_the_others(broker_url: str) -> None:
    with answering(broker_url, "bad@shop", HOSTILE), answering(broker_url, "good@shop", {"pid": 7}):
        found = replies(broker_url)
        assert found["good@shop"] == {"pid": 7}
        assert msgspec.json.decode(msgspec.json.encode(found)) == found
        inspected = query_worker(
            settings_of(broker_url), Worker(cluster="shop", hostname="bad@shop", status=WorkerStatus.ONLINE)
        )
        assert inspected.stats is not None
        assert inspected.stats["half \ufffd"] == "half \ufffd"
        assert inspected.stats["nul"] == "a\ufffdb"


def test_an_answer_that_was_altered_says_so(broker_url: str) -> None:
    """What is sent again must be exact."""
    with answering(broker_url, "bad@shop", ["\ud800"]), answering(broker_url, "good@shop", [2**62]):
        remote = Remote(Broker("shop", broker_url), settings_of(broker_url))
        assert remote.ask("stats", {}, ["bad@shop"], 60.0)["bad@shop"].altered
        assert not remote.ask("stats", {}, ["good@shop"], 60.0)["good@shop"].altered


def test_bad_entries_of_redbeat_are_listed_and_the_others_shown(redis_url: str) -> None:
    def entry(name: str, **more: object) -> str:
        given = {"name": name, "task": "shop.pay", "schedule": {"__type__": "interval", "every": 30}}
        return json.dumps(given | more)

    stored: dict[str, str | bytes] = {
        "good": entry("good"),
        "half": entry("half \ud800"),
        "cut": entry("cut")[:20],
        "deep": "[" * 100_000,
        "args": entry("args", args=1),
        "bytes": b'{"name": "\xff", "task": "t", "schedule": null}',
        "endless": entry("endless", schedule={"__type__": "interval", "every": 10**400}),
        "argument": entry("argument", args=["\ud800", 10**30]),
    }
    with closing(redis.Redis.from_url(redis_url)) as client:
        for score, (name, text) in enumerate(stored.items(), 1):
            client.hset(f"redbeat::{name}", "definition", text)
            client.zadd("redbeat::schedule", {f"redbeat::{name}": score})
    broker = Broker("shop", redis_url)
    found = read_redbeat(broker, settings_of(redis_url), RedBeatContext("shop", redactor, "UTC", 1.0))
    assert {each.name for each in found.entries} == {"good", "endless", "argument"}
    assert {each.name: bool(each.reason) for each in found.unread} == dict.fromkeys(
        (":half", ":cut", ":deep", ":args", ":bytes"), True
    )
    by_name = {each.name: each for each in found.entries}
    assert by_name["good"].args_json == "[]"
    assert by_name["argument"].args_json is None  # what was replaced is not sent
    assert by_name["endless"].every is None
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found.entries))


@pytest.mark.parametrize(
    "entry",
    [
        {"task": "t", "args": 1, "schedule": 1},
        {"task": "t", "kwargs": 3, "schedule": 1},
        {"task": "t", "schedule": None},
        {"task": 5, "schedule": 1},
        {"task": "half \ufffd", "schedule": 1},
        7,
    ],
)
def test_a_bad_entry_of_a_workers_schedule_is_listed(entry: object) -> None:
    found = entries_of_conf(
        {"beat_schedule": {"good": {"task": "t", "schedule": 2}, "bad": entry}}, "shop", redactor, 1.0
    )
    assert [each.name for each in found.entries] == ["good"]
    assert [each.name for each in found.unread] == ["bad"]


@pytest.mark.parametrize("schedule", ["<freq: 1.1.1 seconds>", f"{'9' * 5000}:00:00", "9" * 400, {"a": 1}, [1]])
def test_a_schedule_that_is_no_schedule_is_shown_as_text(schedule: object) -> None:
    conf = {"beat_schedule": {"odd": {"task": "t", "schedule": schedule}}}
    [entry] = entries_of_conf(conf, "shop", redactor, 1.0).entries
    assert entry.every is None


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 100_000,
        b'{"headers": {"id": "\\ud800", "task": "\\ud800"}, "body": "e30=", "properties": {}}',
        b'{"headers": {"timestamp_in_ms": 1' + b"0" * 400 + b'}, "body": "", "properties": {}}',
        b'{"headers": {"id": "a"}, "body": 5, "properties": {"body_encoding": "base64"}}',
        b'{"properties": {"priority": ' + b"9" * 5000 + b"}}",
    ],
)
def test_a_bad_message_is_listed_beside_the_others(redis_url: str, payload: bytes) -> None:
    good = json.dumps({"headers": {"id": "good", "task": "t"}, "body": "", "properties": {}}).encode()
    with closing(redis.Redis.from_url(redis_url)) as client:
        client.rpush("orders", payload, good)
    read = RedisMessages(Broker("shop", redis_url), settings_of(redis_url), "orders").read(10)
    assert [each.id == "good" for each in read.messages].count(True) == 1
    assert len(read.messages) == 2
    assert msgspec.json.encode(read.messages)
    assert describe_payload(payload, redactor) in read.messages


@pytest.mark.parametrize(
    "payload",
    [
        b'{"status": "SUCCESS", "result": "\\ud800"}',
        b'{"status": "SUCCESS", "result": ' + b"9" * 5000 + b"}",
        b'{"status": "FAILURE", "result": {"exc_type": "\\ud800", "exc_message": ["\\ud800"]}, "worker": "\\u0000"}',
        b'{"status": "SUCCESS", "result": "\xff"}',
    ],
)
def test_a_bad_value_in_a_result_is_replaced_alone(payload: bytes) -> None:
    found = read_result(payload)
    assert found is not None
    texts = [each for each in found if isinstance(each, str)]
    assert not any("\0" in each or each.encode("utf-8", "replace") != each.encode() for each in texts)


def test_a_bad_row_of_a_result_table_leaves_the_others(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "results.db")) as database:
        database.execute("create table celery_taskmeta (task_id, status, result, traceback, date_done, worker)")
        rows = [
            ("deep", "SUCCESS", "[" * 100_000, None, "2026-01-01", None),
            ("bytes", b"\xff", b"\xff", b"\xff", 10**18, 5),
            ("year", "SUCCESS", "1", None, "0001-01-01 00:00:00", None),
            ("good", "SUCCESS", "1", None, "2026-01-01 00:00:00", "w@shop"),
        ]
        database.executemany("insert into celery_taskmeta values (?, ?, ?, ?, ?, ?)", rows)
        database.commit()
    table = ResultTable(f"sqlite:///{tmp_path}/results.db", "celery_taskmeta", CELERY, "UTC")
    found = read_results(table, [row[0] for row in rows])
    assert found.keys() == {row[0] for row in rows}
    good = read_result(found["good"])
    assert good is not None
    assert (good.result, good.worker) == ("1", "w@shop")


def test_a_bad_row_of_django_celery_beat_leaves_the_others(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "beat.db")) as database:
        database.executescript("""
            create table django_celery_beat_periodictask (id, name, task, args, kwargs, queue, enabled, one_off,
                start_time, last_run_at, total_run_count, interval_id, crontab_id, clocked_id, solar_id);
            create table django_celery_beat_intervalschedule (id, every, period);
            create table django_celery_beat_crontabschedule
                (id, minute, hour, day_of_month, month_of_year, day_of_week, timezone);
            create table django_celery_beat_clockedschedule (id, clocked_time);
            create table django_celery_beat_solarschedule (id, event, latitude, longitude);
            insert into django_celery_beat_intervalschedule values (1, 30, 'seconds');
        """)
        columns = "(?, ?, 't', ?, '{}', null, 1, 0, ?, ?, ?, 1, null, null, null)"
        rows = [
            (1, b"bad \xff", "[" * 100_000, "0001-01-01 00:00:00", "9999-12-31 23:59:59", "many"),
            (2, "good", "[1]", None, "2026-01-01 00:00:00", 3),
        ]
        database.executemany(f"insert into django_celery_beat_periodictask values {columns}", rows)
        database.commit()
    bad, good = read_periodic_tasks(f"sqlite:///{tmp_path}/beat.db", "Asia/Tokyo")
    assert (good.name, good.total_run_count, good.when) == ("good", 3, {"every": 30, "period": "seconds"})
    assert bad.name == "bad \ufffd"
