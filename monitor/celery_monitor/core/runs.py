"""Runs from facts: which received, started and ended belong together. No I/O, no clock.

Only times stamped by one worker can be compared. So facts are paired for each worker in the order of its clock, and
the runs of all workers are then sorted by their number of retries, and by time where that does not decide.
"""

from collections.abc import Iterable
from itertools import pairwise
from math import inf
from typing import Literal, NamedTuple

from celery_monitor.core.invocations import (
    DIRECTLY,
    SentMessage,
    assign_concluded,
    begin,
    inherit,
    is_same,
    pair,
    replaced_by,
    unsent,
)
from celery_monitor.records.task import Invocation, Outcome, Run

_TERMINAL = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.REVOKED, Outcome.REJECTED})
_RAN = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.RETRIED})
_INTERRUPTED = frozenset({Outcome.REVOKED, Outcome.CANCELLED, Outcome.LOST})  # their run time is an estimate
# A hard time limit is reported when it is reached and again when the process is gone; an end from the result backend
# is reported again by its event.
DUPLICATE_SECONDS = 5.0
UNSEEN_START_SECONDS = 0.5  # by which a reported start is preferred to one that was not reported
_RANK = {"received": 0, "started": 1, "ended": 2}


class Fact(NamedTuple):
    """One event of a run, as its worker reported it."""

    time: float
    kind: Literal["received", "started", "ended"]
    worker: str | None
    pid: int | None
    retries: int | None = None
    eta: float | None = None
    outcome: Outcome | None = None
    runtime: float | None = None
    result: str | None = None
    exception: str | None = None
    traceback: str | None = None
    ready: float | None = None
    replacing: int = 0
    invocation: Invocation | None = None  # the message, on the first fact of its run


def facts_of(runs: Iterable[Run]) -> list[Fact]:
    """The facts that runs were built from. REPLACED is a conclusion, not a fact.

    Neither is the message of a run without a receipt, as it was inherited or paired, unless its worker was asked.
    """
    facts = []
    runs = list(runs)
    for place, run in enumerate(runs):
        known = None if run.invocation is None else unsent(run.invocation)
        if run.worker is None and run.ended is not None and run.invocation is not None:
            known = run.invocation if run.invocation.sent is not None else None
        elif run.received is None and (
            known is not run.invocation or any(each.invocation == known for each in runs[:place] + runs[place + 1 :])
        ):
            known = None
        if run.received is not None:
            receipt = Fact(run.received, "received", run.worker, run.pid, retries=run.retries, eta=run.eta)
            receipt = receipt._replace(ready=run.ready, replacing=run.replacing, invocation=known)
            facts.append(receipt)
            known = None
        if run.started is not None:
            facts.append(Fact(run.started, "started", run.worker, run.pid, invocation=known))
            known = None
        if run.ended is not None and run.outcome is not Outcome.REPLACED:
            facts.append(_end_of(run, run.ended)._replace(invocation=known))
    return facts


def sent_of(runs: Iterable[Run]) -> list[SentMessage]:
    """The messages of these runs that have a task-sent event."""
    return [
        SentMessage(run.invocation, run.retries, run.eta, run.replacing)
        for run in runs
        if run.invocation is not None and run.invocation.sent is not None
    ]


def measured(run: Run) -> float | None:
    """Run time in seconds by the worker's clock, for an end without a run time."""
    if run.started is None or run.ended is None or (run.outcome not in _RAN and run.outcome not in _INTERRUPTED):
        return None
    return max(0.0, run.ended - run.started)


def _end_of(run: Run, ended: float) -> Fact:
    return Fact(
        ended,
        "ended",
        run.worker,
        run.pid,
        outcome=run.outcome,
        runtime=None if run.runtime == measured(run) else run.runtime,
        result=run.result,
        exception=run.exception,
        traceback=run.traceback,
    )


def arrange(facts: Iterable[Fact], sent: Iterable[SentMessage] = ()) -> list[Run]:
    """The runs of these facts, the latest last. The order of the facts does not matter.

    Messages that were sent but not received are runs that wait. Every run has its own message.
    """
    by_worker: dict[str | None, list[Fact]] = {}
    for fact in facts:
        by_worker.setdefault(fact.worker, []).append(fact)
    runs: list[Run] = []
    for each in by_worker.values():
        runs += _runs_on_one_worker(each)
    for run in runs:
        if run.runtime is None:
            run.runtime = measured(run)
    left = assign_concluded(runs, sent)
    runs = [run for run in runs if run.worker or run.outcome is not Outcome.LOST or run.invocation]
    waiting = pair(runs, left)
    runs = _with_waiting(_in_order(runs), waiting) if waiting else _in_order(runs)
    inherit(runs)
    _end_replaced(runs)
    return runs


def _runs_on_one_worker(facts: list[Fact]) -> list[Run]:
    runs: list[Run] = []
    seen: set[tuple[float, str, Outcome | None]] = set()
    # A conclusion about a worker (lost) counts only if the worker reported nothing.
    for fact in sorted(facts, key=lambda fact: (fact.outcome is Outcome.LOST, fact.time, _RANK[fact.kind])):
        what = (fact.time, fact.kind, fact.outcome)
        if what not in seen:
            seen.add(what)
            _PLACES[fact.kind](runs, fact)
    return runs


