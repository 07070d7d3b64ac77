"""The kinds of rules: what each measures, its bounds, the fields of its scope, and its default rule.

One declaration a kind. The form, the API, the rules file and docs/alerts.md follow from ``KINDS``. A kind that the
sentence of health knows measures nothing itself: it asks ``findings`` about each subject alone, so both always agree.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from msgspec import structs

from celery_monitor.core.filters.terms import exactly
from celery_monitor.core.health.findings import BARELY_SECONDS, GONE_SECONDS, Finding, unattended
from celery_monitor.core.health.judgement import HealthFacts, findings, is_paused
from celery_monitor.core.words import age_words, counted, number_words
from celery_monitor.core.workflow import Stalls, may_be_busy
from celery_monitor.records.alert import Measured, Rule, Severity
from celery_monitor.records.failure import FailureGroup, FailureState
from celery_monitor.records.page import Count
from celery_monitor.records.queue import Queue
from celery_monitor.records.series import NameTotal, Percentiles
from celery_monitor.records.worker import WorkerStart, WorkerStatus

DAY = 86400.0
GIB = 1024**3
LEAST_RUNS = 20  # in the window; a share or percentile of fewer is an accident
LEAST_USUAL = 50  # of the day before; fewer are no habit
TIMES_USUAL = 2.0
LEAST_EXCESS_SECONDS = 1.0  # beyond the usual; less is nobody's concern
SAMPLE_SECONDS = 60.0  # an older sample of a queue is no evidence


@dataclass(frozen=True, kw_only=True)
class AlertFacts:
    """What rules are judged by, at ``now``, of one cluster. ``names`` and ``groups`` are by window in seconds."""

    now: float
    cluster: str
    health: HealthFacts
    names: Mapping[float, Mapping[str, NameTotal]] = field(default_factory=dict)
    usual: Mapping[str, NameTotal] = field(default_factory=dict)  # of the day before
    groups: Mapping[float, Sequence[FailureGroup]] = field(
        default_factory=dict
    )  # unresolved, with counts of the window
    starts: Sequence[WorkerStart] = ()
    successes: Mapping[str, float] = field(default_factory=dict)  # the last of each name, or when its record begins
    lost: Mapping[str, Count] = field(default_factory=dict)  # by scope
    free_bytes: int | None = None  # on the disk of the record


Measure = Callable[[AlertFacts, Rule], Iterator[Measured]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleKind:
    """One kind of rule. ``bound`` and ``window`` say what these mean; empty: the kind has none."""

    name: str
    help: str
    measure: Measure
    fields: tuple[str, ...] = ()  # of the scope, besides cluster
    bound: str = ""
    bound_default: float | None = None
    window: str = ""
    window_default: float | None = None
    needs_scope: bool = False
    of_record: bool = False  # about the record itself: judged also while that is incomplete
    not_kept: str = ""  # what the record would have to keep to say when the rule would have fired; empty: it does
    default: Rule | None = None

    @property
    def history(self) -> bool:
        """Whether the record keeps enough to say when the rule would have fired."""
        return not self.not_kept

    def bound_of(self, rule: Rule) -> float:
        return (self.bound_default or 0.0) if rule.bound is None else rule.bound

    def window_of(self, rule: Rule) -> float:
        return (self.window_default or 0.0) if rule.window is None else rule.window


def _alone(facts: AlertFacts, kind: str, **subject: object) -> Finding | None:
    """The finding of this kind, were there nothing else in the cluster."""
    health = facts.health
    only = {"growing": health.growing, "pauses": health.pauses, **subject}
    bare = HealthFacts(now=facts.now, receivers=health.receivers, **only)  # type: ignore[arg-type]
    return next((each for each in findings(bare) if each.kind == kind), None)


def _from(finding: Finding, subject: str, value: float | None = None, **about: str) -> Measured:
    path, query = finding.link or ("/", {})
    text = f"{finding.text} {finding.rest.text if finding.rest else ''} {finding.then}"
    return Measured(
        subject=subject, text=" ".join(text.split()), value=value, path=path, query=dict(query), about=about
    )


# Failures


def _new(facts: AlertFacts, state: FailureState) -> Iterator[Measured]:
    for group in facts.health.new_failures:
        if group.state is state and (found := _alone(facts, "new failure", new_failures=[group])):
            yield _from(found, str(group.id), group.count, **_about(group))


def _about(group: FailureGroup) -> dict[str, str]:
    return {"name": group.name or "", "exception": f"{group.exception_type}: {group.message}"}


def _new_failure(facts: AlertFacts, _: Rule) -> Iterator[Measured]:
    return _new(facts, FailureState.OPEN)


def _regressed(facts: AlertFacts, _: Rule) -> Iterator[Measured]:
    return _new(facts, FailureState.REGRESSED)


def _many_failures(facts: AlertFacts, rule: Rule) -> Iterator[Measured]:
    kind = KINDS[rule.kind]
    window = kind.window_of(rule)
    for group in facts.groups.get(window, ()):
        if group.count > kind.bound_of(rule):
            name = f" in {group.name}" if group.name else ""
            text = f"{group.exception_type}{name}: {counted(group.count, 'failure')} in {age_words(window)}."
            yield Measured(
                subject=str(group.id),
                text=text,
                value=group.count,
                path=f"/failures/{group.id}",
                about=_about(group),
            )


def _share(total: NameTotal) -> float:
    return total.failed / total.runs if total.runs else 0.0


def _failure_share(facts: AlertFacts, rule: Rule) -> Iterator[Measured]:
    kind = KINDS[rule.kind]
    window = kind.window_of(rule)
    for name, total in facts.names.get(window, {}).items():
        share, before = _share(total), facts.usual.get(name)
        known = before is not None and before.runs >= LEAST_USUAL
        usual = _share(before) if before is not None and known else 0.0
        if total.runs >= LEAST_RUNS and share > max(kind.bound_of(rule), TIMES_USUAL * usual):
            runs = f"{number_words(total.failed)} of {counted(total.runs, 'run')}"
            habit = f"; usually {usual:.0%}" if known else ""
            text = f"{name}: {runs} failed in {age_words(window)} ({share:.0%}{habit})."
            query = {"q": f"state:failed {exactly('name', name)} finished:>-{int(window)}s"}
            yield Measured(subject=name, text=text, value=share, path="/tasks", query=query, about={"name": name})


# Times


def _slow(
    facts: AlertFacts, rule: Rule, noun: str, times: Callable[[NameTotal], Percentiles | None]
) -> Iterator[Measured]:
    window = KINDS[rule.kind].window_of(rule)
    for name, total in facts.names.get(window, {}).items():
        found, before = times(total), facts.usual.get(name)
        usual = times(before) if before is not None and before.runs >= LEAST_USUAL else None
        if found is None or total.runs < LEAST_RUNS or not _exceeds(found.p95, rule.bound, usual):
            continue
        habit = f"; usually {_seconds(usual.p95)}" if usual is not None else ""
        text = f"{name}: p95 {noun} is {_seconds(found.p95)} over {age_words(window)}{habit}."
        query = {"q": str(exactly("name", name))}
        yield Measured(subject=name, text=text, value=found.p95, path="/tasks", query=query, about={"name": name})


def _exceeds(p95: float, bound: float | None, usual: Percentiles | None) -> bool:
    if bound is not None:
        return p95 > bound
    return usual is not None and p95 > max(TIMES_USUAL * usual.p95, usual.p95 + LEAST_EXCESS_SECONDS)


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else age_words(value)


def _slow_wait(facts: AlertFacts, rule: Rule) -> Iterator[Measured]:
    return _slow(facts, rule, "wait", lambda total: total.wait)


def _slow_run(facts: AlertFacts, rule: Rule) -> Iterator[Measured]:
    return _slow(facts, rule, "run time", lambda total: total.run)


def _no_success(facts: AlertFacts, rule: Rule) -> Iterator[Measured]:
    """A success may have been missed in a gap, so the time counts from its end."""
    window = KINDS[rule.kind].window_of(rule)
    seen = max((facts.now if gap.ended is None else gap.ended for gap in facts.health.gaps), default=0.0)
    for name, last in facts.successes.items():
        seconds = facts.now - max(last, seen)
        if seconds > window:
            text = f"{name} has not succeeded for {age_words(seconds)}."
            query = {"q": str(exactly("name", name))}
            yield Measured(subject=name, text=text, value=seconds, path="/tasks", query=query, about={"name": name})


# Queues


def _sampled(facts: AlertFacts) -> Iterator[Queue]:
    """Queues with a recent sample, that nobody has paused."""
    for queue in facts.health.queues:
        recent = queue.sampled_at is not None and facts.now - queue.sampled_at <= SAMPLE_SECONDS
        if recent and not is_paused(queue, facts.health.pauses):
            yield queue


def _queue(queue: Queue, text: str, value: float) -> Measured:
    path = f"/queues/{quote(queue.name, safe='')}"
    return Measured(subject=queue.name, text=text, value=value, path=path, about={"queue": queue.name})


def _depth(facts: AlertFacts, rule: Rule) -> Iterator[Measured]:
    for queue in _sampled(facts):
        if queue.ready is not None and queue.ready > KINDS[rule.kind].bound_of(rule):
            yield _queue(queue, f"{queue.name} has {counted(queue.ready, 'waiting message')}.", queue.ready)


def _age(facts: AlertFacts, rule: Rule) -> Iterator[Measured]:
    for queue in _sampled(facts):
        seconds = facts.now - queue.oldest if queue.oldest is not None and queue.ready else 0.0
        if seconds > KINDS[rule.kind].bound_of(rule):
            least = "" if queue.oldest_exact else "at least "
            yield _queue(
                queue, f"{queue.name}: the oldest message has waited for {least}{age_words(seconds)}.", seconds
            )


def _growing(facts: AlertFacts, _: Rule) -> Iterator[Measured]:
    for queue in _sampled(facts):
        if (queue.cluster, queue.name) in facts.health.growing and (
            found := _alone(facts, "growing queue", queues=[queue])
        ):
            yield _from(found, queue.name, queue.ready, queue=queue.name)


def _without_consumer(facts: AlertFacts, _: Rule) -> Iterator[Measured]:
    for queue in _sampled(facts):
        if unattended(queue) and (found := _alone(facts, "queue without consumer", queues=[queue])):
            yield _from(found, queue.name, queue.ready, queue=queue.name)


# Workers


def _no_worker(facts: AlertFacts, _: Rule) -> Iterator[Measured]:
    """Not before the first worker was seen: there may be none on purpose."""
    found = _alone(facts, "no workers", workers=facts.health.workers)
    if facts.health.workers and found is not None:
        yield _from(found, "workers", 0.0)


def _silent(facts: AlertFacts, _: Rule) -> Iterator[Measured]:
    """Silent, or gone without a warm shutdown."""
    for worker in facts.health.workers:
        name, heartbeat = worker.hostname, worker.last_heartbeat
        seconds = None if heartbeat is None else facts.now - heartbeat
        if worker.status is WorkerStatus.SILENT and not may_be_busy(worker):
            if found := _alone(facts, "silent worker", workers=[worker]):
                yield _from(found, name, seconds, worker=name)
        elif worker.status is WorkerStatus.OFFLINE and not worker.sent_offline and (seconds or 0.0) < GONE_SECONDS:
            ago = "" if seconds is None else f" {age_words(seconds)} ago"
            text = f"{name} is down; its last heartbeat came{ago} and it did not shut down."
            yield _worker(name, text, seconds)


def _worker(name: str, text: str, value: float | None) -> Measured:
    path = f"/workers/{quote(name, safe='')}"
    return Measured(subject=name, text=text, value=value, path=path, about={"worker": name})


def _stuck_worker(facts: AlertFacts, _: Rule) -> Iterator[Measured]:
    for each in facts.health.stalls.workers:
        if found := _alone(facts, "stuck worker", stalls=Stalls(workers=[each])):
            yield _from(found, each.hostname, each.seconds, worker=each.hostname)


def _restarting(facts: AlertFacts, rule: Rule) -> Iterator[Measured]:
    kind = KINDS[rule.kind]
    window = kind.window_of(rule)
    starts = Counter(each.hostname for each in facts.starts if facts.now - window < each.at <= facts.now)
    for name, number in sorted(starts.items()):
        if number > kind.bound_of(rule):
            yield _worker(name, f"{name} started {counted(number, 'time')} in {age_words(window)}.", number)


# Schedule, workflows, lost tasks


def _beat_missed(facts: AlertFacts, _: Rule) -> Iterator[Measured]:
    for beat in facts.health.beats:
        alone = structs.replace(beat, overdue=())
        if found := _alone(facts, "beat", beats=[alone]):
            yield _from(found, "beat")
            continue
        for entry in beat.overdue:
            one = structs.replace(beat, overdue=(entry,))
            found = _alone(facts, "overdue entry", beats=[one])
            if found is not None and found.tone == "bad":
                yield _from(found, entry.name, facts.now - entry.since, name=entry.name)


def _stuck_workflow(facts: AlertFacts, _: Rule) -> Iterator[Measured]:
    for step in facts.health.stuck:
        if found := _alone(facts, "stuck workflow", stuck=[step]):
            yield _from(found, step.root_id, facts.now - step.since, name=step.name or "", root=step.root_id)


def _lost(facts: AlertFacts, rule: Rule) -> Iterator[Measured]:
    count = facts.lost.get(rule.scope, Count(0))
    newest = facts.health.lost_at if not rule.scope else None
    if count.value > KINDS[rule.kind].bound_of(rule) and (
        found := _alone(facts, "lost tasks", lost=count, lost_at=newest)
    ):
        yield _from(found, "lost", count.value)


# The record


def _behind(facts: AlertFacts, rule: Rule) -> Iterator[Measured]:
    for health in facts.health.receivers:
        lag = health.lag(facts.now)
        if lag is not None and lag > KINDS[rule.kind].bound_of(rule):
            text = f"The receiver is {age_words(lag)} behind. Pages are out of date by that much."
            yield Measured(subject="receiver", text=text, value=lag)


def _gap(facts: AlertFacts, rule: Rule) -> Iterator[Measured]:
    """An open gap, or one that ended within the window."""
    window = KINDS[rule.kind].window_of(rule)
    recent = [gap for gap in facts.health.gaps if gap.ended is None or gap.ended > facts.now - window]
    if recent and (found := _alone(facts, "gap", gaps=recent)):
        last = max(recent, key=lambda gap: gap.began)
        yield _from(found, "gap", (facts.now if last.ended is None else last.ended) - last.began)


def _disk(facts: AlertFacts, rule: Rule) -> Iterator[Measured]:
    if facts.free_bytes is not None and facts.free_bytes < KINDS[rule.kind].bound_of(rule) * GIB:
        free = facts.free_bytes / GIB
        text = f"{free:.1f} GiB free on the disk of the record. Free space, or lower keep_tasks."
        yield Measured(subject="disk", text=text, value=free)


def _rule(name: str, kind: str, severity: Severity = Severity.WARNING, **fields: Any) -> Rule:
    return Rule(name=name, kind=kind, severity=severity, source="default", **fields)


_LOOK_BACK = "seconds to look back"
KINDS: Mapping[str, RuleKind] = {
    kind.name: kind
    for kind in (
        RuleKind(
            name="new failure",
            help="a cause of failure that was never seen before; it is new for 15 min",
            measure=_new_failure,
            fields=("name", "exception"),
            default=_rule("New failure", "new failure", resolve=False),
        ),
        RuleKind(
            name="regressed failure",
            help="a failure group that was resolved has failed again, in the last 15 min",
            measure=_regressed,
            fields=("name", "exception"),
            default=_rule("Regressed failure", "regressed failure", resolve=False),
        ),
        RuleKind(
            name="many failures",
            help="an unresolved failure group has more failures than the bound in the window",
            measure=_many_failures,
            fields=("name", "exception"),
            bound="failures",
            bound_default=100,
            window=_LOOK_BACK,
            window_default=900,
            default=_rule("Many failures of one cause", "many failures"),
        ),
        RuleKind(
            name="failure share",
            help=f"a larger share of a task's runs fails than the bound, and than twice its usual share of the day "
            f"before; with at least {LEAST_RUNS} runs in the window",
            measure=_failure_share,
            fields=("name",),
            bound="share from 0 to 1",
            bound_default=0.1,
            window=_LOOK_BACK,
            window_default=900,
            default=_rule("Task fails more than usual", "failure share", for_seconds=60.0),
        ),
        RuleKind(
            name="slow wait",
            help=f"the 95th percentile of a task's wait is above the bound; without a bound, above twice its usual of "
            f"the day before; with at least {LEAST_RUNS} runs in the window",
            measure=_slow_wait,
            fields=("name",),
            bound="seconds; empty: twice the usual",
            window=_LOOK_BACK,
            window_default=900,
            default=_rule("Task waits longer than usual", "slow wait", for_seconds=120.0),
        ),
        RuleKind(
            name="slow run",
            help=f"the 95th percentile of a task's run time is above the bound; without a bound, above twice its usual "
            f"of the day before; with at least {LEAST_RUNS} runs in the window",
            measure=_slow_run,
            fields=("name",),
            bound="seconds; empty: twice the usual",
            window=_LOOK_BACK,
            window_default=900,
            default=_rule("Task runs longer than usual", "slow run", Severity.INFO, for_seconds=120.0),
        ),
        RuleKind(
            name="no success",
            help="no task of the name has succeeded for the window, as a dead man's switch; gaps do not count",
            measure=_no_success,
            fields=("name",),
            window="seconds without a success",
            window_default=DAY,
            needs_scope=True,
        ),
        RuleKind(
            name="queue depth",
            help="more messages wait in a queue than the bound",
            measure=_depth,
            fields=("queue",),
            bound="messages",
            bound_default=10_000,
            default=_rule("Deep queue", "queue depth", for_seconds=300.0),
        ),
        RuleKind(
            name="queue age",
            help="the oldest message of a queue has waited for longer than the bound",
            measure=_age,
            fields=("queue",),
            bound="seconds",
            bound_default=900,
            default=_rule("Old message", "queue age", for_seconds=60.0),
        ),
        RuleKind(
            name="growing queue",
            help="a queue fills faster than it is emptied",
            measure=_growing,
            fields=("queue",),
            default=_rule("Growing queue", "growing queue", for_seconds=600.0),
        ),
        RuleKind(
            name="queue without consumer",
            help="messages wait and no worker consumes the queue; a paused queue does not count",
            measure=_without_consumer,
            fields=("queue",),
            default=_rule("Queue without consumer", "queue without consumer", Severity.CRITICAL, for_seconds=60.0),
        ),
        RuleKind(
            name="no worker",
            help="no worker is up, and there were some",
            measure=_no_worker,
            not_kept="The record keeps when workers started and which are up now, but not when they were up.",
            default=_rule("No worker", "no worker", Severity.CRITICAL, for_seconds=60.0),
        ),
        RuleKind(
            name="silent worker",
            help="a worker sends no heartbeat and is not just busy, or left without a shutdown in the last hour",
            measure=_silent,
            fields=("worker",),
            not_kept="The record keeps the last heartbeat of each worker, but none from before.",
            default=_rule("Silent worker", "silent worker", for_seconds=60.0),
        ),
        RuleKind(
            name="stuck worker",
            help="all running tasks of a worker take unusually long, and it starts nothing else",
            measure=_stuck_worker,
            fields=("worker",),
            not_kept="The record keeps when tasks started and ended, but not how full a worker was meanwhile.",
            default=_rule("Stuck worker", "stuck worker", Severity.CRITICAL, for_seconds=120.0),
        ),
        RuleKind(
            name="restarting worker",
            help="a worker has started more often than the bound in the window",
            measure=_restarting,
            fields=("worker",),
            bound="starts",
            bound_default=3,
            window=_LOOK_BACK,
            window_default=600,
            default=_rule("Restarting worker", "restarting worker"),
        ),
        RuleKind(
            name="beat missed",
            help=f"an entry of the schedule is overdue by {BARELY_SECONDS:.0f} s or more, or beat has stopped; "
            "name is the name of the entry",
            measure=_beat_missed,
            fields=("name",),
            not_kept="The record keeps what the schedule is now and what is overdue now, but neither from before.",
            default=_rule("Missed schedule entry", "beat missed", Severity.CRITICAL, for_seconds=30.0),
        ),
        RuleKind(
            name="stuck workflow",
            help="a workflow is stalled: nothing of it runs or waits in a queue",
            measure=_stuck_workflow,
            fields=("name", "root"),
            not_kept="The record keeps where a workflow is now, but not for how long it was stalled before.",
            default=_rule("Stuck workflow", "stuck workflow", for_seconds=120.0),
        ),
        RuleKind(
            name="tasks lost",
            help="more lost tasks than the bound in the last day that nobody has retried",
            measure=_lost,
            fields=("name", "queue", "worker"),
            bound="tasks",
            bound_default=0,
            default=_rule("Lost tasks", "tasks lost"),
        ),
        RuleKind(
            name="receiver behind",
            help="the receiver stores events later than the bound",
            measure=_behind,
            bound="seconds",
            bound_default=30,
            of_record=True,
            not_kept="The record keeps gaps, but not how far the receiver was behind before.",
            default=_rule("Receiver behind", "receiver behind", Severity.CRITICAL, for_seconds=60.0),
        ),
        RuleKind(
            name="gap",
            help="events may have been missed, now or within the window",
            measure=_gap,
            window=_LOOK_BACK,
            window_default=900,
            of_record=True,
            default=_rule("Gap in the record", "gap"),
        ),
        RuleKind(
            name="disk",
            help="free disk space for an SQLite record is below the bound",
            measure=_disk,
            bound="GiB",
            bound_default=2,
            of_record=True,
            not_kept="The record keeps no sizes of the disk from before.",
            default=_rule("Disk nearly full", "disk", Severity.CRITICAL),
        ),
    )
}
DEFAULT_RULES: Mapping[str, Rule] = {kind.default.name: kind.default for kind in KINDS.values() if kind.default}
