"""The facts that rules are judged by: those of the sentence of health, and what single kinds need beside them."""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import func, select

from celery_monitor.core.alerts.judging import MOST_ALERTS, applies, scope_of
from celery_monitor.core.alerts.kinds import DAY, KINDS, AlertFacts
from celery_monitor.core.filters.parser import parse
from celery_monitor.core.filters.terms import Match, leaves
from celery_monitor.core.health.findings import WINDOW_SECONDS
from celery_monitor.core.health.judgement import LOST, HealthFacts
from celery_monitor.records.alert import Rule
from celery_monitor.records.failure import FailureGroup
from celery_monitor.records.page import Count
from celery_monitor.records.series import NameTotal
from celery_monitor.records.worker import WorkerStart
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, put_value, read_value
from celery_monitor.store.health import read_work_facts
from celery_monitor.store.rollups.failures import UNRESOLVED, read_failure_groups, read_new_failure_groups
from celery_monitor.store.rollups.series import read_name_totals, record_began
from celery_monitor.store.tasks.page import count_tasks
from celery_monitor.store.terms import cluster_ids, cluster_names, texts

HOUR = 3600
MINUTE = 60
REST, LONGEST_REST_SECONDS = 1000.0, 60.0  # until a costly read is repeated: times its CPU time, and at most
KNOWN_SECONDS = 30 * DAY  # since when a task was seen that shall succeed again and again
NAME_KINDS = frozenset({"failure share", "slow wait", "slow run"})
NEW_KINDS = frozenset({"new failure", "regressed failure"})
BEGAN = "alerts_began:"  # prefix of keys in ``meta``
_rollup = schema.rollup.c
T = TypeVar("T")


class SparingReads:
    """Repeats each read after a multiple of the CPU time that it took: of a large record, not in every round."""

    def __init__(self) -> None:
        self.now = 0.0  # of this round
        self._known: dict[str, tuple[float, float, Any]] = {}  # by part: when it was read, the rest, and what was read

    def __call__(self, part: str, read: Callable[[], T]) -> T:
        at, rest, value = self._known.get(part, (float("-inf"), 0.0, None))
        if not 0 <= self.now - at < rest:
            began = time.thread_time()
            value = read()
            rest = min(REST * (time.thread_time() - began), LONGEST_REST_SECONDS)
            self._known[part] = (self.now, rest, value)
        found: T = value
        return found


class FactsReader:
    """Reads the facts of one cluster again and again. Used by one thread."""

    def __init__(self, store: Store, cluster: str) -> None:
        self._store = store
        self._cluster = cluster
        self._reads = SparingReads()
        self._usual: tuple[float, dict[str, NameTotal]] = (0.0, {})

    def read(self, rules: Sequence[Rule], now: float) -> AlertFacts:
        """What these rules need, and no more. Raises StoreUnavailable."""
        with self._store.snapshot():
            return self._read(rules, now)

    def _read(self, rules: Sequence[Rule], now: float) -> AlertFacts:
        store, cluster, self._reads.now = self._store, self._cluster, now
        health = read_work_facts(store, cluster, now, self._reads)
        if any(rule.kind in NEW_KINDS for rule in rules):
            new = self._reads("new failures", lambda: self._new_groups(now - WINDOW_SECONDS))
            health = replace(health, new_failures=new)
        wanted = sorted(_windows(rules, NAME_KINDS))
        return AlertFacts(
            now=now,
            cluster=cluster,
            health=health,
            names={window: self._names(window, now) for window in wanted},
            usual=self._usual_of(now) if wanted else {},
            groups={window: self._groups(window, now) for window in _windows(rules, {"many failures"})},
            starts=read_starts(store, cluster, now - max(_windows(rules, {"restarting worker"}), default=0.0)),
            successes=self._successes(rules, now),
            lost={rule.scope: self._lost(rule, health, now) for rule in rules if rule.kind == "tasks lost"},
            free_bytes=free_bytes(store) if any(rule.kind == "disk" for rule in rules) else None,
        )

    def _names(self, window: float, now: float) -> dict[str, NameTotal]:
        return self._reads(f"names {window}", lambda: _totals(self._store, self._cluster, now - window, now))

    def _new_groups(self, since: float) -> list[FailureGroup]:
        return read_new_failure_groups(self._store, since=since, cluster=self._cluster, limit=MOST_ALERTS)

    def _groups(self, window: float, now: float) -> list[FailureGroup]:
        wanted = {"since": now - window, "cluster": self._cluster, "states": UNRESOLVED, "limit": MOST_ALERTS}
        return self._reads(f"groups {window}", lambda: read_failure_groups(self._store, **wanted))  # type: ignore[arg-type]

    def _lost(self, rule: Rule, health: HealthFacts, now: float) -> Count:
        if not rule.scope or not health.lost.value:
            return health.lost
        return count_tasks(self._store, parse(f"{LOST} ({rule.scope})", now).in_cluster(self._cluster))

    def _usual_of(self, now: float) -> dict[str, NameTotal]:
        """Of whole hours, so it is read once in each."""
        hour = now // HOUR
        if self._usual[0] != hour:
            self._usual = hour, read_usual(self._store, self._cluster, now)
        return self._usual[1]

    def _successes(self, rules: Sequence[Rule], now: float) -> dict[str, float]:
        mine = [rule for rule in rules if rule.kind == "no success"]
        part = f"successes {[(rule.scope, rule.window) for rule in mine]}"
        return self._reads(part, lambda: read_successes(self._store, self._cluster, mine, now))


