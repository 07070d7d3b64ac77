"""The facts of the last day again, as far as the record keeps them: when a rule would have fired."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from msgspec import structs
from sqlalchemy import ColumnElement, func, select

from celery_monitor.core.alerts.judging import (
    MOST_ALERTS,
    Standing,
    advance,
    applies,
    fields_of,
    is_suspended,
    measure,
    scope_of,
)
from celery_monitor.core.alerts.kinds import DAY, KINDS, AlertFacts
from celery_monitor.core.health.findings import GROWTH_SECONDS, WINDOW_SECONDS, is_growing
from celery_monitor.core.health.judgement import HealthFacts
from celery_monitor.core.quantiles import Sketch
from celery_monitor.records.alert import Alert, AlertState, Rule
from celery_monitor.records.failure import FailureGroup, FailureState
from celery_monitor.records.page import Count
from celery_monitor.records.queue import Queue, QueueSample
from celery_monitor.records.receiver import Gap, ReceiverHealth
from celery_monitor.records.series import NameTotal
from celery_monitor.store import schema
from celery_monitor.store.alerts.facts import HOUR, MINUTE, NAME_KINDS, began, in_scope, read_starts, read_usual
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import read_depths
from celery_monitor.store.receivers import read_gaps
from celery_monitor.store.rollups.failures import UNRESOLVED, read_failure_groups, read_new_failure_groups
from celery_monitor.store.rollups.series import percentiles, wait_percentiles
from celery_monitor.store.terms import cluster_ids, texts

MOST_NAMES = 50  # of tasks, the most frequent ones
BLOCK = 300  # seconds; shares and percentiles are of whole blocks
_rollup = schema.rollup.c
At = Callable[[AlertFacts], AlertFacts]  # adds the facts of the kind at that time


class Span(NamedTuple):
    """The cluster, the rule and the time that are replayed."""

    store: Store
    cluster: str
    rule: Rule
    now: float

    @property
    def start(self) -> float:
        return self.now - DAY

    @property
    def window(self) -> float:
        return KINDS[self.rule.kind].window_of(self.rule)


def would_have_fired(store: Store, cluster: str, rule: Rule, now: float) -> list[Alert]:
    """The alerts of the last day, had there been this rule, the latest first.

    Judged by the minute; muted or disabled does not count. Only for kinds with ``history``.
    """
    rule = structs.replace(rule, muted_until=None, enabled=True)
    first, kind = began(store, cluster, now), KINDS[rule.kind]
    standing, fired, found = dict[str, Alert](), dict[str, float](), dict[tuple[str, float], Alert]()
    for facts in read_history(Span(store, cluster, rule, now)):
        measured = None if is_suspended(kind, facts, first) else measure(rule, facts)
        for change in advance(rule, cluster, Standing(standing, fired), measured, facts.now):
            alert, subject = change.alert, change.alert.measured.subject
            standing[subject] = alert
            if change.removed or alert.state is AlertState.RESOLVED:
                del standing[subject]
            if alert.fired_at is not None:
                fired[subject] = alert.fired_at
                found[subject, alert.fired_at] = alert
    return sorted(found.values(), key=lambda each: -(each.fired_at or 0.0))


def read_history(span: Span) -> Iterator[AlertFacts]:
    """The facts of each minute of the last day."""
    gaps = read_gaps(span.store, span.start - HOUR, span.cluster)
    add = _adder(span)
    usual = read_usual(span.store, span.cluster, span.start) if span.rule.kind in NAME_KINDS else {}
    for at in range(int(span.start // MINUTE + 1) * MINUTE, int(span.now) + 1, MINUTE):
        seen = [_as_of(gap, at) for gap in gaps if gap.began <= at and (gap.ended is None or gap.ended > at - HOUR)]
        receiver = ReceiverHealth(
            cluster=span.cluster, connected=True, updated_at=at, lag_seconds=0.0, last_event_at=at
        )
        health = HealthFacts(now=at, receivers=[receiver], gaps=seen)
        yield add(AlertFacts(now=at, cluster=span.cluster, health=health, usual=usual))


def _as_of(gap: Gap, at: float) -> Gap:
    ended = gap.ended if gap.ended is not None and gap.ended <= at else None
    return structs.replace(gap, ended=ended, reconciliation=None)


def _adder(span: Span) -> At:
    kind = span.rule.kind
    if kind in {"new failure", "regressed failure"}:
        return _new_failures(span)
    if kind == "many failures":
        return _failures(span)
    if kind in NAME_KINDS:
        return _names(span)
    if kind in {"queue depth", "queue age", "growing queue", "queue without consumer"}:
        return _queues(span)
    if kind == "no success":
        return _successes(span)
    if kind == "tasks lost":
        return _lost(span)
    starts = read_starts(span.store, span.cluster, span.start - span.window) if kind == "restarting worker" else ()
    return lambda facts: replace(facts, starts=starts)


def _new_failures(span: Span) -> At:
    groups = read_new_failure_groups(
        span.store, since=span.start - WINDOW_SECONDS, cluster=span.cluster, limit=MOST_ALERTS
    )

    def add(facts: AlertFacts) -> AlertFacts:
        new = [group for group in groups if facts.now - WINDOW_SECONDS < _first(group) <= facts.now]
        return replace(facts, health=replace(facts.health, new_failures=new))

    return add


def _first(group: FailureGroup) -> float:
    return (group.state_at or 0.0) if group.state is FailureState.REGRESSED else group.first_seen


def _failures(span: Span) -> At:
    since = span.start - span.window
    groups = read_failure_groups(span.store, since=since, cluster=span.cluster, states=UNRESOLVED, limit=MOST_ALERTS)
    table = schema.failure_rollup.c
    statement = select(table.group_id, table.at, func.sum(table["count"]).label("n")).where(
        table.resolution == MINUTE, table.at >= since, table.group_id.in_([group.id for group in groups])
    )
    counts: dict[int, list[tuple[int, int]]] = defaultdict(list)
    with span.store.read() as connection:
        for row in connection.execute(statement.group_by(table.group_id, table.at)):
            counts[row.group_id].append((row.at, int(row.n)))

    def add(facts: AlertFacts) -> AlertFacts:
        begin = facts.now - span.window
        sums = [sum(n for at, n in counts[group.id] if begin <= at < facts.now) for group in groups]
        counted = [structs.replace(group, count=n) for group, n in zip(groups, sums, strict=True) if n]
        return replace(facts, groups={span.window: counted})

    return add


class Block(NamedTuple):
    """The runs of one name in BLOCK seconds."""

    runs: int
    failed: int
    since_receipt: int
    wait: Sketch
    run: Sketch


def _names(span: Span) -> At:
    blocks = _read_blocks(span)
    length = max(1, round(span.window / BLOCK))
    cached: dict[int, Mapping[str, NameTotal]] = {}

    def add(facts: AlertFacts) -> AlertFacts:
        end = int(facts.now // BLOCK)
        if end not in cached:
            cached[end] = {
                name: total
                for name, mine in blocks.items()
                if (total := _total(name, [mine[each] for each in range(end - length, end) if each in mine])).runs
            }
        return replace(facts, names={span.window: cached[end]})

    return add


def _total(name: str, blocks: Sequence[Block]) -> NameTotal:
    wait, run = Sketch(), Sketch()
    for each in blocks:
        wait.merge(each.wait)
        run.merge(each.run)
    return NameTotal(
        name=name,
        runs=sum(each.runs for each in blocks),
        failed=sum(each.failed for each in blocks),
        seconds=0.0,
        run=percentiles(run),
        wait=wait_percentiles(wait, sum(each.since_receipt for each in blocks)),
    )


def _read_blocks(span: Span) -> dict[str, dict[int, Block]]:
    """By name and number of the block, of the most frequent names in the scope."""
    with span.store.read() as connection:
        wanted = (
            _rollup.resolution == MINUTE,
            _rollup.at >= span.start - span.window,
            _rollup.cluster_id.in_(cluster_ids(connection, span.cluster)),
        )
        ended = func.sum(_rollup.succeeded + _rollup.failed + _rollup.retried)
        totals = connection.execute(select(_rollup.name_id, ended.label("n")).where(*wanted).group_by(_rollup.name_id))
        numbers = {row.name_id: int(row.n) for row in totals}
        names = {
            key: name for key, name in texts(connection, numbers).items() if in_scope(span.rule, name, span.cluster)
        }
        first = sorted(names, key=lambda key: -numbers[key])[:MOST_NAMES]
        columns: list[ColumnElement[Any]] = [
            _rollup.name_id,
            _rollup.at,
            _rollup.succeeded,
            _rollup.failed,
            _rollup.retried,
            _rollup.wait,
        ]
        columns += [_rollup.run, func.coalesce(_rollup.since_receipt, _rollup.started).label("since_receipt")]
        found: dict[str, dict[int, Block]] = {names[key]: {} for key in first}
        for row in connection.execute(select(*columns).where(*wanted, _rollup.name_id.in_(first))):
            mine, number = found[names[row.name_id]], row.at // BLOCK
            before = mine.get(number) or Block(0, 0, 0, Sketch(), Sketch())
            for sketch, packed in ((before.wait, row.wait), (before.run, row.run)):
                if packed is not None:
                    sketch.merge(Sketch.from_bytes(bytes(packed)))
            mine[number] = before._replace(
                runs=before.runs + row.succeeded + row.failed + row.retried,
                failed=before.failed + row.failed,
                since_receipt=before.since_receipt + row.since_receipt,
            )
    return found


def _queues(span: Span) -> At:
    samples = read_depths(span.store, since=span.start - GROWTH_SECONDS, cluster=span.cluster)
    times = {key: [each.at for each in found] for key, found in samples.items()}

    def add(facts: AlertFacts) -> AlertFacts:
        queues, growing = [], set()
        for (cluster, name), found in samples.items():
            end = bisect_right(times[cluster, name], facts.now)
            if end and found[end - 1].at > facts.now - 2 * MINUTE:
                queues.append(_queue(cluster, name, found[end - 1], facts.now))
                recent = [(each.at, each.ready) for each in found[max(0, end - 6) : end]]
                if is_growing(recent, facts.now):
                    growing.add((cluster, name))
        return replace(facts, health=replace(facts.health, queues=queues, growing=growing))

    return add


def _queue(cluster: str, name: str, sample: QueueSample, at: float) -> Queue:
    return Queue(
        cluster=cluster,
        name=name,
        ready=sample.ready,
        unacked=sample.unacked,
        consumers=sample.consumers,
        oldest=sample.oldest,
        sampled_at=at,
    )


def _successes(span: Span) -> At:
    with span.store.read() as connection:
        wanted = (
            _rollup.resolution == MINUTE,
            _rollup.at >= span.start - span.window,
            _rollup.cluster_id.in_(cluster_ids(connection, span.cluster)),
            _rollup.succeeded > 0,
        )
        rows = connection.execute(select(_rollup.name_id, _rollup.at).where(*wanted).distinct()).all()
        names = texts(connection, {row.name_id for row in rows})
    minutes: dict[str, list[int]] = defaultdict(list)
    for row in sorted(rows, key=lambda each: each.at):
        name = names.get(row.name_id)
        if name is not None and in_scope(span.rule, name, span.cluster):
            minutes[name].append(row.at)
    begin = began(span.store, span.cluster, span.now)

    def add(facts: AlertFacts) -> AlertFacts:
        last = {}
        for name, found in minutes.items():
            end = bisect_right(found, facts.now)
            last[name] = float(found[end - 1] + MINUTE) if end else begin
        return replace(facts, successes=last)

    return add


def _lost(span: Span) -> At:
    """Tasks that were lost and neither came back nor are known to have ended since. Retried ones count as well."""
    names = _rollup.name_id, _rollup.queue_id, _rollup.worker_id
    with span.store.read() as connection:
        wanted = (
            _rollup.resolution == MINUTE,
            _rollup.at >= span.start - DAY,
            _rollup.lost != 0,
            _rollup.cluster_id.in_(cluster_ids(connection, span.cluster)),
        )
        rows = connection.execute(select(_rollup.at, _rollup.lost, *names).where(*wanted)).all()
        known = texts(connection, {number for row in rows for number in row[2:]})
    scope = scope_of(span.rule.scope, fields_of(KINDS[span.rule.kind]))
    counts = []
    for row in rows:
        about = zip(("name", "queue", "worker"), (known.get(number) or "" for number in row[2:]), strict=True)
        if applies(scope, {**dict(about), "cluster": span.cluster}):
            counts.append((row.at + MINUTE, row.lost))

    def add(facts: AlertFacts) -> AlertFacts:
        mine = [(at, count) for at, count in counts if facts.now - DAY < at <= facts.now]
        newest = max((at for at, _ in mine), default=None)
        lost = Count(max(0, sum(count for _, count in mine)))
        return replace(facts, lost={span.rule.scope: lost}, health=replace(facts.health, lost_at=newest))

    return add
