"""Receivers that share a cluster's tasks on one PostgreSQL: together they store what one would, also after a death."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import func
from sqlalchemy import select

from monitor.records import Gap
from monitor.records import ReceiverHealth
from monitor.records import TaskState
from monitor.shards import Shard
from monitor.store import journal
from monitor.store import queries
from monitor.store import schema
from monitor.store.engine import open_store
from monitor.store.keys import from_key
from monitor.store.schema import STATE_CODES
from tests.apps.ledger import LEDGER_VARIABLE
from tests.faults.receivers import CLUSTER
from tests.faults.receivers import Program
from tests.faults.receivers import Record
from tests.faults.receivers import receiving
from tests.receiver.sources.conftest import delete_queue
from tests.workers import running_worker
from tests.workers import wait_for

TASKS = 1200
FAILING_EACH = 10


@pytest.fixture
def record(postgres_url: str) -> Iterator[Record]:
    with closing(open_store(postgres_url)) as store:
        yield Record(store)


@pytest.fixture(autouse=True)
def queue(broker_url: str, tmp_path: Path) -> Iterator[None]:
    yield
    if broker_url.startswith("amqp"):
        for number in (1, 2):
            delete_queue(f"celeryev.test-{tmp_path.name}.{number}-of-2")


def wait_for_shards(record: Record, programs: dict[int, Program]) -> ReceiverHealth:
    """Until each of them says that it is connected."""

    def all_lead() -> ReceiverHealth | None:
        health = record.health()
        if health is None or len(health.parts) != len(programs) or not health.connected:
            return None
        return health if all(programs[part.shard].has(part.pid) for part in health.parts) else None

    try:
        found: ReceiverHealth = wait_for(all_lead, 40, "the receivers")
    except TimeoutError as error:
        logs = "\n".join(program.log[-2000:] for program in programs.values())
        raise AssertionError(f"{error}: {record.health()}\n{logs}") from None
    return found


def stored_by_shard(record: Record) -> dict[int, int]:
    with record.store.read() as connection:
        ids = [from_key(key) for key in connection.execute(select(schema.task.c.key)).scalars()]
    return {number: sum(Shard(number, 2).has(each) for each in ids) for number in (1, 2)}


def equals(record: Record, book: Any, sent: list[str]) -> None:
    """Lists, counters and charts say what the ledger says."""
    entered = {outcome: book.hgetall(f"ledger:{outcome}") for outcome in ("failed", "succeeded")}
    expected = {
        TaskState.FAILURE: len(entered["failed"]),
        TaskState.SUCCESS: len(entered["succeeded"]),
    }
    record.wait_for_counts(expected)
    table = schema.task.c
    with record.store.read() as connection:
        rows = connection.execute(select(table.state, func.count()).group_by(table.state)).all()
        failed = connection.execute(select(table.key).where(table.state == STATE_CODES[TaskState.FAILURE])).scalars()
        assert {from_key(key) for key in failed} == {key.decode() for key in entered["failed"]}
        numbers = connection.execute(select(table.id)).scalars().all()
    assert {row[0]: row[1] for row in rows} == {STATE_CODES[state]: count for state, count in expected.items()}
    assert len(set(numbers)) == len(sent)
    now = time.time()
    series = queries.series(record.store, since=now - 900, until=now)
    assert sum(bucket.succeeded for bucket in series.buckets) == expected[TaskState.SUCCESS]
    assert sum(bucket.failed for bucket in series.buckets) == expected[TaskState.FAILURE]
    with record.store.read() as connection:
        groups = connection.execute(select(schema.failure_group.c["count"])).scalars().all()
    assert groups == [expected[TaskState.FAILURE]]


def test_two_receivers_share_the_tasks_and_one_is_killed_and_started_again(
    broker_url: str,
    postgres_url: str,
    redis_url: str,
    record: Record,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(LEDGER_VARIABLE, redis_url)
    with ExitStack() as stack:
        book: Any = stack.enter_context(closing(redis.Redis.from_url(redis_url)))
        programs = {
            number: stack.enter_context(
                receiving(broker_url, postgres_url, tmp_path, f"shard{number}", "--shard", f"{number}/2")
            )
            for number in (1, 2)
        }
        first = wait_for_shards(record, programs)
        assert [part.shard for part in first.parts] == [1, 2]
        worker = stack.enter_context(running_worker(broker_url, app="tests.apps.ledger", concurrency=4))
        sent = [worker.send("entry", number % FAILING_EACH == 0) for number in range(TASKS)]
        wait_for(lambda: record.counts().get(TaskState.FAILURE), 30, "the first failure")
        if broker_url.startswith("amqp"):
            programs[2].kill()
            wait_for(lambda: silent(record) == [2], 30, "the silence of the second")
            programs[2] = stack.enter_context(receiving(broker_url, postgres_url, tmp_path, "again", "--shard", "2/2"))
            wait_for_shards(record, programs)
        wait_for(lambda: book.hlen("ledger:failed") + book.hlen("ledger:succeeded") == TASKS, 60, "the ledger")
        equals(record, book, sent)
        shares = stored_by_shard(record)
        assert min(shares.values()) > TASKS // 3
        health = record.health()
        assert health is not None
        assert (health.dropped_total, health.malformed_total) == (0, 0)
        assert [worker.hostname for worker in queries.workers(record.store, CLUSTER)] == [worker.hostname]
        assert all("deadlock" not in program.log for program in programs.values())
        if broker_url.startswith("redis"):  # what the killed one misses is a gap, and not the other's
            programs[2].kill()
            killed = time.time()
            more = [worker.send("entry", False) for _ in range(100)]
            wait_for(lambda: book.hlen("ledger:succeeded") >= TASKS - TASKS // FAILING_EACH + 100, 30, "the ledger")
            programs[2] = stack.enter_context(receiving(broker_url, postgres_url, tmp_path, "again", "--shard", "2/2"))
            wait_for_shards(record, programs)
            (gap,) = wait_for(lambda: [g for g in queries.gaps(record.store, 0.0) if g.ended], 20, "the gap")
            assert (gap.shard, gap.dropped) == (2, None)
            assert "(receiver 2/2)" in gap.cause
            assert gap.began - 2 < killed < gap.ended
            after = worker.send("entry", False)
            wait_for(lambda: after in ids(record), 20, "a task after the gap")
            wait_for(lambda: {each for each in more if Shard(1, 2).has(each)} <= ids(record), 20, "those of the first")


def silent(record: Record) -> list[int]:
    health = record.health()
    assert health is not None
    return [part.shard for part in health.parts if time.time() - (part.updated_at or 0.0) > 3]


def ids(record: Record) -> set[str]:
    with record.store.read() as connection:
        return {from_key(key) for key in connection.execute(select(schema.task.c.key)).scalars()}


def test_receivers_that_share_the_tasks_in_two_ways_never_run_together(
    postgres_url: str, record: Record, tmp_path: Path, broker_url: str
) -> None:
    with ExitStack() as stack:
        whole = stack.enter_context(receiving(broker_url, postgres_url, tmp_path, "whole"))
        record.wait_for_leader(whole)
        half = stack.enter_context(receiving(broker_url, postgres_url, tmp_path, "half", "--shard", "1/2"))
        wait_for(lambda: "share its tasks in another way; as 1/2 this one waits" in half.log, 20, "the warning")
        assert record.wait_for_leader(whole).parts == ()
        whole.kill()
        health = wait_for(lambda: (each := record.health()) and each.parts and each, 20, "the lead")
        assert health.error == "receiver 2/2: has never run"
        assert not health.connected
    if broker_url.startswith("amqp"):
        delete_queue(f"celeryev.test-{tmp_path.name}")


def test_the_first_takes_over_the_gaps_of_receivers_that_there_are_no_more(
    postgres_url: str, record: Record, tmp_path: Path, broker_url: str
) -> None:
    began = time.time() - 30
    for number in (1, 2, 3, 4):  # of four that died together
        journal.open_gap(record.store, CLUSTER, began + number, f"no connection ({number})", number)
    with ExitStack() as stack:
        second = stack.enter_context(receiving(broker_url, postgres_url, tmp_path, "second", "--shard", "2/2"))
        wait_for(lambda: {gap.shard for gap in open_gaps(record)} == {1, 3, 4}, 30, "its own gap to be ended")
        first = stack.enter_context(receiving(broker_url, postgres_url, tmp_path, "first", "--shard", "1/2"))
        wait_for_shards(record, {1: first, 2: second})
        wait_for(lambda: not open_gaps(record), 30, "every gap to be ended")
        wait_for(lambda: all(done(gap) for gap in queries.gaps(record.store, 0.0)), 60, "every gap to be reconciled")
    gaps = {gap.began: gap for gap in queries.gaps(record.store, 0.0)}
    reconciled = {number: gaps[began + number].reconciliation for number in (1, 2, 3, 4)}
    together = {number: each and each.together_with for number, each in reconciled.items()}
    assert together[2] is None, "what the second missed is judged by the second alone"
    assert [number for number in (1, 3, 4) if together[number] is None] != [], "the first judges the other three"
    assert {together[number] for number in (1, 3, 4)} <= {None, began + 1, began + 3, began + 4}


def open_gaps(record: Record) -> list[Gap]:
    return [gap for gap in queries.gaps(record.store, 0.0) if gap.ended is None]


def done(gap: Gap) -> bool:
    return gap.reconciliation is not None and gap.reconciliation.ended is not None