def _receive(runs: list[Run], fact: Fact) -> None:
    run = Run(fact.worker, fact.pid, fact.retries, received=fact.time, eta=fact.eta, ready=fact.ready)
    run.replacing, run.invocation = fact.replacing, fact.invocation
    runs.append(run)


def _start(runs: list[Run], fact: Fact) -> None:
    for run in runs:  # the first one that waits
        if run.started is None and run.ended is None and _may_be_one(run, fact):
            run.started = fact.time
            return
    runs.append(Run(fact.worker, fact.pid, started=fact.time, invocation=fact.invocation))


def _may_be_one(run: Run, fact: Fact) -> bool:
    """Whether a run and a start may be of one message: a worker's answer contains the task name."""
    one, other = run.invocation, fact.invocation
    if one is None or other is None or None in {one.name, other.name} or one.name == other.name:
        return True
    return one.args is not None and (one.args, one.kwargs) == (other.args, other.kwargs)  # one of them is a shadow


def _end(runs: list[Run], fact: Fact) -> None:
    if fact.outcome is Outcome.LOST and fact.worker is None:
        run = Run(None, None, invocation=fact.invocation)
        _finish(run, fact)
        runs.append(run)
        return
    if fact.outcome is Outcome.LOST:
        for run in runs:
            if run.ended is None and (fact.pid is None or run.pid == fact.pid):
                _finish(run, fact)
        return
    if _is_hollow(fact) and any(_was_killed_before(run, fact) for run in runs):
        return
    if fact.outcome is Outcome.REVOKED and runs and _was_killed_by(fact, runs[-1]):
        _finish(runs[-1], fact)
        return
    running = [run for run in runs if run.ended is None]
    if running:
        _finish(_ending(running, fact), fact)
    elif not (runs and _is_duplicate(runs[-1], fact)):
        run = Run(fact.worker, fact.pid, invocation=fact.invocation)
        _finish(run, fact)
        runs.append(run)


def _ending(running: list[Run], fact: Fact) -> Run:
    """Which of several runs ended. A retry is received before the run that requested it has ended.

    A message that is redelivered while it runs makes two runs of one process; the run time shows which of them ended.
    A run that replaced itself has no end event.
    """
    if len(running) == 1:
        return running[0]
    replaced = [run for place, run in enumerate(running) if any(_follows(run, each) for each in running[place + 1 :])]
    last = [run for run in running if run not in replaced]
    if fact.outcome is Outcome.RETRIED:
        return last[0]
    if fact.runtime is not None:
        start = fact.time - fact.runtime
        distances = [_distance(run, start) + (UNSEEN_START_SECONDS if run in replaced else 0.0) for run in running]
        if min(distances) < DUPLICATE_SECONDS:
            return [run for run, each in zip(running, distances, strict=True) if each == min(distances)][-1]
    return max(last, key=lambda run: (_number_among(run, last), run.started is not None, begin(run)))


def _number_among(run: Run, others: list[Run]) -> int:
    """Its number of retries; without a receipt, at least that of the earlier runs."""
    if run.retries is not None:
        return run.retries
    return max((_number(each.retries) for each in others if begin(each) < begin(run)), default=-1)


def _follows(run: Run, after: Run) -> bool:
    """Whether a run ended by sending the next message, which shows that it ran, unless both are of one message."""
    return replaced_by(run, after) and (run.started is not None or not is_same(run, after))


def _distance(run: Run, start: float) -> float:
    """Seconds between the start of a run and the start of the one that ended."""
    if run.started is not None:
        return abs(run.started - start)
    return UNSEEN_START_SECONDS if run.received is not None and run.received <= start + UNSEEN_START_SECONDS else inf


def _is_duplicate(run: Run, fact: Fact) -> bool:
    """Whether an end is a duplicate for a run that has ended; a failure replaces the rejection that came with it."""
    if run.outcome is Outcome.REJECTED and fact.outcome is Outcome.FAILED:
        _finish(run, fact)
        return True
    again = run.outcome is fact.outcome and fact.outcome in {Outcome.FAILED, Outcome.SUCCEEDED}
    if again and fact.time - (run.ended or 0.0) < DUPLICATE_SECONDS:
        run.runtime = fact.runtime if run.runtime is None else run.runtime
        run.result = run.result or fact.result
        run.exception = run.exception or fact.exception
        run.traceback = run.traceback or fact.traceback
        return True
    return fact.outcome is Outcome.REJECTED


def _is_hollow(fact: Fact | Run) -> bool:
    """Whether it is the success that a killed greenlet reports: without run time and result."""
    return fact.outcome is Outcome.SUCCEEDED and fact.runtime is None and fact.result is None


def _was_killed_before(run: Run, fact: Fact) -> bool:
    ended = run.ended if run.outcome is Outcome.REVOKED else None
    return ended is not None and 0.0 <= fact.time - ended < DUPLICATE_SECONDS


