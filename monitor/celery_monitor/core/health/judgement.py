"""The health of a cluster: every fact is judged here, once. No I/O, no clock.

The overview shows all findings, every page those of ``BANNERS`` as banners, the API lists them, and ``doctor`` shares
the ones about workers. What is unknown is shown as unknown: without a broker, all is never well.
"""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from urllib.parse import quote

from celery_monitor.core.health.findings import (
    BARELY_SECONDS,
    BOUND_WORDS,
    GAP_SECONDS,
    GONE_SECONDS,
    MOST_OF_A_KIND,
    SILENT_SECONDS,
    WINDOW_SECONDS,
    Bound,
    Finding,
    FindingLink,
    Tone,
    as_sentence,
    events_off,
    failing_helpers,
    refused_events,
    shared_names,
    skewed_clocks,
    unattended,
)
from celery_monitor.core.words import age_words, counted, named, number_words, reconciliation_words
from celery_monitor.core.workers import SKEW_SECONDS, duplicate_pids, is_skewed
from celery_monitor.core.workflow import Stalls, may_be_busy, stalled_words, usual_words
from celery_monitor.records.failure import FailureCounts, FailureGroup, FailureState
from celery_monitor.records.page import Count
from celery_monitor.records.queue import Pause, Queue
from celery_monitor.records.receiver import CAUGHT_UP_SECONDS, QUIET_SECONDS, Gap, ReceiverHealth
from celery_monitor.records.schedule import BeatHealth, OverdueEntry
from celery_monitor.records.task import WaitingStep
from celery_monitor.records.worker import Worker, WorkerStatus

LOST = "state:lost retried:no finished:>-1d"
FAILED = "state:failed finished:>-15m"

BANNERS = frozenset(
    {
        *("receiver", "record", "broker", "lag", "gap", "event serializer", "malformed events"),
        *("no workers", "task events", "node names", "clocks"),
    }
)
# Warnings that are not about failing tasks or growing queues.
MINOR = frozenset({"workers", "lag", "gap", "malformed events", "clocks", "long task"})

PLUGIN_ONLY = "This broker carries no events: only workers with celery_monitor_capture.install(app) are seen."
ALL_WELL = Finding("all well", "good", "Nothing is failing and no queue is growing.")

Key = tuple[str, str]  # cluster and name


@dataclass(frozen=True, kw_only=True)
class HealthFacts:
    """The facts of one cluster, or of all, at ``now``. For banners, pages read only those up to ``gaps``."""

    now: float
    receivers: Sequence[ReceiverHealth] = ()
    workers: Sequence[Worker] = ()
    gaps: Sequence[Gap] = ()  # of the last GAP_SECONDS
    partial: bool = False  # for who sees a part of a cluster, and no workers
    bounds: Sequence[tuple[str, Bound]] = ()  # that a cluster has reached
    queues: Sequence[Queue] = ()
    growing: AbstractSet[Key] = frozenset()
    pauses: Mapping[Key, Pause] = field(default_factory=dict)
    beats: Sequence[BeatHealth] = ()
    stalls: Stalls = Stalls()
    stuck: Sequence[WaitingStep] = ()  # stalled workflows, the longest first
    stuck_more: bool = False  # there may be more of them
    lost: Count = Count(0)  # tasks that match LOST
    lost_at: float | None = None  # the newest of them
    failures: FailureCounts | None = None  # of WINDOW_SECONDS; None: unknown
    top_failure: FailureGroup | None = None  # the most common open one
    new_failures: Sequence[FailureGroup] = ()  # new or regressed in WINDOW_SECONDS, the newest first


def findings(facts: HealthFacts) -> tuple[Finding, ...]:
    """All findings, the most important first."""
    if not facts.receivers:
        start = "Start one: celery-monitor serve --broker redis://localhost:6379/0"
        return (Finding("receiver", "warning", "No receiver has written to this database yet.", start),)
    found = [
        *_receivers(facts),
        *_workers(facts),
        *_lost(facts),
        *_queues(facts),
        *_schedule(facts),
        *_workflows(facts),
        *_failures(facts),
        *_new_failures(facts),
        *_gaps(facts),
        *_bounds(facts),
    ]
    return (*found, ALL_WELL) if _is_well(facts, found) else tuple(found)


