"""When a run could have started, which is when its wait begins. No I/O, no clock.

The time of receipt is too late for that: in a long or paused queue, a message waits before any worker receives it.
So a run is ready

====================================  ==============================================================================
run                                   ready
====================================  ==============================================================================
the first of a message                when the message was sent, or at its ETA where that is later
a retry                               at its ETA; without one, when the retry was sent, or when the run before ended
the message was redelivered           unknown: the broker does not report when it requeued the message
the time of sending is unknown        unknown: an ETA may be in the past when the task is sent
====================================  ==============================================================================

If that is unknown, or later than the receipt, the wait is counted from receipt, which ``Run.wait_since`` shows. A run
that was received before its ETA waits from the ETA on.

``sent`` is stamped by the clock of the client, all other times by clocks of workers. Clock offsets above CLOCKS_AGREE
are corrected; smaller ones cannot be told from delays. The times that are shown stay as they were stamped.
"""

from collections.abc import Mapping

import msgspec

from celery_monitor.records.task import Outcome, Run, Task

CLOCKS_AGREE = 1.0  # seconds
STAMPED_AFTER = 0.05  # seconds by which a worker may start a task before the client stamps it as sent
WINDOW = 60.0  # seconds in which at least one event arrives without delay
MOST_CLIENTS = 10_000
_DELIVERED_AGAIN = frozenset({None, Outcome.REQUEUED, Outcome.CANCELLED, Outcome.LOST})  # the message still exists


class _Offset(msgspec.Struct):
    """The smallest delay between stamp and arrival, in the current window and in the one before."""

    began: float
    low: float
    before: float | None = None

    @property
    def skew(self) -> float | None:
        """Our clock minus the host's; ``None``: unknown.

        Events that arrive before their time show a clock that is ahead. Late ones may just be delayed, as after a
        downtime of ours, so a clock that is behind is only believed after a whole window.
        """
        if self.before is None:
            return self.low if self.low < 0 else None
        return min(self.low, self.before)


class Senders:
    """The clocks of the hosts that send tasks, by the delay of their events."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Offset] = {}
        self._clients: dict[str, _Offset] = {}  # the same by process name
        self._off: set[str] = set()
        self.agree = True  # no clock is off

    def observe(self, client: str, stamp: float, arrived: float) -> None:
        """Adds the delay of an event of a client (``gen4711@host``)."""
        offset = self._clients.get(client)
        if offset is None or arrived - stamp < offset.low or arrived - offset.began > WINDOW:
            self._update(client, arrived - stamp, arrived)

    def skew(self, client: str | None) -> float | None:
        """Our clock minus the client's; ``None``: unknown."""
        offset = self._hosts.get(_host(client)) if client else None
        return None if offset is None else offset.skew

    def own_clock_set(self, seconds: float) -> None:
        """Shifts all offsets after our own clock was set forward by these seconds."""
        for offset in self._hosts.values():
            offset.began += seconds
            offset.low += seconds
            offset.before = None if offset.before is None else offset.before + seconds

    def _update(self, client: str, delay: float, arrived: float) -> None:
        if len(self._clients) >= MOST_CLIENTS:
            self._clients.clear()
            self._hosts.clear()
            self._off.clear()
        host = _host(client)
        offset = self._clients[client] = self._hosts.setdefault(host, _Offset(arrived, delay))
        if arrived - offset.began > WINDOW:
            offset.began, offset.before, offset.low = arrived, offset.low, delay
        elif delay < offset.low:
            offset.low = delay
        if abs(offset.skew or 0.0) > CLOCKS_AGREE / 2:
            self._off.add(host)
        else:
            self._off.discard(host)
        self.agree = not self._off


def _host(client: str) -> str:
    return client.rpartition("@")[2]


def set_ready_times(task: Task, senders: Senders, skews: Mapping[str, float]) -> None:
    """Sets when each run was ready. ``skews``: our clock minus that of each worker.

    The earliest of several results counts, so the order of events does not matter.
    """
    runs = task.runs
    if len(runs) == 1 and not runs[0].retries and _is_plain(task, runs[0], senders, skews):
        return
    previous = None
    for run in runs:
        if run.waiting:
            continue
        ready = _ready(task, run, previous, senders, skews)
        if ready is not None and (run.ready is None or ready < run.ready):
            run.ready = ready
        previous = run


def _is_plain(task: Task, run: Run, senders: Senders, skews: Mapping[str, float]) -> bool:
    """Most tasks: the time of sending is unknown, or all clocks agree and there is no ETA."""
    sent = task.sent
    if sent is None or run.ready == sent:
        return True
    plain = run.received is not None and sent <= run.received and run.eta is None and senders.agree
    if not plain or abs(skews.get(run.worker or "", 0.0)) > CLOCKS_AGREE / 2:
        return False
    if run.ready is None or sent < run.ready:
        run.ready = sent
    return True


def _ready(task: Task, run: Run, previous: Run | None, senders: Senders, skews: Mapping[str, float]) -> float | None:
    """By the clock of the run's worker; ``None``: unknown, or not before its receipt."""
    arrived = run.received if run.received is not None else run.started
    if arrived is None or (run.eta is not None and run.eta > arrived):
        return None
    skew = skews.get(run.worker or "")
    sent = None
    message = run.invocation or task
    if message.sent is not None:
        sent = _sent(moved(message.sent, senders.skew(message.client), skew), run, previous, arrived)
    if not run.retries:
        moment = None if sent is None else max(sent, run.eta or 0.0)
    elif previous is not None and (previous.retries or 0) >= run.retries:
        moment = sent  # redelivered, unless it was sent again
    else:
        retried = sent if sent is not None and previous is not None else _retried_at(previous, skews, skew)
        moment = retried if run.eta is None else max(run.eta, retried or 0.0)
    return moment if moment is not None and moment <= arrived else None


def _sent(sent: float, run: Run, previous: Run | None, arrived: float) -> float | None:
    """When the message of this run was sent, if ``sent`` is about this message.

    The client stamps the time after sending, so a worker may have received the message before.
    """
    latest = arrived + CLOCKS_AGREE
    if run.started is not None:
        latest = min(latest, run.started + STAMPED_AFTER)
    if sent > latest:
        return None
    if previous is not None and previous.invocation == run.invocation:  # probably one message for both
        begun = previous.started if previous.started is not None else previous.received
        if previous.outcome in _DELIVERED_AGAIN or begun is None or sent <= begun:
            return None
    return min(sent, arrived)


def _retried_at(previous: Run | None, skews: Mapping[str, float], skew: float | None) -> float | None:
    """When the previous run requested the retry."""
    if previous is None or previous.outcome is not Outcome.RETRIED or previous.ended is None:
        return None
    return moved(previous.ended, skews.get(previous.worker or ""), skew)


def moved(at: float, theirs: float | None, ours: float | None) -> float:
    """A time of one clock converted to another, if their difference is known and large enough."""
    if theirs is None or ours is None or abs(theirs - ours) <= CLOCKS_AGREE:
        return at
    return at + theirs - ours