def began(store: Store, cluster: str, now: float) -> float:
    """When the record of a cluster began: when it was judged for the first time, or before."""
    stored = read_value(store, f"{BEGAN}{cluster}")
    if stored is None:
        stored = repr(min(now, record_began(store) or now))
        with store.begin() as connection:
            put_value(store, connection, f"{BEGAN}{cluster}", stored)
    return float(stored)


def _windows(rules: Iterable[Rule], kinds: Iterable[str]) -> set[float]:
    return {KINDS[rule.kind].window_of(rule) for rule in rules if rule.kind in kinds}


def _totals(store: Store, cluster: str, since: float, until: float) -> dict[str, NameTotal]:
    found = read_name_totals(store, since=since, until=until, cluster=cluster)
    return {each.name: each for each in found if each.name is not None}


def read_usual(store: Store, cluster: str, now: float) -> dict[str, NameTotal]:
    """Totals by name of the 24 whole hours before this one."""
    until = now // HOUR * HOUR
    return _totals(store, cluster, until - DAY, until)


def read_successes(store: Store, cluster: str, rules: Sequence[Rule], now: float) -> dict[str, float]:
    """When each name in the scope of a ``no success`` last succeeded, to the minute; else when the record began."""
    mine = [rule for rule in rules if rule.kind == "no success"]
    if not mine:
        return {}
    since = now - max(_windows(mine, {"no success"})) - HOUR
    resolution = MINUTE if now - since < 6 * DAY else HOUR
    with store.read() as connection:
        number = _rollup.cluster_id.in_(cluster_ids(connection, cluster))
        recent = select(_rollup.name_id, func.max(_rollup.at).label("at")).where(
            _rollup.resolution == resolution, _rollup.at >= since, number, _rollup.succeeded > 0
        )
        last = {row.name_id: row.at for row in connection.execute(recent.group_by(_rollup.name_id))}
        day = _rollup.resolution == int(DAY)
        known = select(_rollup.name_id).where(day, _rollup.at >= now - KNOWN_SECONDS, number).distinct()
        names = texts(connection, {*last, *connection.execute(known).scalars()})
    begin = began(store, cluster, now)
    found = dict.fromkeys(_literals(mine), begin) | {
        name: float(last[key] + resolution) if key in last else begin for key, name in names.items()
    }
    return {name: at for name, at in found.items() if any(in_scope(rule, name, cluster) for rule in mine)}


def in_scope(rule: Rule, name: str, cluster: str) -> bool:
    """Whether a task name is in the scope of a rule that has no other fields."""
    return applies(scope_of(rule.scope, ("name", "cluster")), {"name": name, "cluster": cluster})


def _literals(rules: Iterable[Rule]) -> Iterator[str]:
    """Names that a scope names exactly: also such a task has to succeed that was never seen."""
    for rule in rules:
        for leaf in leaves(scope_of(rule.scope, ("name", "cluster"))):
            if isinstance(leaf, Match) and leaf.field == "name" and leaf.pattern.literal:
                yield leaf.pattern.pieces[0]


def read_starts(store: Store, cluster: str, since: float) -> list[WorkerStart]:
    """Starts of workers since then."""
    table = schema.worker_start.c
    with store.read() as connection:
        names = cluster_names(connection, cluster)
        wanted = table.cluster_id.in_(names), table.at >= since
        rows = connection.execute(select(table.cluster_id, table.hostname, table.at).where(*wanted)).all()
    return [WorkerStart(cluster=names[row.cluster_id], hostname=row.hostname, at=row.at) for row in rows]


def free_bytes(store: Store) -> int | None:
    """Free bytes on the disk of an SQLite record."""
    if not store.is_sqlite or not store.engine.url.database:
        return None
    return shutil.disk_usage(Path(store.engine.url.database).absolute().parent).free