def _was_killed_by(fact: Fact, run: Run) -> bool:
    """Whether the revocation tells how this run ended: eventlet's worker waits for the greenlet before it reports."""
    return _is_hollow(run) and fact.time - (run.ended or 0.0) < DUPLICATE_SECONDS


def _finish(run: Run, fact: Fact) -> None:
    run.ended = fact.time
    run.outcome = fact.outcome
    run.runtime = fact.runtime
    run.result = fact.result
    run.exception = fact.exception
    run.traceback = fact.traceback


def _number(retries: int | None) -> int:
    return -1 if retries is None else retries


_PLACES = {"received": _receive, "started": _start, "ended": _end}


def _in_order(runs: list[Run]) -> list[Run]:
    """A first attempt starts a cycle; a redelivery, a replacement, or the same id sent again, starts another one.

    Its retries follow by number, whatever the clocks of other workers show; the run that ended the cycle is its last.
    The cycle with the latest event is the last. A replacement is never the first.
    """
    runs.sort(key=begin)
    firsts = [run for run in runs if not run.retries]
    if len(firsts) <= 1:
        return sorted(runs, key=_place_in_cycle)
    cycles: list[list[Run]] = [[first] for first in firsts]
    for run in runs:
        if run.retries:
            cycles[_cycle_of(run, firsts)].append(run)
    cycles.sort(key=lambda cycle: max(_last(run, runs) for run in cycle))
    if cycles[0][0].replacing:
        # A run without a receipt may be any run of its worker.
        certain = [cycle for cycle in cycles if cycle[0].received is not None or cycle[0].worker != cycles[0][0].worker]
        original = next((cycle for cycle in certain if not cycle[0].replacing), cycles[0])
        cycles.remove(original)
        cycles.insert(0, original)
    return [run for cycle in cycles for run in sorted(cycle, key=_place_in_cycle)]


def _cycle_of(run: Run, firsts: list[Run]) -> int:
    """The index of the first attempt of a retry: the last one before it, with its name if there is one."""
    same = [number for number, first in enumerate(firsts) if _name(first) == _name(run)] or list(range(len(firsts)))
    before = [number for number in same if begin(firsts[number]) <= begin(run)]
    return before[-1] if before else same[0]


def _with_waiting(runs: list[Run], waiting: list[Run]) -> list[Run]:
    """Inserts messages that no worker has received after those sent before them. The replaced one is the first."""
    for message in waiting:
        place = len(runs)
        while place and not _precedes(runs[place - 1], message):
            place -= 1
        original = runs and runs[0].replacing and not message.replacing and not message.retries
        runs.insert(0 if original else place, message)
    return runs


def _precedes(run: Run, message: Run) -> bool:
    """Whether a run is of an earlier message than one that waits. Clocks of two senders are compared last."""
    sent = begin(message)
    attempt, attempts = _number(message.retries), _number(run.retries)
    of_one_call = not message.replacing and _name(run) == _name(message) and attempt != attempts
    if of_one_call and (message.retries or run.outcome not in _TERMINAL):
        return attempts < attempt
    if run.invocation is not None and run.invocation.sent is not None:
        return run.invocation.sent <= sent
    may_be_same = run.invocation is None or (bool(run.retries) and _name(run) == _name(message))
    return (bool(message.replacing) and not may_be_same) or begin(run) <= sent


def _end_replaced(runs: list[Run]) -> None:
    """Ends runs that, by their next message, ended by sending it."""
    for run, after in pairwise(runs):
        if run.ended is None and not run.waiting and _follows(run, after):
            at = _replaced_at(run, after)
            began = begin(run) if run.started is None else run.started
            run.outcome = Outcome.REPLACED
            run.ended = began if at is None else max(at, began)
            # The pool process may stamp that it sent the message before the worker stamps that the task started.
            known = at is not None and after.replacing == DIRECTLY and at > began - DUPLICATE_SECONDS
            run.runtime = run.ended - run.started if known and run.started is not None else None


def _replaced_at(run: Run, after: Run) -> float | None:
    """By the clock of its own worker, if that stamped an event of the next message."""
    if after.replacing == DIRECTLY and after.invocation is not None and after.invocation.sent is not None:
        return after.invocation.sent
    return begin(after) if run.worker == after.worker else None


def _place_in_cycle(run: Run) -> tuple[bool, int, float]:
    return (run.outcome in _TERMINAL, _number(run.retries), begin(run))


def _last(run: Run, runs: list[Run]) -> float:
    """The time of the run's last event; while it runs, not before the last event of older runs on its worker."""
    if run.ended is not None and run.outcome is not Outcome.LOST and (run.worker or run.invocation is None):
        return run.ended
    if run.started is None:
        return begin(run)
    if run.ended is not None:
        return run.started
    older = [each.ended for each in runs if each.worker == run.worker and begin(each) < begin(run) and each.ended]
    return max(run.started, *older) if older else run.started


def _name(run: Run) -> str | None:
    return run.invocation.name if run.invocation is not None else None
