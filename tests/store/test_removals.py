"""Tasks whose messages were removed here, on both databases: noted by one process, concluded by the receiver's."""

from celery_monitor.records.receiver import Delivery
from celery_monitor.records.task import TaskState
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.tasks.messages import note_removals, read_message
from celery_monitor.store.writer import UNSEEN_SECONDS, Writer
from tests.factories import NOW, make_event, make_id, make_message

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
    note_removals(store, "shop", [gone], TEXT, NOW + 5, {gone: make_message(gone, why="removed")})
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
    note_removals(store, "shop", [late, never], TEXT, NOW + 5, {})
    assert writer.conclude_removals(NOW + 6) == 0
    send(writer, late)
    assert writer.conclude_removals(NOW + 7) == 1
    assert states(store, late) == [TaskState.REVOKED]
    assert writer.conclude_removals(NOW + 6 + UNSEEN_SECONDS) == 0
    send(writer, never)
    assert writer.conclude_removals(NOW + 8 + UNSEEN_SECONDS) == 0  # forgotten: the search finds it
    assert states(store, never) == [TaskState.PENDING]