def banners(facts: HealthFacts) -> tuple[Finding, ...]:
    """The findings that every page shows at its top, the worst first."""
    found = [each for each in findings(facts) if each.kind in BANNERS]
    return tuple(sorted(found, key=lambda each: each.tone != "bad"))


def _is_well(facts: HealthFacts, found: Sequence[Finding]) -> bool:
    up = facts.partial or any(worker.status is WorkerStatus.ONLINE for worker in facts.workers)
    missed = any(gap.ended is None or gap.ended > facts.now - WINDOW_SECONDS for gap in facts.gaps)
    wrong = any(each.tone in {"warning", "bad"} and each.kind not in MINOR for each in found)
    return up and facts.failures is not None and facts.failures.total == 0 and not missed and not wrong


# Receivers


def _receivers(facts: HealthFacts) -> Iterator[Finding]:
    for health in facts.receivers:
        name = _of(facts, health.cluster)
        yield from failing_helpers(health, facts.now, name)
        if health.updated_at is not None:  # else its process exits before it writes anything
            yield from _receiver(health, name, facts.now)
            refused = [(each.hostname or f"a sender{name}", each.content_type) for each in health.refused]
            yield from refused_events(refused)
            yield from _malformed(health, name, facts.now)


def _of(facts: HealthFacts, cluster: str) -> str:
    return f" of {cluster}" if len(facts.receivers) > 1 else ""


def _receiver(health: ReceiverHealth, name: str, now: float) -> Iterator[Finding]:
    updated = health.updated_at or 0.0
    if health.unwritten is not None:
        then = "Events are buffered while there is room. These pages show the last recorded state."
        text = f"The database{name} cannot be written: {health.unwritten}."
        yield Finding("record", "bad", text, then, since=health.last_event_at)
    if health.late(now) > SILENT_SECONDS and not health.unwritten:
        then = "These pages show the last recorded state. Start celery-monitor serve or receive."
        yield Finding("receiver", "bad", f"The receiver{name} is not running.", then, since=updated, mark="Last update")
    elif health.late(now) > QUIET_SECONDS and not health.unwritten:
        behind = health.lag(now) or now - updated
        text = f"The receiver{name} is {age_words(behind)} behind: it has not updated for {age_words(now - updated)}."
        then = "It may be processing a large batch. Pages are out of date by that much."
        yield Finding("lag", "warning", text, then, since=updated, mark="Last update")
    elif not health.connected:
        text = f"The broker{name} cannot be reached{f': {as_sentence(health.error)}' if health.error else '.'}"
        then = "Events may be missed; the receiver keeps trying to reconnect."
        yield Finding("broker", "bad", text, then, since=health.last_event_at)
    elif health.lag_seconds is not None and health.lag_seconds > CAUGHT_UP_SECONDS:
        text = f"The receiver{name} is {age_words(health.lag_seconds)} behind."
        yield Finding("lag", "warning", text, "Pages are out of date by that much.")


def _malformed(health: ReceiverHealth, name: str, now: float) -> Iterator[Finding]:
    if health.malformed_at is not None and now - health.malformed_at < GAP_SECONDS:
        were = "was not a valid event" if health.malformed_total == 1 else "were not valid events"
        text, since = f"{counted(health.malformed_total, 'message')}{name} {were}.", health.malformed_at
        yield Finding("malformed events", "warning", text, "They are not stored.", since=since, mark="Last one")


