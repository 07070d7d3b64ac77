"""Floods of names, hosts and queues: what is recorded of them is bounded, says so, and no task loses its name."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import func, select
from starlette.testclient import TestClient

from benchmarks.cardinality import distinct_messages
from benchmarks.stream import publisher
from celery_monitor.core.filters.parser import parse
from celery_monitor.core.health.findings import RISE_SECONDS, RecentSamples
from celery_monitor.core.health.judgement import findings
from celery_monitor.errors import StoreUnavailable
from celery_monitor.receiver.reconcile import MOST_PINGED
from celery_monitor.receiver.sampler import MOST_ABSENT, MOST_MEASURED, QueueTurns
from celery_monitor.records.event import Event
from celery_monitor.records.queue import Queue
from celery_monitor.records.receiver import Delivery, ReceiverHealth
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.health import read_facts
from celery_monitor.store.queues import IDLE_SECONDS as QUEUE_IDLE_SECONDS
from celery_monitor.store.queues import read_queues, save_queues
from celery_monitor.store.rollups.failures import read_failure_groups
from celery_monitor.store.rollups.series import read_name_totals
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.tasks.page import count_tasks
from celery_monitor.store.terms import OTHER
from celery_monitor.store.workers import IDLE_SECONDS, read_workers
from celery_monitor.store.writer import Writer
from celery_monitor.web.pages import PART_ROWS
from tests.factories import make_event, make_id
from tests.receiver.test_reconcile import Judged
from tests.receiver.watching import watching
from tests.web.pages.house import House, open_house
from tests.web.shop import BASE, serving
from tests.workers import wait_for

BEGUN = time.time() // 60 * 60 - 60  # what a task does is within one minute


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = open_store(database_url)
    yield opened
    opened.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with open_house(tmp_path) as opened:
        opened.write()
        yield opened


def task_of(number: int, *, ended: bool = True, failed: bool = False) -> list[Event]:
    """A task with a name, a queue and a host of its own."""
    uuid, host = make_id(number), f"w{number}@shop"
    named = {"uuid": uuid, "name": f"shop.task{number}", "args": "()", "timestamp": BEGUN}
    events = [
        make_event("task-sent", hostname="gen1@web", queue=f"q{number}", **named),
        make_event("task-received", hostname=host, **named),
        make_event("task-started", hostname=host, uuid=uuid, timestamp=BEGUN + 1),
    ]
    if failed:
        return [*events, failure_of(number)]
    end = make_event("task-succeeded", hostname=host, uuid=uuid, timestamp=BEGUN + 2, result="1", runtime=1.0)
    return [*events, end] if ended else events


def failure_of(number: int) -> Event:
    text = f"Error{number}('no')"
    return make_event(
        "task-failed", hostname=f"w{number}@shop", uuid=make_id(number), timestamp=BEGUN + 2, exception=text
    )


def write(writer: Writer, events: Sequence[Event], arrived: float = BEGUN + 3) -> None:
    health = ReceiverHealth(cluster="shop", connected=True, updated_at=time.time(), last_event_at=BEGUN)
    writer.write([Delivery(events=list(events), arrived=arrived)], health)


def writer_of(store: Store) -> Writer:
    return Writer(store, "shop", Settings())


def said(store: Store) -> str:
    return " ".join(each.text for each in findings(read_facts(store, "shop", time.time())))


# Workers


def test_workers_beyond_the_bound_are_not_listed_and_their_tasks_are_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("workers", "health"):
        monkeypatch.setattr(f"celery_monitor.store.{module}.MOST_WORKERS", 3)
    write(writer_of(store), [each for number in range(10) for each in task_of(number)])
    assert len(read_workers(store, "shop")) == 3
    assert {read_task(store, make_id(number)).worker for number in range(10)} == {f"w{each}@shop" for each in range(10)}
    assert count_tasks(store, parse("worker:w9@shop", BEGUN)).value == 1
    assert "3 workers are recorded, which is the limit." in said(store)


def test_a_worker_that_sends_heartbeats_comes_before_hosts_that_only_name_tasks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_monitor.store.workers.MOST_WORKERS", 2)
    flood = [each for number in range(10) for each in task_of(number)]
    write(writer_of(store), [*flood, make_event("worker-heartbeat", hostname="true@shop", timestamp=BEGUN, freq=2.0)])
    assert "true@shop" in {each.hostname for each in read_workers(store, "shop")}


def test_a_worker_silent_for_long_makes_room_for_a_new_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_monitor.store.workers.MOST_WORKERS", 2)
    writer = writer_of(store)
    write(writer, [*task_of(1), *task_of(2)])
    late = make_event("worker-heartbeat", hostname="new@shop", timestamp=BEGUN + IDLE_SECONDS + 60, freq=2.0)
    write(writer, [late], arrived=BEGUN + IDLE_SECONDS + 60)
    names = {each.hostname for each in read_workers(store, "shop")}
    assert len(names) == 2
    assert "new@shop" in names


def test_more_hosts_in_one_batch_than_a_statement_has_parameters(store: Store) -> None:
    beats = [make_event("worker-heartbeat", hostname=f"w{each}@shop", timestamp=BEGUN) for each in range(33_000)]
    write(writer_of(store), beats)
    assert len(read_workers(store, "shop")) == 5000


# Counters


@pytest.fixture
def few_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_monitor.store.rollups.counters._MOST", (4, 3, 2))


def received(store: Store) -> dict[str | None, int]:
    totals = read_name_totals(store, since=BEGUN - 3600, until=time.time(), cluster="shop")
    return {each.name: each.runs for each in totals if each.runs}


@pytest.mark.usefixtures("few_counters")
def test_names_beyond_the_bound_are_counted_together_and_none_is_lost(store: Store) -> None:
    write(writer_of(store), [each for number in range(10) for each in task_of(number)])
    found = received(store)
    assert sum(found.values()) == 10
    assert len(found) == 5
    assert found[OTHER] == 6
    assert {read_task(store, make_id(number)).name for number in range(10)} == {
        f"shop.task{each}" for each in range(10)
    }
    assert count_tasks(store, parse("name:shop.task9", BEGUN)).value == 1
    assert "too many task names, queues or workers in the last hour" in said(store)


@pytest.mark.usefixtures("few_counters")
def test_what_is_counted_together_is_corrected_there_also_after_a_restart(store: Store) -> None:
    for number in range(10):
        write(writer_of(store), task_of(number, ended=False))
    for number in range(10):
        write(writer_of(store), task_of(number))  # twice the same beginnings
    rollup = schema.rollup.c
    with store.read() as connection:
        sums = [func.sum(rollup[name]) for name in ("received", "started", "succeeded")]
        mine = select(*sums, func.min(rollup.started)).where(rollup.resolution == 3600)
        assert tuple(map(int, connection.execute(mine).one())) == (10, 10, 10, 1)
        places = select(rollup.name_id, rollup.queue_id, rollup.worker_id).where(rollup.resolution == 3600)
        names, queues, workers = map(set, zip(*connection.execute(places).all(), strict=True))
    assert (len(names), len(queues), len(workers)) == (5, 4, 3)


def test_causes_beyond_the_bound_are_one_group(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_monitor.store.rollups.counters.MOST_GROUPS", 3)
    monkeypatch.setattr("celery_monitor.store.health.MOST_GROUPS", 3)
    writer = writer_of(store)
    write(writer, [each for number in range(10) for each in task_of(number, failed=True)])
    write(writer, [failure_of(9)])  # once more
    groups = {each.exception_type: each for each in read_failure_groups(store, since=BEGUN - 60, cluster="shop")}
    assert len(groups) == 4
    assert groups[OTHER].count == 7
    assert groups[OTHER].first_seen == BEGUN + 2
    assert read_task(store, make_id(9)).failure_group == groups[OTHER].id
    assert "3 failure groups are recorded, which is the limit." in said(store)


# Queues


def test_a_sample_measures_a_bounded_number_of_queues_and_all_in_turn() -> None:
    turns, names, seen = QueueTurns(), {f"q{each}" for each in range(2000)}, set[str]()
    for _ in range(5):
        now = turns.next(names, frozenset())
        assert len(now) <= MOST_MEASURED
        seen |= now
        turns.measured([Queue(cluster="shop", name=name, ready=0) for name in now])
    assert seen == names


def test_queues_that_the_broker_does_not_have_are_asked_for_few_at_a_time() -> None:
    turns, names, seen = QueueTurns(), {f"q{each}" for each in range(200)}, set[str]()
    for round_ in range(11):
        now = turns.next(names, frozenset())
        turns.measured([Queue(cluster="shop", name=name, ready=None) for name in now])
        if round_:
            assert len(now) == MOST_ABSENT
            seen |= now
    assert seen == names


def test_consumed_queues_and_those_measured_before_have_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_monitor.receiver.sampler.MOST_QUEUES", 3)
    turns = QueueTurns()
    assert turns.next({"orders", "mail"}, {"orders"}) == {"orders", "mail"}
    flood = {f"a{each}" for each in range(50)}
    assert turns.next({"orders", "mail", *flood}, {"orders"}) == {"orders", "mail", "a0"}


def test_queues_beyond_the_bound_are_not_recorded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("queues", "health"):
        monkeypatch.setattr(f"celery_monitor.store.{module}.MOST_QUEUES", 3)
    write(writer_of(store), task_of(1))
    save_queues(store, "shop", [Queue(cluster="shop", name=f"q{each}", ready=each) for each in range(5)], BEGUN)
    assert [each.name for each in read_queues(store, "shop")] == ["q0", "q1", "q2"]
    assert "3 queues are measured, which is the limit." in said(store)
    later = BEGUN + QUEUE_IDLE_SECONDS + 1
    save_queues(store, "shop", [Queue(cluster="shop", name="new", ready=0)], later)
    assert "new" in [each.name for each in read_queues(store, "shop")]


def test_a_queue_that_waits_for_its_turn_goes_on_rising() -> None:
    samples = RecentSamples()

    def rising(name: str, ready: int, at: float) -> tuple[str, ...]:
        return samples.rising([Queue(cluster="shop", name=name, ready=ready)], at)

    for at, ready in enumerate((0, 20, 40)):
        rising("orders", ready, float(at))
    assert rising("mail", 0, 3.0) == ("orders",)
    assert rising("mail", 0, 4.0 + RISE_SECONDS) == ()


# Pages and API


def test_the_queues_page_is_paged_and_says_of_how_many(house: House) -> None:
    queues = [Queue(cluster="shop", name=f"queue{each:03}", ready=1, consumers=0) for each in range(250)]
    save_queues(house.store, "shop", queues, house.now)
    first, last = house.html("/queues"), house.html("/queues?page=3")
    assert first.count("<tr>") == PART_ROWS + 1
    assert "1–100 of 250 queues" in house.text("/queues")
    assert "245 more queues have messages and no consumer." in house.text("/queues")
    assert ">queue249</a>" in last
    assert ">queue249</a>" not in first
    assert ">queue249</a>" in house.html("/queues?page=999")
    house.html("/queues?page=0", 400)
    house.html("/queues?page=1e9", 400)


def test_the_workers_page_is_paged_and_says_of_how_many(house: House) -> None:
    beats = [make_event("worker-heartbeat", hostname=f"w{each}@shop", timestamp=house.now) for each in range(150)]
    house.write(*beats)
    text = house.text("/workers")
    assert "1–100 of 150 workers" in text
    assert house.html("/workers?page=2").count('href="/workers/w') >= 50


class Counted(tuple[str, ...]):
    """The queues of a worker, which count how often they are read."""

    reads = 0

    def __iter__(self) -> Iterator[str]:
        Counted.reads += 1
        return super().__iter__()

    def __contains__(self, item: object) -> bool:
        Counted.reads += 1
        return super().__contains__(item)


def test_queues_and_workers_are_joined_in_linear_time(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    save_queues(house.store, "shop", [Queue(cluster="shop", name=f"q{each}") for each in range(60)], house.now)
    workers = [
        Worker(cluster="shop", hostname=f"w{each}@shop", status=WorkerStatus.ONLINE, queues=Counted((f"q{each}", "q0")))
        for each in range(60)
    ]
    monkeypatch.setattr("celery_monitor.web.pages.queues.read_workers", lambda *_: workers)
    Counted.reads = 0
    assert "q59" in house.text("/queues")
    assert Counted.reads == len(workers)


@pytest.mark.parametrize("noun", ["workers", "queues"])
def test_the_api_lists_all_of_them_page_by_page(store: Store, database_url: str, noun: str) -> None:
    beats = [make_event("worker-heartbeat", hostname=f"w{each}@shop", timestamp=BEGUN) for each in range(25)]
    write(writer_of(store), beats)
    save_queues(store, "shop", [Queue(cluster="shop", name=f"q{each}") for each in range(25)], BEGUN)
    settings = Settings(broker=(Broker("shop", "redis://127.0.0.1:1/0"),))
    key = "hostname" if noun == "workers" else "name"
    with serving(settings, database_url) as app:
        client = TestClient(app, base_url=BASE)
        names: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            given = {"limit": "10", **({"cursor": cursor} if cursor else {})}
            page = client.get(f"/api/v1/{noun}", params=given).json()
            assert len(page["items"]) <= 10
            names += [each[key] for each in page["items"]]
            cursor = page["next"]
        assert names == sorted(names)
        assert len(set(names)) == len(names) == 25
        assert client.get(f"/api/v1/{noun}").json()["next"] is None
        assert client.get(f"/api/v1/{noun}", params={"cursor": "x"}).status_code == 400
        assert client.get(f"/api/v1/{noun}", params={"limit": "5001"}).status_code == 400


# The receiver's helpers and the lock


def test_silent_workers_are_pinged_few_at_a_time_and_stored_in_one_transaction(redis_url: str, tmp_path: Path) -> None:
    judged = Judged(redis_url, tmp_path)
    number = MOST_PINGED + 50
    beats = [
        make_event("worker-heartbeat", hostname=f"w{each}@shop", timestamp=BEGUN, freq=2.0) for each in range(number)
    ]
    write(judged.writer, beats, BEGUN)
    commits = 0

    def count(_: object) -> None:
        nonlocal commits
        commits += 1

    for second in range(3):
        judged.step(BEGUN + second)
    sqlalchemy_event.listen(judged.store.engine, "commit", count)
    before = commits
    judged.step(BEGUN + 4)
    statuses = [each.status for each in read_workers(judged.store, "shop")]
    assert statuses.count(WorkerStatus.SILENT) == MOST_PINGED
    assert commits - before < 20


def test_our_own_lock_is_not_blamed_on_another_program(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/record.db")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with store.begin():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold, name="reconciler")
    thread.start()
    held.wait(60)
    try:
        words = r"celery-monitor itself is writing \(reconciler, for \d+ s\)"
        with pytest.raises(StoreUnavailable, match=words), store.begin(lock_timeout=0.1):
            pass
    finally:
        done.set()
        thread.join()
    with store.begin(lock_timeout=0.1) as connection:
        assert connection.execute(select(func.count()).select_from(schema.task)).scalar() == 0
    store.close()


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="Linux says who has a lock")
def test_another_process_with_the_lock_is_named(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/record.db")
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE')"
    command = [sys.executable, "-c", f"{code}; print(1, flush=True); sys.stdin.read()", f"{tmp_path}/record.db"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        words = rf"process {other.pid} has it locked"
        with pytest.raises(StoreUnavailable, match=words), store.begin(lock_timeout=0.1):
            pass
        other.communicate()
    store.close()


# Through the broker


def test_a_flood_through_the_broker_is_recorded_within_the_bounds(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("celery_monitor.store.workers.MOST_WORKERS", 20)
    monkeypatch.setattr("celery_monitor.store.queues.MOST_QUEUES", 30)
    monkeypatch.setattr("celery_monitor.receiver.sampler.MOST_QUEUES", 30)
    with watching(redis_url, tmp_path) as watch, publisher(redis_url) as sender:
        wait_for(lambda: watch.receiver.health.connected, what="the connection")
        sender.publish(distinct_messages(100, time.time()))
        wait_for(lambda: watch.receiver.health.events_total >= 400, what="the events")
        wait_for(lambda: len(read_queues(watch.store, "shop")) == 30, what="the queues")
        assert len(read_workers(watch.store, "shop")) == 20
        assert count_tasks(watch.store, parse("", time.time())).value == 100
