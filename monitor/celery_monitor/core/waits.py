"""When a run could have started: from then on it waits. No I/O, no clock.

A worker tells when it received a message, which is late: behind a long queue, or with a paused one, a message waits
before any worker sees it. So a run is ready

====================================  ==============================================================================
run                                   ready
====================================  ==============================================================================
the first of a message                when the message was sent, or at its ETA where that is later
a retry                               at its ETA; without one, when the retry was sent, or when the run before ended
the message was delivered once more   not known: the broker does not tell when it put the message back
nothing tells when it was sent        not known: an ETA may lie in the past when the task is sent
====================================  ==============================================================================

Where that is not known, or comes out later than the receipt, the wait is counted from receipt, and says so
(``Run.wait_since``); a run that its worker received before its ETA waits from the ETA on.

``sent`` is stamped by the clock of the client, all else by clocks of workers. The offset of both clocks is taken
into account where they differ by more than CLOCKS_AGREE; less is left as it is, since delays look the same. The times
that are shown stay as they were stamped.
"""

from collections.abc import Mapping

import msgspec

from celery_monitor.records.task import Outcome, Run, Task

CLOCKS_AGREE = 1.0  # seconds
STAMPED_AFTER = 0.05  # seconds by which a worker may begin a task before the client has stamped it as sent
WINDOW = 60.0  # seconds of arrivals in which one event at least comes without delay
MOST_CLIENTS = 10_000
_DELIVERED_AGAIN = frozenset({None, Outcome.REQUEUED, Outcome.CANCELLED, Outcome.LOST})  # the message goes on to live


class _Offset(msgspec.Struct):
    """The smallest delay between stamp and arrival, in the window that began then and in the one before."""

    began: float
    low: float
    before: float | None = None

    @property
    def skew(self) -> float | None:
        """Our clock minus the host's; ``None``: not known.

        Events that come before their time come from a clock that is ahead. Those that come late may only have been
        on the way for long, as after we were away: that is believed when it has lasted for a window.
        """
        if self.before is None:
            return self.low if self.low < 0 else None
        return min(self.low, self.before)


class Senders:
    """The clocks of the hosts that send tasks, by how long their events are on the way."""

    def __init__(self) -> None:
        self._hosts: dict[str, _Offset] = {}
        self._clients: dict[str, _Offset] = {}  # the same, by the names of their processes
        self._off: set[str] = set()
        self.agree = True  # no clock is known to be off

    def hear(self, client: str, stamp: float, arrived: float) -> None:
        """An event of a client (``gen4711@host``) has arrived."""
        known = self._clients.get(client)
        if known is None or arrived - stamp < known.low or arrived - known.began > WINDOW:
            self._learn(client, arrived - stamp, arrived)

    def skew(self, client: str | None) -> float | None:
        """Our clock minus the client's; ``None``: not known."""
        known = self._hosts.get(_host(client)) if client else None
        return None if known is None else known.skew

    def own_clock_set(self, seconds: float) -> None:
        """Moves the offsets of other clocks, after our own clock was set forward by so many seconds."""
        for known in self._hosts.values():
            known.began += seconds
            known.low += seconds
            known.before = None if known.before is None else known.before + seconds

    def _learn(self, client: str, seen: float, arrived: float) -> None:
        if len(self._clients) >= MOST_CLIENTS:
            self._clients.clear()
            self._hosts.clear()
            self._off.clear()
        host = _host(client)
        known = self._clients[client] = self._hosts.setdefault(host, _Offset(arrived, seen))
        if arrived - known.began > WINDOW:
            known.began, known.before, known.low = arrived, known.low, seen
        elif seen < known.low:
            known.low = seen
        if abs(known.skew or 0.0) > CLOCKS_AGREE / 2:
            self._off.add(host)
        else:
            self._off.discard(host)
        self.agree = not self._off


def _host(client: str) -> str:
    return client.rpartition("@")[2]


def settle(task: Task, senders: Senders, skews: Mapping[str, float]) -> None:
    """Finds out when each run was ready. ``skews``: our clock minus that of each worker.

    What was found out earlier is kept: of several answers the earliest counts, so their order does not matter.
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
    """Most tasks: nobody tells when they are sent, or all clocks agree and no ETA is given."""
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
    """In the clock of the run's worker; ``None``: not known, or not before its receipt."""
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
        moment = sent  # delivered once more, unless somebody has sent it anew
    else:
        asked = sent if sent is not None and previous is not None else _asked_for(previous, skews, skew)
        moment = asked if run.eta is None else max(run.eta, asked or 0.0)
    return moment if moment is not None and moment <= arrived else None


def _sent(sent: float, run: Run, previous: Run | None, arrived: float) -> float | None:
    """When the message of this run was sent, if it is the one that was sent then.

    The client stamps it behind the sending, so a worker may have received it by then.
    """
    latest = arrived + CLOCKS_AGREE
    if run.started is not None:
        latest = min(latest, run.started + STAMPED_AFTER)
    if sent > latest:
        return None
    if previous is not None and previous.invocation == run.invocation:  # one message for both, as far as is known
        begun = previous.started if previous.started is not None else previous.received
        if previous.outcome in _DELIVERED_AGAIN or begun is None or sent <= begun:
            return None
    return min(sent, arrived)


def _asked_for(previous: Run | None, skews: Mapping[str, float], skew: float | None) -> float | None:
    """When the run before asked for the retry."""
    if previous is None or previous.outcome is not Outcome.RETRIED or previous.ended is None:
        return None
    return moved(previous.ended, skews.get(previous.worker or ""), skew)


def moved(at: float, theirs: float | None, ours: float | None) -> float:
    """A time of one clock by another, where both are known to disagree."""
    if theirs is None or ours is None or abs(theirs - ours) <= CLOCKS_AGREE:
        return at
    return at + theirs - ours