def _gaps(facts: HealthFacts) -> Iterator[Finding]:
    for cluster in dict.fromkeys(gap.cluster for gap in facts.gaps):
        gaps, name = [gap for gap in facts.gaps if gap.cluster == cluster], _of(facts, cluster)
        last = max(gaps, key=lambda gap: gap.began)
        more = f" and {counted(len(gaps) - 1, 'more gap')} in the last hour" if len(gaps) > 1 else ""
        dropped = f", at least {counted(last.dropped, 'event')} missing" if last.dropped else ""
        lost = f"Events{name} are being missed"
        if last.ended is not None:
            lost = f"{age_words(max(1.0, last.ended - last.began))} of events{name} may be missing"
        text, then = f"{lost}: {last.cause.rstrip('.')}{dropped}{more}.", _after_gap(last)
        yield Finding("gap", "warning", text, then, FindingLink("/", {"range": "1h"}), last.began, "Began")


def _after_gap(gap: Gap) -> str:
    """The state of its reconciliation."""
    result = gap.reconciliation
    if result is None:
        return "That time is hatched in charts; states may be out of date."
    progress = "Reconciled" if result.ended is not None else "Being reconciled"
    return f"That time is hatched in charts. {progress}: {reconciliation_words(result)}."


def _bounds(facts: HealthFacts) -> Iterator[Finding]:
    for cluster, bound in facts.bounds:
        text, then = BOUND_WORDS[bound.kind]
        name = _of(facts, cluster)
        yield Finding("bounds", "warning", text.format(name=name, most=f"{bound.most:,}"), then.format(name=name))


# Workers


def _workers(facts: HealthFacts) -> Iterator[Finding]:
    alive = [worker for worker in facts.workers if worker.status is not WorkerStatus.OFFLINE]
    if alive:
        yield _workers_up(facts, alive)
    for health in facts.receivers:
        seen = any(worker.cluster == health.cluster for worker in facts.workers)
        here = [worker for worker in alive if worker.cluster == health.cluster]
        expected = not (here or health.refused or facts.partial)
        if expected and health.connected and health.updated_at is not None:
            text = f"No worker{_of(facts, health.cluster)} {'is up' if seen else 'has been seen yet'}."
            tone: Tone = "bad" if seen else "warning"
            then = "Tasks wait until one starts." if health.source != "queue" else PLUGIN_ONLY
            yield Finding("no workers", tone, text, then, FindingLink("/workers"))
        off = [worker.hostname for worker in here if worker.events_enabled is False]
        yield from events_off(off, health.cluster)
    yield from shared_names({each.hostname: len(pids) for each in alive if (pids := duplicate_pids(each))})
    yield from skewed_clocks({worker.hostname: worker.skew or 0.0 for worker in alive if is_skewed(worker)})
    yield from _set_clocks([worker for worker in alive if abs(worker.jump) > SKEW_SECONDS])
    yield from _silent(facts)
    yield from _stalled(facts)


def _workers_up(facts: HealthFacts, alive: Sequence[Worker]) -> Finding:
    up, total = sum(worker.status is WorkerStatus.ONLINE for worker in alive), len(facts.workers)
    if up == total:
        return Finding("workers", "plain", f"{counted(up, 'worker')} up.", link=FindingLink("/workers"))
    busy = sum(may_be_busy(worker) for worker in alive)
    gone = [worker.hostname for worker in facts.workers if _is_gone(worker, facts.now)]
    also = f" and {number_words(busy)} probably busy" if busy else ""
    down = f"; {' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} down" if 0 < len(gone) <= MOST_OF_A_KIND else ""
    text = f"{number_words(up)} of {counted(total, 'worker')} up{also}{down}."
    return Finding("workers", "plain" if len(alive) == total else "warning", text, link=FindingLink("/workers"))


def _is_gone(worker: Worker, now: float) -> bool:
    left = worker.status is WorkerStatus.OFFLINE and now - (worker.offline_at or 0.0) < GONE_SECONDS
    return left or (worker.status is WorkerStatus.SILENT and not may_be_busy(worker))


def _set_clocks(workers: Sequence[Worker]) -> Iterator[Finding]:
    if workers:
        largest = age_words(max(abs(worker.jump) for worker in workers))
        clocks = "clock was" if len(workers) == 1 else "clocks were"
        text = f"{named([worker.hostname for worker in workers])}: {clocks} changed by up to {largest} while running."
        then = "Times from it are corrected, with a small error, until the worker restarts."
        yield Finding("clocks", "warning", text, then, FindingLink("/workers"))


