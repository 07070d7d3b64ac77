"""Captured messages in both databases, once each, bounded and expiring; removals, recorded and concluded."""

import msgspec
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import func, select

from celery_monitor.records.event import Event, Message
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.task import TaskState
from celery_monitor.settings import Settings
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.retention.expiry import DAY_SECONDS, Retention
from celery_monitor.store.tasks.detail import read_message, read_messages, read_task, record_removals
from celery_monitor.store.tasks.page import count_states
from celery_monitor.store.workers import read_workers
from celery_monitor.store.writer import LATE_SENT_SECONDS, Writer
from tests.factories import NOW, make_event, make_id, make_message
from tests.store.test_writer import deliver, one_task

SETTINGS = Settings(max_message_bytes=500, keep_message_days=2.0, keep_failed_days=10.0)
ID = make_id(1)


def captured(number: int = 1, at: float = 0.0, **fields: object) -> Event:
    task_id = make_id(number)
    message = make_message(task_id, **fields)  # type: ignore[arg-type]
    return make_event("capture-message", uuid=task_id, timestamp=NOW + at, name="shop.pay", message=message)


def write(store: Store, *events: Event, settings: Settings = SETTINGS) -> None:
    Writer(store, "shop", settings).write(deliver(*events))


def kept(store: Store, number: int = 1) -> Message | None:
    return read_messages(store, "shop", [make_id(number)]).get(make_id(number))


def rows(store: Store) -> int:
    with store.read() as connection:
        return int(connection.execute(select(func.count()).select_from(schema.message)).scalar_one())


def test_a_message_comes_back_as_it_was_and_twice_is_once(store: Store) -> None:
    event = captured(headers={"stamps": {"nul": "\0", "half": "\ud800"}}, body=b"\x80\x00\xff")
    for _ in range(2):
        write(store, *one_task(1, "failed"), event)
    assert kept(store) == event.message
    assert rows(store) == 1


def test_an_older_message_does_not_replace_a_newer(store: Store) -> None:
    write(store, captured(at=5, why="revoked"))
    write(store, captured(at=3, why="failed"))
    found = kept(store)
    assert found is not None
    assert found.why == "revoked"


def test_a_message_before_its_task_tells_it_where_it_was(store: Store) -> None:
    writer = Writer(store, "shop", SETTINGS)
    writer.write(deliver(captured()))
    assert sum(count_states(store).values()) == 0
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(schema.task)).scalar() == 0
    writer.write(deliver(*one_task(1, "failed")))
    task = read_task(store, ID)
    assert (task.queue, task.exchange, task.routing_key) == ("payments", "", "payments")


def test_a_message_after_its_task_fills_in_its_queue_and_the_counts_follow(store: Store) -> None:
    write(store, *one_task(1, "failed"))
    assert read_task(store, ID).queue is None
    write(store, captured())
    assert read_task(store, ID).queue == "payments"
    with store.read() as connection:
        table = schema.task_count
        counted = connection.execute(select(table.c.queue_id).where(table.c["count"] == 1)).scalars().all()
    assert [queue > 0 for queue in counted] == [True]


def test_a_message_says_nothing_of_its_worker(store: Store) -> None:
    # It is sent by the process of the pool that ran the task, under the worker's name.
    writer = Writer(store, "shop", SETTINGS)
    writer.write(deliver(make_event("worker-heartbeat", freq=2.0)))
    writer.forget()
    writer.write(deliver(msgspec.structs.replace(captured(at=1), pid=9000)))
    assert [worker.pid for worker in read_workers(store)] == [4711]


def test_what_is_too_large_is_kept_without_its_body(store: Store) -> None:
    write(store, captured(body=b"x" * 501))
    found = kept(store)
    assert found is not None
    assert (found.body, found.size) == (None, 501)


def test_switched_off_nothing_is_kept_and_what_was_there_goes(store: Store) -> None:
    off = Settings(capture=False)
    write(store, *one_task(1, "failed"), captured())
    write(store, *one_task(2, "failed"), captured(2), settings=off)
    assert (kept(store, 1) is None, kept(store, 2) is None) == (False, True)
    assert read_task(store, make_id(2)).queue == "payments"
    Retention(store, "shop", off).delete_expired(NOW)
    assert rows(store) == 0


