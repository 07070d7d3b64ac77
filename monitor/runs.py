"""Runs out of facts: which of the received, started and ended belong together. No I/O, no clock.

Only times stamped by one worker can be compared. So facts are paired worker by worker in the order of its
clock, and the runs of all workers are then put in order by their number of retries, and by time where that
does not decide.
"""

from collections.abc import Iterable
from typing import Literal
from typing import NamedTuple

from monitor.records import Outcome
from monitor.records import Run

_TERMINAL = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.REVOKED, Outcome.REJECTED})
_RAN = frozenset({Outcome.SUCCEEDED, Outcome.FAILED, Outcome.RETRIED})
# A hard time limit fails once when it strikes, and once when the process is gone; the result backend tells what an
# event tells a moment later.
SAID_TWICE_SECONDS = 5.0
_RANK = {"received": 0, "started": 1, "ended": 2}


class Fact(NamedTuple):
    """One thing that a worker said of a task."""

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


def facts_of(runs: Iterable[Run]) -> list[Fact]:
    """The facts that runs were made of."""
    facts = []
    for run in runs:
        if run.received is not None:
            receipt = Fact(run.received, "received", run.worker, run.pid, retries=run.retries, eta=run.eta)
            facts.append(receipt if run.ready is None else receipt._replace(ready=run.ready))
        if run.started is not None:
            facts.append(Fact(run.started, "started", run.worker, run.pid))
        if run.ended is not None:
            facts.append(_end_of(run, run.ended))
    return facts


def measured(run: Run) -> float | None:
    """Seconds by the worker's own clock, for a run whose end did not say how long it took."""
    if run.started is None or run.ended is None or run.outcome not in _RAN:
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


def arrange(facts: Iterable[Fact]) -> list[Run]:
    """The runs that these facts tell of, the latest last. The order of the facts does not matter."""
    by_worker: dict[str | None, list[Fact]] = {}
    for fact in facts:
        by_worker.setdefault(fact.worker, []).append(fact)
    runs: list[Run] = []
    for each in by_worker.values():
        runs += _runs_on_one_worker(each)
    for run in runs:
        if run.runtime is None:
            run.runtime = measured(run)
    return _in_order(runs)


def _runs_on_one_worker(facts: list[Fact]) -> list[Run]:
    runs: list[Run] = []
    seen: set[tuple[float, str, Outcome | None]] = set()
    # What was concluded about a worker (lost) counts only where the worker itself said nothing.
    for fact in sorted(facts, key=lambda fact: (fact.outcome is Outcome.LOST, fact.time, _RANK[fact.kind])):
        what = (fact.time, fact.kind, fact.outcome)
        if what not in seen:
            seen.add(what)
            _PLACES[fact.kind](runs, fact)
    return runs


def _receive(runs: list[Run], fact: Fact) -> None:
    runs.append(Run(fact.worker, fact.pid, fact.retries, received=fact.time, eta=fact.eta, ready=fact.ready))


def _start(runs: list[Run], fact: Fact) -> None:
    for run in runs:  # the earliest that waits
        if run.started is None and run.ended is None:
            run.started = fact.time
            return
    runs.append(Run(fact.worker, fact.pid, started=fact.time))


def _end(runs: list[Run], fact: Fact) -> None:
    if fact.outcome is Outcome.LOST:
        for run in runs:
            if run.ended is None and (fact.pid is None or run.pid == fact.pid):
                _finish(run, fact)
        return
    running = [run for run in runs if run.ended is None]
    if running:
        _finish(_ending(running, fact), fact)
    elif not (runs and _said_before(runs[-1], fact)):
        run = Run(fact.worker, fact.pid)
        _finish(run, fact)
        runs.append(run)


def _ending(running: list[Run], fact: Fact) -> Run:
    """Which of several runs ends. A retry is received before the run that asked for it has ended."""
    if fact.outcome is Outcome.RETRIED:
        return running[0]
    return max(running, key=lambda run: (_number(run.retries), run.started is not None, _begin(run)))


def _said_before(run: Run, fact: Fact) -> bool:
    """An end that adds nothing to a run that has ended; a failure replaces the rejection that came with it."""
    if run.outcome is Outcome.REJECTED and fact.outcome is Outcome.FAILED:
        _finish(run, fact)
        return True
    again = run.outcome is fact.outcome and fact.outcome in {Outcome.FAILED, Outcome.SUCCEEDED}
    if again and fact.time - (run.ended or 0.0) < SAID_TWICE_SECONDS:
        run.runtime = fact.runtime if run.runtime is None else run.runtime
        run.result = run.result or fact.result
        run.exception = run.exception or fact.exception
        run.traceback = run.traceback or fact.traceback
        return True
    return fact.outcome is Outcome.REJECTED


def _finish(run: Run, fact: Fact) -> None:
    run.ended = fact.time
    run.outcome = fact.outcome
    run.runtime = fact.runtime
    run.result = fact.result
    run.exception = fact.exception
    run.traceback = fact.traceback


_PLACES = {"received": _receive, "started": _start, "ended": _end}


def _in_order(runs: list[Run]) -> list[Run]:
    """A first attempt begins a cycle; a redelivery, or the same id sent again, begins another one.

    Its retries follow by number, whatever other workers' clocks say; what ended the cycle is its last run.
    The cycle of which something was heard last is the last.
    """
    runs.sort(key=_begin)
    firsts = [run for run in runs if not run.retries]
    if len(firsts) <= 1:
        return sorted(runs, key=_place_in_cycle)
    cycles: list[list[Run]] = [[first] for first in firsts]
    for run in runs:
        if run.retries:
            before = [number for number, first in enumerate(firsts) if _begin(first) <= _begin(run)]
            cycles[before[-1] if before else 0].append(run)
    cycles.sort(key=lambda cycle: max(map(_last, cycle)))
    return [run for cycle in cycles for run in sorted(cycle, key=_place_in_cycle)]


def _place_in_cycle(run: Run) -> tuple[bool, int, float]:
    return (run.outcome in _TERMINAL, _number(run.retries), _begin(run))


def _begin(run: Run) -> float:
    return min(time for time in (run.received, run.started, run.ended) if time is not None)


def _last(run: Run) -> float:
    """When its worker last said something of the run."""
    if run.ended is not None and run.outcome is not Outcome.LOST:
        return run.ended
    return run.started if run.started is not None else _begin(run)


def _number(retries: int | None) -> int:
    return -1 if retries is None else retries
