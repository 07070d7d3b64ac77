"""Receivers with their gaps and findings; clusters."""

import time
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from msgspec import Struct, field

from celery_monitor.brokers.results import result_backend
from celery_monitor.core.health.findings import Finding, Tone
from celery_monitor.core.health.judgement import findings
from celery_monitor.records.receiver import Gap, ReceiverHealth
from celery_monitor.settings import Settings
from celery_monitor.store.health import read_facts, read_receivers, read_standbys
from celery_monitor.store.receivers import read_clusters, read_gaps
from celery_monitor.web.api.operation import DAY, Call, NoParameters, Operation, shape, shapes
from celery_monitor.web.security.reach import EVERYBODY, IN_PART

GAPS_SHOWN = 7 * DAY


class ReconciliationItem(Struct, frozen=True, kw_only=True):
    """What happened to unfinished tasks during a gap. ``asked`` is the sum of the five counts that follow it."""

    began: float
    ended: float | None
    asked: int
    backend: int
    workers: int
    queue: int
    lost: int
    unknown: int
    discovered_on_workers: int = field(name="learnt_from_workers")
    discovered_in_queues: int = field(name="learnt_from_queues")
    complete: bool
    together_with: float | None


class GapItem(Struct, frozen=True, kw_only=True):
    """A span in which events may have been missed; ``reconciliation`` is null until it begins."""

    began: float
    ended: float | None
    cause: str
    dropped: int | None
    reconciliation: ReconciliationItem | None


class StandbyItem(Struct, frozen=True, kw_only=True):
    """A receiver that takes over if the active one fails."""

    host: str
    pid: int
    since: float
    listening: bool


class HelperItem(Struct, frozen=True, kw_only=True):
    """A failing thread or process of a receiver, or the receiver's own process (``receiver``)."""

    name: str
    error: str
    since: float
    failures: int


class ResultBackendItem(Struct, frozen=True, kw_only=True):
    """The result backend from the options or the application; ``reason``: why it cannot be read."""

    address: str
    readable: bool
    reason: str | None


class RefusedItem(Struct, frozen=True, kw_only=True):
    """A worker that sent events in a refused content type, such as pickle, within the last minute."""

    hostname: str
    content_type: str


class FindingItem(Struct, frozen=True, kw_only=True):
    """A finding, as shown on the overview and in banners; docs/health.md lists the kinds.

    ``then``: what it means for the tasks, or what to do. ``link``: a page, below the prefix.
    ``since``: when it began, or when something was last seen.
    """

    kind: str
    tone: Tone
    text: str
    then: str
    link: str | None
    since: float | None


class HealthItem(Struct, frozen=True, kw_only=True):
    """The receiver of one cluster; fields are null until its first report.

    ``result_backend`` is null without a backend, or if neither ``--result-backend`` nor ``-A`` is given.
    """

    cluster: str
    connected: bool | None
    source: str | None
    error: str | None
    last_event_at: float | None
    lag_seconds: float | None
    events_total: int | None
    dropped_total: int | None
    malformed_total: int | None
    unknown_total: int | None
    host: str | None
    pid: int | None
    updated_at: float | None
    notices: tuple[str, ...]
    gaps: list[GapItem]
    standbys: list[StandbyItem]
    helpers: list[HelperItem]
    result_backend: ResultBackendItem | None
    refused: list[RefusedItem]
    findings: list[FindingItem]


class HealthList(Struct, frozen=True):
    """Every receiver."""

    items: list[HealthItem]


class ClusterItem(Struct, frozen=True):
    """One cluster."""

    name: str


class ClusterList(Struct, frozen=True):
    """Every cluster."""

    items: list[ClusterItem]


def finding_item(finding: Finding) -> FindingItem:
    place = finding.link
    link = None if place is None else f"{place.path}?{urlencode(place.query)}".rstrip("?")
    text = finding.text if finding.rest is None else f"{finding.text} {finding.rest.text}"
    return shape(FindingItem, finding, text=text, link=link)


def unknown_health(cluster: str, found: list[FindingItem], backend: ResultBackendItem | None) -> HealthItem:
    """A cluster whose receiver has not reported yet."""
    fields: dict[str, Any] = dict.fromkeys(HealthItem.__struct_fields__)
    empty: dict[str, Any] = {name: [] for name in ("gaps", "standbys", "helpers", "refused")}
    given = {"cluster": cluster, "notices": (), "findings": found, "result_backend": backend}
    return HealthItem(**(fields | empty | given))


def gap_item(gap: Gap) -> GapItem:
    found = gap.reconciliation
    return shape(GapItem, gap, reconciliation=None if found is None else shape(ReconciliationItem, found))


def backend_item(settings: Settings, cluster: str) -> ResultBackendItem | None:
    broker = next((each for each in settings.broker if each.cluster == cluster), None)
    if broker is None:
        return None
    found = result_backend(broker, settings)
    if found.kind == "none":
        return None
    return ResultBackendItem(address=found.address, readable=found.is_read, reason=found.reason)


def health_item(
    health: ReceiverHealth,
    gaps: Iterable[Gap],
    standbys: Iterable[object],
    found: list[FindingItem],
    backend: ResultBackendItem | None,
    now: float,
) -> HealthItem:
    return shape(
        HealthItem,
        health,
        error=health.unwritten or health.error,
        lag_seconds=health.lag(now),
        gaps=[gap_item(gap) for gap in gaps],
        standbys=shapes(StandbyItem, standbys),
        helpers=shapes(HelperItem, health.helpers),
        result_backend=backend,
        refused=shapes(RefusedItem, health.refused),
        findings=found,
    )


def get_health(call: Call, _: NoParameters) -> HealthList:
    """Every cluster that is or was monitored."""
    now = time.time()
    since = now - GAPS_SHOWN
    reported = {health.cluster: health for health in read_receivers(call.store, now)}
    standbys_of = read_standbys(call.store, now)
    names = sorted({*reported, *call.settings.clusters})
    items = []
    for name in names:
        found = [finding_item(each) for each in findings(read_facts(call.store, name, now))]
        backend = backend_item(call.settings, name) if call.store.limits.scope.covers(name) else None
        health = reported.get(name)
        gaps, standbys = read_gaps(call.store, since, name), standbys_of.get(name, ())
        if health is None:
            items.append(unknown_health(name, found, backend))
        else:
            items.append(health_item(health, gaps, standbys, found, backend, now))
    return HealthList(items)


def list_clusters(call: Call, _: NoParameters) -> ClusterList:
    names = sorted({*read_clusters(call.store), *call.settings.clusters})
    return ClusterList([ClusterItem(name) for name in names])


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/health",
        handle=get_health,
        summary="Get health: receivers, findings and the gaps of the last week",
        answer=HealthList,
        access=EVERYBODY,
    ),
    Operation(
        method="GET",
        path="/api/v1/clusters",
        handle=list_clusters,
        summary="List clusters",
        answer=ClusterList,
        access=IN_PART,
    ),
)