def test_messages_expire_before_their_tasks(store: Store) -> None:
    write(store, *one_task(1, "failed"), captured())
    retention = Retention(store, "shop", SETTINGS)
    retention.delete_expired(NOW + 1.9 * DAY_SECONDS)
    assert rows(store) == 1
    retention.delete_expired(NOW + 2.1 * DAY_SECONDS)
    assert rows(store) == 0
    assert read_task(store, ID).queue == "payments"


def test_a_message_goes_with_its_task(store: Store) -> None:
    keep_long = Settings(keep_message_days=100.0, keep_failed_days=10.0)
    write(store, *one_task(1, "failed"), captured(), *one_task(2, "failed", at=5 * DAY_SECONDS))
    write(store, captured(2, at=5 * DAY_SECONDS))
    assert len(Retention(store, "shop", keep_long).delete_expired(NOW + 11 * DAY_SECONDS).keys) == 1
    assert (kept(store, 1) is None, kept(store, 2) is None) == (True, False)


def test_too_many_bytes_lose_the_oldest(store: Store) -> None:
    write(store, *(captured(number, at=number, body=b"x" * 400) for number in (3, 1, 2)))
    with store.read() as connection:
        size = connection.execute(select(schema.message.c.size)).scalars().first()
    assert size is not None
    Retention(store, "shop", Settings(keep_message_bytes=2 * size + 7)).delete_expired(NOW)
    assert [kept(store, number) is None for number in (1, 2, 3)] == [True, False, False]


def test_another_clusters_messages_are_left_alone(store: Store) -> None:
    write(store, captured())
    Retention(store, "mail", Settings(capture=False)).delete_expired(NOW)
    assert rows(store) == 1
    assert read_messages(store, "mail", [ID]) == {}


def test_the_migrations_make_what_the_schema_says(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        found = [str(each) for each in compare_metadata(context, schema.metadata)]
    # The partition of what is kept is no table of the schema; on PostgreSQL each partition has its own index of keys.
    apart = ("alembic_version",) if store.is_sqlite else ("alembic_version", "_kept", "Index('task_key'")
    assert [each for each in found if not any(name in each for name in apart)] == []


TEXT = "queue payments purged by ada"


def send(writer: Writer, *ids: str) -> None:
    events = [make_event("task-sent", uuid=each, hostname="web@shop", queue="payments") for each in ids]
    writer.write([Delivery(events=events, arrived=NOW)])


def states(store: Store, *ids: str) -> list[TaskState]:
    return [read_task(store, each, "shop").state for each in ids]


def test_noted_task_is_revoked_once_and_its_message_is_kept(store: Store) -> None:
    writer = Writer(store, "shop", Settings())
    gone, waits = make_id(), make_id()
    send(writer, gone, waits)
    record_removals(store, "shop", [gone], TEXT, NOW + 5, {gone: make_message(gone, why="removed")})
    assert writer.conclude_removals(NOW + 6) == 1
    task = read_task(store, gone, "shop")
    assert (task.state, task.exception, task.finished) == (TaskState.REVOKED, TEXT, NOW + 5)
    assert states(store, waits) == [TaskState.PENDING]
    message = read_message(store, task)
    assert message is not None
    assert message.why == "removed"
    assert writer.conclude_removals(NOW + 7) == 0


def test_task_that_is_not_in_the_record_yet_is_concluded_when_it_comes(store: Store) -> None:
    writer = Writer(store, "shop", Settings())
    late, never = make_id(), make_id()
    record_removals(store, "shop", [late, never], TEXT, NOW + 5, {})
    assert writer.conclude_removals(NOW + 6) == 0
    send(writer, late)
    assert writer.conclude_removals(NOW + 7) == 1
    assert states(store, late) == [TaskState.REVOKED]
    assert writer.conclude_removals(NOW + 6 + LATE_SENT_SECONDS) == 0
    send(writer, never)
    assert writer.conclude_removals(NOW + 8 + LATE_SENT_SECONDS) == 0  # forgotten: the search finds it
    assert states(store, never) == [TaskState.PENDING]