def _silent(facts: HealthFacts) -> Iterator[Finding]:
    silent = [worker for worker in facts.workers if worker.status is WorkerStatus.SILENT]
    for worker in [each for each in silent if may_be_busy(each)][:MOST_OF_A_KIND]:
        text = f"{_silence(worker, facts.now)}; a solo pool is silent while it runs a task."
        yield Finding("busy worker", "plain", text, link=_worker(worker.hostname))
    others = [worker for worker in silent if not may_be_busy(worker)]
    if len(others) > MOST_OF_A_KIND:
        text = f"{number_words(len(others))} workers are silent, perhaps just busy."
        yield Finding("silent worker", "warning", text, link=FindingLink("/workers"))
        return
    for worker in others:
        text = f"{_silence(worker, facts.now)}, perhaps just busy."
        yield Finding("silent worker", "warning", text, link=_worker(worker.hostname))


def _silence(worker: Worker, now: float) -> str:
    if worker.last_heartbeat is None:
        return f"{worker.hostname} is silent"
    return f"{worker.hostname} has been silent for {age_words(now - worker.last_heartbeat)}"


def _stalled(facts: HealthFacts) -> Iterator[Finding]:
    stalled, long = facts.stalls.workers, facts.stalls.other_tasks
    if len(stalled) > MOST_OF_A_KIND:
        text = f"{number_words(len(stalled))} workers may be stuck, the longest for {age_words(stalled[0].seconds)}."
        yield Finding("stuck worker", "bad", text, link=FindingLink("/workers"))
    else:
        for each in stalled:
            yield Finding("stuck worker", "bad", stalled_words(each), link=_worker(each.hostname))
    if len(long) > MOST_OF_A_KIND:
        first, query = long[0], {"q": "state:started", "sort": "started"}
        longest = f"the longest is {first.name} on {first.hostname}, {age_words(first.seconds)}"
        text = f"{number_words(len(long))} tasks have been running unusually long; {longest}."
        yield Finding("long task", "warning", text, link=FindingLink("/tasks", query))
        return
    for task in long:
        text = (
            f"{task.name} has been running for {age_words(task.seconds)} on {task.hostname}{usual_words(task.usual)}."
        )
        link = _worker(task.hostname) if task.id is None else FindingLink(f"/tasks/{quote(task.id, safe='')}")
        yield Finding("long task", "warning", text, link=link)


def _worker(hostname: str) -> FindingLink:
    return FindingLink(f"/workers/{quote(hostname, safe='')}")


# Tasks, queues, schedule, workflows


def _lost(facts: HealthFacts) -> Iterator[Finding]:
    if not facts.lost.value:
        return
    count, more = facts.lost, "" if facts.lost.exact else "+"
    tasks = "1 task is" if count.value == 1 and count.exact else f"{number_words(count.value)}{more} tasks are"
    newest = "" if facts.lost_at is None else f", newest {age_words(facts.now - facts.lost_at)} ago"
    yield Finding("lost tasks", "bad", f"{tasks} lost{newest}.", link=FindingLink("/tasks", {"q": LOST}))


def is_paused(queue: Queue, pauses: Mapping[Key, Pause]) -> bool:
    """Whether it was paused, and no worker is known to consume it since then."""
    return (queue.cluster, queue.name) in pauses and not queue.consumers


