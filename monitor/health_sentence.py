"""The one sentence of health, composed from facts; no I/O, no clock.

What is not known is said to be unknown: no broker means that we do not know, never that all is well.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple
from urllib.parse import quote

from monitor.records import Count
from monitor.stalls import LongTask
from monitor.stalls import SlowWorkflow
from monitor.stalls import StalledWorker
from monitor.words import age_words
from monitor.words import counted
from monitor.words import number_words

Tone = Literal["plain", "good", "warning", "bad"]

BARELY_SECONDS = 10.0  # an entry of the schedule may come that late from a beat that is only slow
NAMED_ENTRIES = 2  # more overdue entries than this are counted instead of named
NAMED_WORKERS = 2  # more that are gone are not named
NAMED_QUEUES = 2  # more growing queues than this are counted instead of named


class Part(NamedTuple):
    """A piece of the sentence, and where it leads: a path below the prefix and its query; ``None``: nowhere."""

    text: str
    path: str | None = None
    query: Mapping[str, str] = {}
    tone: Tone = "plain"


class GrowingQueue(NamedTuple):
    """A queue that fills faster than it is emptied. ``oldest_age`` in seconds, ``None``: not known."""

    name: str
    waiting: int
    oldest_age: float | None = None
    oldest_exact: bool = True  # False: it is at least that old


class PausedQueue(NamedTuple):
    """A queue from which nobody consumes because somebody paused it; ``waiting`` is ``None`` where it is unknown."""

    name: str
    by: str
    seconds: float
    waiting: int | None = None


class LostTasks(NamedTuple):
    """Tasks that were lost lately and not retried, and how long ago the newest was; ``query`` lists them."""

    tasks: Count
    seconds: float | None
    query: str


class TopFailure(NamedTuple):
    """The most common failure of the window."""

    exception_type: str
    name: str | None
    times: int
    group: int | None = None


class Disconnected(NamedTuple):
    """A receiver that does not hear its broker. ``since`` in seconds, ``None``: it never did."""

    cluster: str
    for_seconds: float | None = None
    unwritten: bool = False  # it may hear its broker; the record does not say so


class Overdue(NamedTuple):
    """An entry of the schedule that was due ``seconds`` ago and has not been seen."""

    name: str
    seconds: float
    may_wait_in: str | None = None  # it may have been sent, and wait in this queue


class StuckWorkflow(NamedTuple):
    """A workflow of which nothing was heard for ``seconds``, though some of its tasks have not ended."""

    root_id: str
    waits_for: str | None
    seconds: float


class SilentWorker(NamedTuple):
    """A worker of which nothing was heard for ``seconds``; ``None`` where it never sent a heartbeat."""

    hostname: str
    seconds: float | None


class NewFailure(NamedTuple):
    """A kind of failure that was first seen, or came back, in the window."""

    group: int
    exception_type: str
    name: str | None
    again: bool = False


class Facts(NamedTuple):
    """What the sentence is made from. ``None`` is unknown; failures and gaps are of 15 min."""

    workers_up: int = 0
    workers_silent: int = 0
    workers_offline: int = 0
    seen_tasks: bool = False
    receivers: int = 0
    disconnected: Sequence[Disconnected] = ()
    growing: Sequence[GrowingQueue] = ()
    unattended: Sequence[GrowingQueue] = ()  # without those that are paused
    paused: Sequence[PausedQueue] = ()  # the one that was paused last first
    long_tasks: Sequence[LongTask] = ()  # of workers that are not stalled as a whole; the longest first
    lost: LostTasks | None = None
    failures: int | None = None
    failures_muted: int = 0  # of ``failures``
    failures_resolved: int = 0
    top_failure: TopFailure | None = None
    missed_seconds: float = 0.0
    lag_seconds: float | None = None
    many_clusters: bool = False
    overdue: Sequence[Overdue] = ()  # the longest first
    beat_stopped: bool = False  # all that it sends is overdue, or nobody holds its lock
    gone: Sequence[str] = ()  # workers that were up in the last hour and are silent or offline
    silent: Sequence[SilentWorker] = ()
    busy: Sequence[SilentWorker] = ()  # silent too, and of a pool that is so while it runs a task
    doubled: Sequence[str] = ()  # "two processes call themselves dup@shop"
    stalled: Sequence[StalledWorker] = ()  # the longest first
    slow: Sequence[SlowWorkflow] = ()  # not among the stuck ones; those of which more is known first
    stuck: Sequence[StuckWorkflow] = ()  # the longest first
    stuck_at_least: int | None = None  # as many, and there may be more
    new_failures: Sequence[NewFailure] = ()  # the newest first

    @property
    def workers_known(self) -> int:
        return self.workers_up + self.workers_silent + self.workers_offline


def sentence(facts: Facts) -> tuple[Part, ...]:
    """The parts in the order in which they matter, or what to do when nothing was seen yet."""
    if facts.receivers == 0:
        return (Part("No receiver has run on this record yet, so nothing is known.", tone="warning"),)
    parts = [
        *_receiver(facts),
        *_workers(facts),
        *_lost(facts),
        *_queues(facts),
        *_schedule(facts),
        *_workflows(facts),
        *_failures(facts),
        *_new_failures(facts),
        *_missed(facts),
    ]
    if _all_well(facts):
        parts.append(Part("Nothing is failing and no queue is growing.", tone="good"))
    return tuple(parts)


def _all_well(facts: Facts) -> bool:
    up = facts.workers_up > 0 and not facts.disconnected
    kinds = (facts.doubled, facts.growing, facts.unattended, facts.overdue, facts.stuck, facts.stalled, facts.silent)
    waiting = any(each.waiting for each in facts.paused)
    bad = (
        facts.beat_stopped
        or waiting
        or facts.lost is not None
        or any(kinds)
        or any(each.usual is not None for each in facts.slow)
    )
    return up and facts.failures == 0 and not bad and facts.missed_seconds == 0


def _receiver(facts: Facts) -> list[Part]:
    parts = []
    for each in facts.disconnected:
        named = f" of {each.cluster}" if facts.many_clusters else ""
        since = f" since {age_words(each.for_seconds)}" if each.for_seconds is not None else ""
        told = f"The record{named} is not written" if each.unwritten else f"The broker{named} cannot be reached"
        parts.append(Part(f"{told}{since}, so what follows is old.", tone="bad"))
    if facts.lag_seconds is not None and facts.lag_seconds > 2 and not facts.disconnected:
        parts.append(Part(f"The receiver is {age_words(facts.lag_seconds)} behind.", tone="warning"))
    return parts


def _workers(facts: Facts) -> list[Part]:
    if facts.workers_known == 0:
        told = "Tasks were seen, but no worker." if facts.seen_tasks else "No worker has been seen yet."
        return [Part(told, "/workers", tone="warning")]
    if facts.workers_up == 0 and facts.workers_silent == 0:
        return [Part(f"No worker is up; {number_words(facts.workers_offline)} known.", "/workers", tone="bad")]
    parts = [Part(_workers_up(facts), "/workers", tone="plain" if facts.workers_offline == 0 else "warning")]
    return [*parts, *_doubled(facts), *_silent(facts), *_stalled(facts), *_long_tasks(facts)]


def _doubled(facts: Facts) -> list[Part]:
    named = [Part(f"{words[0].upper()}{words[1:]}.", "/workers", tone="warning") for words in facts.doubled]
    if len(named) <= NAMED_WORKERS:
        return named
    return [Part(f"{number_words(len(named))} node names have several processes.", "/workers", tone="warning")]


def _silent(facts: Facts) -> list[Part]:
    parts = [
        Part(
            f"{_is_silent(each)}, as a solo pool is while it runs a task.",
            _worker(each.hostname),
        )
        for each in facts.busy[:NAMED_WORKERS]
    ]
    others = facts.workers_silent - len(facts.busy)
    if 0 < len(facts.silent) <= NAMED_WORKERS:
        for each in facts.silent:
            told = f"{_is_silent(each)}, perhaps only busy."
            parts.append(Part(told, _worker(each.hostname), tone="warning"))
    elif others > 0:
        silent = counted(others, "worker is", "workers are")
        parts.append(Part(f"{silent} silent, perhaps only busy.", "/workers", tone="warning"))
    return parts


def _is_silent(worker: SilentWorker) -> str:
    if worker.seconds is None:
        return f"{worker.hostname} is silent"
    return f"{worker.hostname} has been silent for {age_words(worker.seconds)}"


def _stalled(facts: Facts) -> list[Part]:
    if len(facts.stalled) > NAMED_WORKERS:
        longest = age_words(facts.stalled[0].seconds)
        told = f"{number_words(len(facts.stalled))} workers may be stuck, one for {longest}."
        return [Part(told, "/workers", tone="bad")]
    return [Part(stalled_words(each), _worker(each.hostname), tone="bad") for each in facts.stalled]


def _long_tasks(facts: Facts) -> list[Part]:
    if len(facts.long_tasks) > NAMED_WORKERS:
        longest = facts.long_tasks[0]
        text = f"{number_words(len(facts.long_tasks))} tasks run unusually long, {longest.name} on {longest.hostname}"
        query = {"q": "state:started", "sort": "started"}
        return [Part(f"{text} for {age_words(longest.seconds)}.", "/tasks", query, "warning")]
    return [
        Part(
            f"{each.hostname} has been in {each.name} for {age_words(each.seconds)}{_usually(each.usual)}.",
            f"/tasks/{quote(each.id, safe='')}" if each.id is not None else _worker(each.hostname),
            tone="warning",
        )
        for each in facts.long_tasks
    ]


def _lost(facts: Facts) -> list[Part]:
    if facts.lost is None or not facts.lost.tasks.value:
        return []
    count, many = facts.lost.tasks, "" if facts.lost.tasks.exact else "+"
    tasks = "1 task is" if count.value == 1 and count.exact else f"{number_words(count.value)}{many} tasks are"
    newest = "" if facts.lost.seconds is None else f", newest {age_words(facts.lost.seconds)} ago"
    return [Part(f"{tasks} lost{newest}.", "/tasks", {"q": facts.lost.query}, "bad")]


def stalled_words(stalled: StalledWorker) -> str:
    """Why a worker may be stuck."""
    seconds = age_words(stalled.seconds)
    if not stalled.started:
        waits = counted(stalled.tasks, "task it has taken waits", "tasks it has taken wait")
        waits = f"at least {waits}" if stalled.at_least else waits
        return f"{stalled.hostname} may be stuck: {waits}, one for {seconds}, and none is started."
    all_run = "its only task has run" if stalled.tasks == 1 else f"all {number_words(stalled.tasks)} tasks it runs have"
    ran = f"{all_run} for {seconds}" if stalled.tasks == 1 else f"{all_run} run unusually long, one for {seconds}"
    return f"{stalled.hostname} may be stuck: {ran}{_usually(stalled.usual)}."


def _usually(p99: float | None) -> str:
    return "" if p99 is None else f"; usually {_short(p99)} at most"


def _short(seconds: float) -> str:
    if seconds < 1:
        return f"{max(0.1, seconds):.1f} s"
    return f"{seconds:.1f} s" if seconds < 10 else age_words(seconds)


def _workers_up(facts: Facts) -> str:
    if facts.workers_up == facts.workers_known:
        return f"{counted(facts.workers_up, 'worker')} up."
    busy = f" and {number_words(len(facts.busy))} probably busy" if facts.busy else ""
    without = f", without {' and '.join(facts.gone)}" if 0 < len(facts.gone) <= NAMED_WORKERS else ""
    return f"{number_words(facts.workers_up)} of {counted(facts.workers_known, 'worker')} up{busy}{without}."


def _queues(facts: Facts) -> list[Part]:
    parts = _paused(facts)
    parts += [
        Part(
            f"{each.name} has {counted(each.waiting, 'message')} and no consumer{_oldest(each)}.",
            _queue(each),
            tone="bad",
        )
        for each in facts.unattended[:NAMED_QUEUES]
    ]
    known = {each.name for each in facts.unattended} | {each.name for each in facts.paused}
    growing = [each for each in facts.growing if each.name not in known]
    if len(growing) > NAMED_QUEUES:
        return [*parts, Part(f"{number_words(len(growing))} queues are growing.", "/queues", tone="warning")]
    for each in growing:
        text = f"{each.name} is growing: {number_words(each.waiting)} waiting{_oldest(each)}."
        parts.append(Part(text, _queue(each), tone="warning"))
    return parts


def _paused(facts: Facts) -> list[Part]:
    if len(facts.paused) > NAMED_QUEUES:
        last = facts.paused[0]
        text = f"{number_words(len(facts.paused))} queues are paused, {last.name} by {last.by}"
        return [Part(f"{text} {age_words(last.seconds)} ago.", "/queues", tone="warning")]
    return [
        Part(
            f"{each.name} was paused by {each.by} {age_words(each.seconds)} ago"
            f"{'' if each.waiting is None else f', {number_words(each.waiting)} waiting'}.",
            f"/queues/{quote(each.name, safe='')}",
            tone="warning",
        )
        for each in facts.paused
    ]


def _schedule(facts: Facts) -> list[Part]:
    perhaps = [each for each in facts.overdue if each.may_wait_in is not None]
    return [*_unsent([each for each in facts.overdue if each.may_wait_in is None], facts), *_perhaps_waiting(perhaps)]


def _unsent(overdue: Sequence[Overdue], facts: Facts) -> list[Part]:
    entries = counted(len(overdue), "entry of the schedule is", "entries of the schedule are")
    if facts.beat_stopped:
        told = f": {entries} overdue" if overdue else ""
        return [Part(f"Beat seems to have stopped{told}.", "/schedule", tone="bad")]
    if len(overdue) > NAMED_ENTRIES:
        return [Part(f"{entries} overdue.", "/schedule", tone="bad")]
    return [_overdue(each) for each in overdue]


def _perhaps_waiting(entries: Sequence[Overdue]) -> list[Part]:
    """Nobody is accused: a queue is so full that they may be in it."""
    if len(entries) > NAMED_ENTRIES:
        told = f"{number_words(len(entries))} entries of the schedule were due and may wait in queues."
        return [Part(told, "/schedule", tone="warning")]
    return [
        Part(
            f"{each.name} was due {age_words(each.seconds)} ago and may wait in {each.may_wait_in}.",
            "/schedule",
            tone="warning",
        )
        for each in entries
    ]


def _overdue(entry: Overdue) -> Part:
    if entry.seconds < BARELY_SECONDS:
        told = f"{entry.name} was due {age_words(entry.seconds)} ago and has not been seen."
        return Part(told, "/schedule", tone="warning")
    return Part(f"{entry.name} should have been sent {age_words(entry.seconds)} ago.", "/schedule", tone="bad")


def _workflows(facts: Facts) -> list[Part]:
    if not facts.stuck:
        return _slow(facts)
    longest, more = facts.stuck[0], len(facts.stuck) - 1
    waits = f", waiting for {longest.waits_for}" if longest.waits_for else ""
    if more:
        sign = "+" if more + 1 == facts.stuck_at_least else ""
        text = f"{more + 1}{sign} workflows stand still, one for {age_words(longest.seconds)}"
        return [Part(f"{text}{waits}.", "/workflows", tone="warning")]
    path = f"/workflows/{quote(longest.root_id, safe='')}"
    told = f"A workflow has stood still for {age_words(longest.seconds)}{waits}."
    return [Part(told, path, tone="warning"), *_slow(facts)]


def _slow(facts: Facts) -> list[Part]:
    """Of a workflow that waits for a name of which nothing is known, no more is said than that it waits."""
    if not facts.slow:
        return []
    first = facts.slow[0]
    alike = sum((each.usual is None) == (first.usual is None) for each in facts.slow)
    path = f"/workflows/{quote(first.root_id, safe='')}" if alike == 1 else "/workflows"
    name, seconds = first.name or "a task without a name", age_words(first.seconds)
    if first.usual is None:
        subject = "A workflow waits" if alike == 1 else f"{number_words(alike)} workflows wait, one"
        return [Part(f"{subject} for {name} since {seconds}; how long that usually runs is not known yet.", path)]
    subject = "A workflow" if alike == 1 else f"{number_words(alike)} workflows"
    where = f" on {first.worker}" if first.worker else ""
    told = f"{subject} may be stuck: {name} has run for {seconds}{where}{_usually(first.usual)}."
    return [Part(told, path, tone="warning")]


def _new_failures(facts: Facts) -> list[Part]:
    if not facts.new_failures:
        return []
    newest, more = facts.new_failures[0], len(facts.new_failures) - 1
    where = f" in {newest.name}" if newest.name else ""
    text = f"{'Back again' if newest.again else 'New'}: {newest.exception_type}{where}"
    path = f"/failures/{newest.group}"
    if not more:
        return [Part(f"{text}.", path, tone="bad")]
    others = f"and {counted(more, 'other kind', 'other kinds')} of failure."
    return [Part(f"{text},", path, tone="bad"), Part(others, "/failures", tone="bad")]


def _oldest(queue: GrowingQueue) -> str:
    if queue.oldest_age is None:
        return ""
    return f", oldest {'' if queue.oldest_exact else 'at least '}{age_words(queue.oldest_age)}"


def _worker(hostname: str) -> str:
    return f"/workers/{quote(hostname, safe='')}"


def _queue(queue: GrowingQueue) -> str:
    return f"/queues/{quote(queue.name, safe='')}"


def _failures(facts: Facts) -> list[Part]:
    if not facts.failures:
        return []
    failed = {"q": "state:failed finished:>-15m"}
    top = facts.top_failure
    text = f"{counted(facts.failures, 'failure')} in 15 min{settled_words(facts)}"
    if top is None:
        settled = facts.failures_muted + facts.failures_resolved >= facts.failures
        return [Part(f"{text}.", "/tasks", failed, "plain" if settled else "bad")]
    where = f" in {top.name}" if top.name else ""
    share = "all" if top.times >= facts.failures else f"{number_words(top.times)} of them"
    path, query = (f"/failures/{top.group}", {}) if top.group is not None else ("/tasks", failed)
    if facts.failures == 1 and not facts.failures_resolved + facts.failures_muted:
        return [Part(f"{text}: {top.exception_type}{where}.", path, query, "bad")]
    words = f"{share} {top.exception_type}{where}."
    return [Part(f"{text},", "/tasks", failed, "bad"), Part(words, path, query, "bad")]


def settled_words(facts: Facts) -> str:
    """How many of the failures need nobody any more: the list of open groups is without them."""
    return settled(facts.failures or 0, facts.failures_muted, facts.failures_resolved)


def settled(failures: int, muted: int, resolved: int) -> str:
    """``, 80 of them muted``, ``, all muted``, ``, 80 of them muted and 3 resolved``; nothing where all are open."""
    parts = [(muted, "muted"), (resolved, "resolved")]
    named = [
        word if number == failures else f"{number_words(number)} {'of them ' if at == 0 else ''}{word}"
        for at, (number, word) in enumerate(each for each in parts if each[0])
    ]
    if not named:
        return ""
    return f", {'all ' if max(muted, resolved) == failures else ''}{' and '.join(named)}"


def _missed(facts: Facts) -> list[Part]:
    if facts.missed_seconds <= 0:
        return []
    missed = age_words(max(1.0, facts.missed_seconds))
    return [Part(f"Events of {missed} may be missing from these numbers.", "/", {"range": "1h"}, "warning")]
