"""What a batch leaves in the database, on both databases, and that replaying it changes nothing."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from celery_monitor.core.quantiles import Sketch
from celery_monitor.core.waits import Senders, set_ready_times
from celery_monitor.errors import StoreUnavailable
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery, ReceiverHealth
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.receivers import unpack_health
from celery_monitor.store.schema import CLUSTER_SHIFT, STATES
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.tasks.keys import to_key
from celery_monitor.store.terms import cluster_id
from celery_monitor.store.workers import change_workers, load_workers
from celery_monitor.store.writer import Writer
from tests.core.test_invocations import STREAMS as REPLACED
from tests.core.test_invocations import folded
from tests.core.test_lifecycle import STREAMS
from tests.factories import NOW, make_event, make_id

SETTINGS = Settings(max_text=300)


def deliver(*events: Event, arrived: float = NOW + 100) -> list[Delivery]:
    return [Delivery(events=list(events), arrived=arrived)]


def write(store: Store, *events: Event) -> None:
    Writer(store, "shop", SETTINGS).write(deliver(*events))


def one_task(number: int, end: str = "succeeded", at: float = 0.0, **more: object) -> list[Event]:
    task_id = make_id(number)
    fields = {"name": "shop.pay", "args": f"({number},)", "kwargs": "{}", "retries": 0, "root_id": task_id}
    return [
        make_event("task-received", timestamp=NOW + at, uuid=task_id, **fields),
        make_event("task-started", timestamp=NOW + at + 0.5, uuid=task_id),
        make_event(f"task-{end}", timestamp=NOW + at + 2.5, uuid=task_id, **more),
    ]


def contents(store: Store) -> dict[str, list[tuple[object, ...]]]:
    """Everything that is kept, zero counters aside."""
    found = {}
    with store.read() as connection:
        for name in ("task", "run", "task_count", "rollup", "failure_group", "failure_rollup", "worker"):
            table = schema.metadata.tables[name]
            rows = [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            if name in {"task_count", "failure_rollup"}:
                rows = [row for row in rows if row[-1]]
            found[name] = rows
    return found


def rolled_up(store: Store) -> list[tuple[object, ...]]:
    """The rollups that are not empty, without the numbers of names."""
    with store.read() as connection:
        rows = connection.execute(select(schema.rollup).order_by(schema.rollup.c.resolution, schema.rollup.c.at)).all()
    sketches = [(Sketch.from_bytes(row.wait).counts, Sketch.from_bytes(row.run).counts) for row in rows]
    return [(*row[:2], *row[6:-2], *each) for row, each in zip(rows, sketches, strict=True) if any(row[6:-2])]


def counts(store: Store) -> dict[str, int]:
    with store.read() as connection:
        table = schema.task_count
        statement = select(table.c.state, func.sum(table.c["count"])).group_by(table.c.state)
        return {STATES[code].word: int(count) for code, count in connection.execute(statement) if count}


def test_a_task_is_stored_as_it_ran(store: Store) -> None:
    write(store, *one_task(1, result="'ok'", runtime=1.75))
    with store.read() as connection:
        row = connection.execute(select(schema.task)).one()
    assert (row.key, row.sort_time, row.received, row.started, row.ended) == (
        to_key(make_id(1)),
        NOW,
        NOW,
        NOW + 0.5,
        NOW + 2.5,
    )
    assert (row.runtime, row.args, row.result, row.root, row.earlier_runs) == (1.75, "(1,)", "'ok'", b"", 0)
    assert STATES[row.state].word == "succeeded"


def test_counters_agree_with_the_tasks(store: Store) -> None:
    events = [each for number in range(20) for each in one_task(number, "failed" if number % 4 == 0 else "succeeded")]
    write(store, *events)
    assert counts(store) == {"failed": 5, "succeeded": 15}
    with store.read() as connection:
        statement = select(schema.rollup).where(schema.rollup.c.resolution == 3600)
        (hour,) = connection.execute(statement).all()
        failures = connection.execute(select(schema.failure_group.c["count"])).scalar_one()
    assert (hour.received, hour.started, hour.succeeded, hour.failed) == (20, 20, 15, 5)
    assert failures == 5
    wait, run = Sketch.from_bytes(hour.wait), Sketch.from_bytes(hour.run)
    assert (wait.count, run.count) == (20, 20)
    assert wait.quantiles((0.5,)) == pytest.approx([0.5], rel=0.02)
    assert run.quantiles((0.5,)) == pytest.approx([2.0], rel=0.02)


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_is_fed_twice_changes_nothing(store: Store, name: str) -> None:
    write(store, *STREAMS[name])
    before = contents(store)
    write(store, *STREAMS[name])
    assert contents(store) == before
    for event in reversed(STREAMS[name]):
        write(store, event)
    assert contents(store) == before


@pytest.mark.parametrize("name", REPLACED)
def test_messages_of_one_id_are_stored_whatever_the_order_and_the_batches(store: Store, name: str) -> None:
    for event in reversed(REPLACED[name]):
        write(store, event)
    stored, expected = read_task(store, make_id(0), "shop"), folded(*REPLACED[name])
    set_ready_times(expected, Senders(), {})
    assert stored.runs == expected.runs
    shown = ("state", "name", "args", "queue", "client", "sent", "root_id", "parent_id", "runtime_estimated")
    assert [getattr(stored, each) for each in shown] == [getattr(expected, each) for each in shown]
    before = contents(store)
    write(store, *REPLACED[name])
    assert contents(store) == before


def test_each_run_counts_under_the_name_that_it_ran(store: Store) -> None:
    write(store, *REPLACED["replaced"])
    with store.read() as connection:
        table, term = schema.rollup, schema.term
        statement = select(term.c.text, table.c.started, table.c.failed).join_from(
            table, term, table.c.name_id == term.c.id
        )
        rows = connection.execute(statement.where(table.c.resolution == 60)).all()
        groups = connection.execute(select(schema.failure_group.c.name, schema.failure_group.c["count"])).all()
    assert sorted(tuple(row) for row in rows) == [("shop.fail", 1, 1), ("shop.start", 1, 0)]
    assert [tuple(row) for row in groups] == [("shop.fail", 1)]


def test_retry_that_waits_is_stored_behind_the_run_that_asked_for_it(store: Store) -> None:
    retry = REPLACED["replaced by a task that is retried"]
    events = [each for each in retry if each.timestamp < NOW + 0.5 and each.type != "task-failed"]
    events.append(make_event("task-retried", timestamp=NOW + 0.55, exception="E()"))
    write(store, *events)
    stored = read_task(store, make_id(0), "shop")
    assert (stored.state, stored.exception, stored.started) == (TaskState.RETRY, "E()", NOW + 0.4)
    expected = folded(*events)
    set_ready_times(expected, Senders(), {})
    assert stored.runs == expected.runs
    assert [run.waiting for run in stored.runs] == [False, False, True]


@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_where_batches_are_cut_makes_no_difference(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    ends = data.draw(st.lists(st.sampled_from(["failed", "retried"]), min_size=3, max_size=3))
    events = [each for number, end in enumerate(ends) for each in one_task(number, end)]
    events = list(data.draw(st.permutations(events)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(events) - 1))))
    whole, parts = (open_store(f"sqlite:///{tmp_path_factory.mktemp('cut')}/{name}.db") for name in ("whole", "parts"))
    write(whole, *events)
    writer = Writer(parts, "shop", SETTINGS)
    for start, end in pairwise([0, *cuts, len(events)]):
        writer.write(deliver(*events[start:end]))
    assert counts(whole) == counts(parts)
    assert rolled_up(whole) == rolled_up(parts)
    for each in (whole, parts):
        each.close()


def test_a_rollback_leaves_the_writer_fit_to_write_again(store: Store) -> None:
    writer = Writer(store, "shop", SETTINGS)
    writer.write(deliver(*one_task(1, "failed", exception="ValueError('x')")))
    with store.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE task RENAME TO hidden")
    with pytest.raises(StoreUnavailable):
        writer.write(deliver(*one_task(2, "failed", exception="KeyError('y')")))
    with store.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE hidden RENAME TO task")
    writer.write(deliver(*one_task(2, "failed", exception="KeyError('y')")))
    assert counts(store) == {"failed": 2}


def test_runs_before_the_latest_are_kept_apart(store: Store) -> None:
    for event in STREAMS["retried twice"]:
        write(store, event)
    with store.read() as connection:
        earlier = connection.execute(select(schema.run.c.ordinal, schema.run.c.retries, schema.run.c.ended)).all()
        assert [tuple(row) for row in earlier] == [(0, 0, NOW + 2), (1, 1, NOW + 5)]
        assert connection.execute(select(schema.task.c.retries, schema.task.c.earlier_runs)).all() == [(2, 2)]


def test_a_nameless_task_moves_to_its_name_when_it_comes(store: Store) -> None:
    revoked = make_event("task-revoked", timestamp=NOW + 5, uuid=make_id(1), expired=True)
    write(store, revoked)
    write(store, one_task(1)[0])
    with store.read() as connection:
        table, term = schema.task_count, schema.term
        statement = select(term.c.text, table.c["count"]).join_from(table, term, table.c.name_id == term.c.id)
        rows = connection.execute(statement.where(table.c["count"] != 0)).all()
    assert [tuple(row) for row in rows] == [("shop.pay", 1)]


def test_the_queue_is_known_from_a_worker_that_has_only_one(store: Store) -> None:
    write(store, make_event("worker-online", freq=2.0))
    write(store, *one_task(1))

    def one_queue(worker: Worker) -> Worker:
        worker.queues = ("payments",)
        return worker

    change_workers(store, "shop", ["worker1@shop"], one_queue)
    write(store, *one_task(2))
    with store.read() as connection:
        statement = select(schema.term.c.text).where(schema.term.c.id == schema.task.c.queue_id)
        assert connection.execute(statement).scalars().all() == ["payments"]


def test_workers_come_from_their_events(store: Store) -> None:
    writer = Writer(store, "shop", SETTINGS)
    heartbeat = {"freq": 2.0, "active": 3, "processed": 40, "loadavg": (0.5, 0.25, 0.125), "sw_ver": "5.7.0"}
    writer.write(deliver(make_event("worker-heartbeat", **heartbeat), arrived=NOW + 7))
    with store.read() as connection:
        worker = load_workers(connection, 1, ["worker1@shop"])["worker1@shop"]
    assert (worker.status, worker.pid, worker.active, worker.skew) == (WorkerStatus.ONLINE, 4711, 3, 7.0)
    assert (worker.last_heartbeat, worker.first_seen, worker.sw_ver) == (NOW + 7, NOW + 7, "5.7.0")
    writer.write(deliver(make_event("worker-offline", timestamp=NOW + 1), arrived=NOW + 8))
    with store.read() as connection:
        worker = load_workers(connection, 1, ["worker1@shop"])["worker1@shop"]
    assert (worker.status, worker.active) == (WorkerStatus.OFFLINE, 0)


def test_odd_data_is_stored_and_capped(store: Store) -> None:
    odd = "<b>\x1b[31m\u202e\U0001f4a5\0\ud800" + "x" * 4000
    write(store, *one_task(1, "failed", exception=odd, traceback=odd))
    with store.read() as connection:
        exception, traceback = connection.execute(select(schema.task.c.exception, schema.task.c.traceback)).one()
    assert exception.startswith("<b>\x1b[31m\u202e\U0001f4a5\ufffd\ufffdxxx")
    assert exception.endswith("…")
    assert (len(exception), len(traceback)) == (300, 300)


def test_secrets_are_masked_before_they_are_stored(store: Store) -> None:
    received = make_event("task-received", uuid=make_id(1), kwargs="{'password': 'hunter2', 'n': 1}", retries=0)
    write(store, received)
    with store.read() as connection:
        (kwargs,) = connection.execute(select(schema.task.c.kwargs)).scalars()
    assert "hunter2" not in kwargs
    assert "'n': 1" in kwargs


def numbers(value: object) -> Sequence[Event]:
    return [make_event("task-received", uuid=make_id(1), retries=value, pid=value, name="n")]


@pytest.mark.parametrize("value", [2**63, -1, 2**31])
def test_numbers_that_no_column_holds_are_unknown(store: Store, value: int) -> None:
    write(store, *numbers(value))
    with store.read() as connection:
        assert connection.execute(select(schema.task.c.retries, schema.task.c.pid)).all() == [(None, None)]


@pytest.mark.parametrize(
    "event",
    [
        make_event("task-received", timestamp=float("nan")),
        make_event("task-x", uuid=None),
        make_event("worker-online", timestamp=1e300),
    ],
)
def test_events_without_time_or_id_are_counted_as_malformed(store: Store, event: Event) -> None:
    written = Writer(store, "shop", SETTINGS).write(deliver(event))
    assert (written.refused, written.events, counts(store)) == (1, 0, {})


def test_unknown_event_types_are_counted(store: Store) -> None:
    written = Writer(store, "shop", SETTINGS).write(deliver(make_event("task-progress"), make_event("worker-elect")))
    assert written.unknown == 2


def test_the_receivers_health_is_stored_with_the_batch_that_it_counts(store: Store) -> None:
    health = ReceiverHealth(cluster="shop", connected=True, events_total=3, updated_at=NOW)
    bad = (make_event("task-progress"), make_event("task-received", timestamp=float("nan")))
    written = Writer(store, "shop", SETTINGS).write(deliver(*one_task(1), *bad), health)
    counted = msgspec.structs.replace(health, unknown_total=1, malformed_total=1, malformed_at=NOW)
    with store.read() as connection:
        stored = unpack_health(connection.execute(select(schema.receiver.c.record)).scalar_one())
    assert (stored, written.health) == (counted, counted)


def test_two_clusters_share_a_database_and_no_numbers(store: Store) -> None:
    writers = [Writer(store, name, SETTINGS) for name in ("shop", "mail")]
    for number in range(3):
        for writer in writers:
            writer.write(deliver(*one_task(number)))
    with store.read() as connection:
        assert connection.execute(select(func.count(), func.count(schema.task.c.id.distinct()))).one() == (6, 6)


def writers_of(store: Store, *numbers: int) -> list[Writer]:
    """Of the clusters that have these numbers among many."""
    with store.begin() as connection:
        for each in range(1, max(numbers) + 1):
            assert cluster_id(store, connection, f"shop{each}") == each
    return [Writer(store, f"shop{each}", SETTINGS) for each in numbers]


def test_many_clusters_in_one_database_never_take_each_others_numbers(store: Store) -> None:
    clusters = (1, 2, 63, 64, 65, 128, 129, 193)
    for _ in range(2):  # the second time all of them begin anew
        writers = writers_of(store, *clusters)
        for number in range(3):
            for writer in writers:
                writer.write(deliver(*one_task(number)))
    with store.read() as connection:
        rows = connection.execute(select(schema.task.c.cluster_id, schema.task.c.id)).all()
    assert Counter(row.cluster_id for row in rows) == dict.fromkeys(clusters, 3)
    assert len({row.id for row in rows}) == 3 * len(clusters)
    assert counts(store) == {"succeeded": 3 * len(clusters)}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_record_in_which_clusters_shared_numbers_goes_on(store: Store) -> None:
    before, other = writers_of(store, 65, 1)
    before.write(deliver(*one_task(1)[:2], *one_task(2)))
    number = schema.task.c.id
    with store.begin() as connection:  # as they were given once
        connection.execute(update(schema.task).values(id=number - (1 << CLUSTER_SHIFT)))
    (after,) = writers_of(store, 65)
    for each in range(1, 6):
        after.write(deliver(*one_task(each)))
        other.write(deliver(*one_task(each + 10)))
    with store.read() as connection:
        found = connection.execute(select(schema.task.c.cluster_id, number).order_by(number)).all()
    assert Counter(row.cluster_id for row in found) == {65: 5, 1: 5}
    assert [row.id for row in found if row.cluster_id == 65][:2] == [1 << 6 | 1, 2 << 6 | 1]
    assert counts(store) == {"succeeded": 10}


def test_a_task_believed_to_be_new_that_is_stored_already_is_not_doubled(store: Store) -> None:
    write(store, *one_task(91)[:2])
    other = Writer(store, "shop", SETTINGS)
    written = other.write(deliver(*one_task(91), *one_task(92)))
    assert written.tasks >= 1
    with store.read() as connection:
        states = connection.execute(select(schema.task.c.state)).scalars().all()
        counted = connection.execute(select(func.sum(schema.task_count.c["count"]))).scalar()
        received = connection.execute(
            select(func.sum(schema.rollup.c.received)).where(schema.rollup.c.resolution == 60)
        ).scalar()
    assert len(states) == counted == received == 2


def test_a_task_that_was_deleted_meanwhile_is_stored_anew(store: Store) -> None:
    writer = Writer(store, "shop", SETTINGS)
    writer.write(deliver(*one_task(93)[:2]))
    with store.begin() as connection:
        connection.execute(schema.task.delete())
    writer.forget()
    writer.write(deliver(*one_task(93)[2:]))
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.task)).scalar() == 1