def _queues(facts: HealthFacts) -> Iterator[Finding]:
    pauses = facts.pauses
    paused = [(pauses[queue.cluster, queue.name], queue) for queue in facts.queues if is_paused(queue, pauses)]
    yield from _paused(sorted(paused, key=lambda each: -each[0].at), facts.now)
    running = [queue for queue in facts.queues if not is_paused(queue, pauses)]
    alone = [queue for queue in running if unattended(queue)]
    for queue in alone[:MOST_OF_A_KIND]:
        waiting = counted(queue.ready or 0, "message")
        text = f"{queue.name} has {waiting} and no consumer{_oldest(queue, facts.now)}."
        yield Finding("queue without consumer", "bad", text, link=_queue(queue))
    if (more := len(alone) - MOST_OF_A_KIND) > 0:
        text = f"{number_words(more)} more {'queue has' if more == 1 else 'queues have'} messages and no consumer."
        yield Finding("queue without consumer", "bad", text, link=FindingLink("/queues"))
    growing = [each for each in running if (each.cluster, each.name) in facts.growing and not unattended(each)]
    if len(growing) > MOST_OF_A_KIND:
        text = f"{number_words(len(growing))} queues are growing."
        yield Finding("growing queue", "warning", text, link=FindingLink("/queues"))
        return
    for queue in growing:
        waiting = f"{number_words(queue.ready or 0)} waiting{_oldest(queue, facts.now)}"
        yield Finding("growing queue", "warning", f"{queue.name} is growing: {waiting}.", link=_queue(queue))


def _paused(paused: Sequence[tuple[Pause, Queue]], now: float) -> Iterator[Finding]:
    """The last paused queue comes first."""
    if len(paused) > MOST_OF_A_KIND:
        last = paused[0][0]
        text = (
            f"{number_words(len(paused))} queues are paused, {last.queue} by {last.by} {age_words(now - last.at)} ago."
        )
        yield Finding("paused queue", "warning", text, link=FindingLink("/queues"))
        return
    for pause, queue in paused:
        waiting = "" if queue.ready is None else f", {number_words(queue.ready)} waiting"
        text = f"{queue.name} was paused by {pause.by} {age_words(now - pause.at)} ago{waiting}."
        yield Finding("paused queue", "warning", text, link=_queue(queue))


def _oldest(queue: Queue, now: float) -> str:
    if queue.oldest is None:
        return ""
    return f", oldest {'' if queue.oldest_exact else 'at least '}{age_words(now - queue.oldest)}"


def _queue(queue: Queue) -> FindingLink:
    return FindingLink(f"/queues/{quote(queue.name, safe='')}")


def _schedule(facts: HealthFacts) -> Iterator[Finding]:
    overdue = [entry for beat in facts.beats for entry in beat.overdue]
    unsent = [entry for entry in overdue if entry.may_wait_in is None]
    entries = counted(len(unsent), "schedule entry is", "schedule entries are")
    if any(beat.stopped or beat.lock_free_since is not None for beat in facts.beats):
        text = f"Beat seems to have stopped{f': {entries} overdue' if unsent else ''}."
        yield Finding("beat", "bad", text, link=FindingLink("/schedule"))
    elif len(unsent) > MOST_OF_A_KIND:
        yield Finding("overdue entry", "bad", f"{entries} overdue.", link=FindingLink("/schedule"))
    else:
        yield from (_overdue(entry, facts.now) for entry in unsent)
    waiting = [entry for entry in overdue if entry.may_wait_in is not None]  # which is not beat's fault
    texts = [f"{number_words(len(waiting))} schedule entries were due and may be waiting in queues."]
    if len(waiting) <= MOST_OF_A_KIND:
        due = [(each, f"was due {age_words(facts.now - each.since)} ago") for each in waiting]
        texts = [f"{each.name} {words} and may be waiting in {each.may_wait_in}." for each, words in due]
    yield from (Finding("overdue entry", "warning", text, link=FindingLink("/schedule")) for text in texts)


def _overdue(entry: OverdueEntry, now: float) -> Finding:
    ago = f"{age_words(now - entry.since)} ago"
    if now - entry.since < BARELY_SECONDS:
        text = f"{entry.name} was due {ago} and has not been seen."
        return Finding("overdue entry", "warning", text, link=FindingLink("/schedule"))
    return Finding("overdue entry", "bad", f"{entry.name} should have been sent {ago}.", link=FindingLink("/schedule"))


