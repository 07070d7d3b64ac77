"""How long the oldest message of a queue has waited: from what is at its head and what the record has of it.

Celery's messages do not say when they were sent, and task-sent events do. So the age is exact

- where the broker shows which message is delivered next (Redis), and the record has when that one was sent;
- where it does not (RabbitMQ), all tasks of the queue were told of when they were sent, and the record has as many of
  them in the queue as the broker has messages there: then the one that was sent first is the oldest.

Else it is a lower bound: the message was at the head when it was first seen there; or the record has more tasks in the
queue than there are messages, of which some may be gone, and those that were sent first at worst. Without even that it
is unknown.
"""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from celery_monitor.core.waits import Senders, moved
from celery_monitor.records.queue import Queue
from celery_monitor.store.engine import Store
from celery_monitor.store.tasks.unfinished import (
    SendTime,
    WaitingTasks,
    queues_without_sent_events,
    sent_messages,
    waiting_tasks,
)

LOOK_SECONDS = 15.0
TOLD_SECONDS = 900.0  # in which no worker may have received a task of which nobody told that it was sent


class OldestMessages:
    """Of the queues of one cluster, from sample to sample. ``senders``: the clients' clock offsets."""

    def __init__(self, store: Store, cluster: str, senders: Senders | None = None) -> None:
        self._store = store
        self._cluster = cluster
        self._senders = senders or Senders()
        self._untold: set[str | None] = set()
        self._untold_at = 0.0

    def of(self, queues: Sequence[Queue], skews: Mapping[str, float], now: float) -> list[Queue]:
        """The queues with the age of their oldest message. ``skews``: our clock minus each worker's."""
        shown = {each for queue in queues for each in queue.next_tasks if each is not None}
        sent = sent_messages(self._store, self._cluster, shown) if shown else {}
        hidden = any(queue.ready and not queue.next_tasks for queue in queues)
        waiting = self._waiting(now) if hidden else {}
        found = []
        for queue in queues:
            if not queue.ready:
                found.append(queue)
            elif queue.next_tasks:
                times = [None if each is None else self._ours(sent.get(each), skews) for each in queue.next_tasks]
                found.append(_at_least(queue, times, now, exact=None not in times))
            else:
                found.append(self._by_record(queue, waiting.get(queue.name), skews, now))
        return found

    def _waiting(self, now: float) -> dict[str, WaitingTasks]:
        """Waiting tasks by queue, of the queues whose received tasks all had a task-sent event."""
        if not self._untold_at <= now < self._untold_at + LOOK_SECONDS:
            self._untold = queues_without_sent_events(self._store, self._cluster, now - TOLD_SECONDS)
            self._untold_at = now
        if None in self._untold:
            return {}
        found = waiting_tasks(self._store, self._cluster)
        return {name: tasks for name, tasks in found.items() if name not in self._untold}

    def _by_record(self, queue: Queue, tasks: WaitingTasks | None, skews: Mapping[str, float], now: float) -> Queue:
        gone = -1 if tasks is None else tasks.number - (queue.ready or 0)
        if tasks is None or not 0 <= gone < len(tasks.sent):
            return queue
        return _at_least(queue, [self._ours(tasks.sent[gone], skews)], now, exact=gone == 0)

    def _ours(self, sent: SendTime | None, skews: Mapping[str, float]) -> float | None:
        if sent is None:
            return None
        skew = skews.get(sent.worker) if sent.worker is not None else self._senders.skew(sent.client)
        return moved(sent.at, skew, 0.0)


def _at_least(queue: Queue, times: Sequence[float | None], now: float, *, exact: bool) -> Queue:
    """Seen at the head before it was sent, or sent in the future: then a clock is off, and what was seen counts."""
    known = [each for each in times if each is not None]
    seen = queue.oldest
    if not known or min(known) > (now if seen is None else seen):
        return queue
    return replace(queue, oldest=min(known), oldest_exact=exact)