def _workflows(facts: HealthFacts) -> Iterator[Finding]:
    if facts.stuck:
        longest, number = facts.stuck[0], len(facts.stuck)
        seconds = age_words(facts.now - longest.since)
        waits = f", waiting for {longest.name}" if longest.name else ""
        text, link = f"A workflow is stalled for {seconds}{waits}.", _workflow(longest.root_id)
        if number > 1:
            more = "+" if facts.stuck_more else ""
            text = f"{number}{more} workflows are stalled, the longest for {seconds}{waits}."
            link = FindingLink("/workflows")
        yield Finding("stuck workflow", "warning", text, link=link)
    if len(facts.stuck) <= 1:
        yield from _slow(facts)


def _slow(facts: HealthFacts) -> Iterator[Finding]:
    """A workflow that waits for a task name without a usual run time is only said to wait."""
    roots = {each.root_id for each in facts.stuck}
    slow = [each for each in facts.stalls.workflows if each.root_id not in roots]
    if not slow:
        return
    first = slow[0]
    number = sum((each.usual is None) == (first.usual is None) for each in slow)
    link = _workflow(first.root_id) if number == 1 else FindingLink("/workflows")
    name, seconds = first.name or "an unnamed task", age_words(first.seconds)
    if first.usual is None:
        subject = "A workflow has waited" if number == 1 else f"{number_words(number)} workflows are waiting, one"
        text = f"{subject} for {name} for {seconds}; its usual run time is not known yet."
        yield Finding("slow workflow", "plain", text, link=link)
        return
    subject = "A workflow" if number == 1 else f"{number_words(number)} workflows"
    where = f" on {first.worker}" if first.worker else ""
    text = f"{subject} may be stuck: {name} has run for {seconds}{where}{usual_words(first.usual)}."
    yield Finding("slow workflow", "warning", text, link=link)


def _workflow(root_id: str) -> FindingLink:
    return FindingLink(f"/workflows/{quote(root_id, safe='')}")


# Failures


def _failures(facts: HealthFacts) -> Iterator[Finding]:
    failures, top = facts.failures, facts.top_failure
    if failures is not None and failures.total:
        text, link = (
            f"{counted(failures.total, 'failure')} in 15 min{settled(failures)}",
            FindingLink("/tasks", {"q": FAILED}),
        )
        tone: Tone = "bad" if failures.open else "plain"
        if top is None:
            yield Finding("failures", tone, f"{text}.", link=link)
        elif failures.total == 1 and not settled(failures):
            yield Finding("failures", "bad", f"{text}: {_failure(top)}.", link=_group(top))
        else:
            share = "all" if top.count >= failures.total else f"{number_words(top.count)} of them"
            rest = Finding("failures", "bad", f"{share} {_failure(top)}.", link=_group(top))
            yield Finding("failures", "bad", f"{text},", link=link, rest=rest)


def _new_failures(facts: HealthFacts) -> Iterator[Finding]:
    if facts.new_failures:
        newest, more = facts.new_failures[0], len(facts.new_failures) - 1
        text = f"{'Back again' if newest.state is FailureState.REGRESSED else 'New'}: {_failure(newest)}"
        others = f"and {counted(more, 'other kind', 'other kinds')} of failure."
        rest = Finding("new failure", "bad", others, link=FindingLink("/failures")) if more else None
        yield Finding("new failure", "bad", f"{text}{',' if more else '.'}", link=_group(newest), rest=rest)


def _failure(group: FailureGroup) -> str:
    return f"{group.exception_type} in {group.name}" if group.name else group.exception_type


def _group(group: FailureGroup) -> FindingLink:
    return FindingLink(f"/failures/{group.id}")


def settled(failures: FailureCounts) -> str:
    """``, 80 of them muted``, ``, all muted``, ``, 80 of them muted and 3 resolved``; nothing where all are open."""
    muted, resolved, total = failures.muted, failures.resolved, failures.total
    parts = [
        word if number == total else f"{number_words(number)} {'of them ' if at == 0 else ''}{word}"
        for at, (number, word) in enumerate(each for each in ((muted, "muted"), (resolved, "resolved")) if each[0])
    ]
    if not parts:
        return ""
    return f", {'all ' if max(muted, resolved) == total else ''}{' and '.join(parts)}"
