"""The schedule with what the record tells of each entry: for the page and for the API."""

from typing import NamedTuple

from monitor.records import ScheduledRun
from monitor.records import ScheduleEntry
from monitor.schedule import Standing
from monitor.schedule import judge
from monitor.schedule import own_runs
from monitor.store import queries
from monitor.store.engine import Store
from monitor.store.schedule import MOST_RUNS

WINDOW_SECONDS = 86400.0
LAST_SECONDS = 40 * 86400.0  # how far back a last run is looked for, where the window has none


class Scheduled(NamedTuple):
    """One entry and how it does."""

    entry: ScheduleEntry
    standing: Standing


def read_schedule(store: Store, cluster: str | None, now: float) -> list[Scheduled]:
    """Every entry of the clusters, judged by the last day."""
    found: list[Scheduled] = []
    by_cluster: dict[str, list[ScheduleEntry]] = {}
    for entry in queries.schedule(store, cluster):
        by_cluster.setdefault(entry.cluster, []).append(entry)
    for name, entries in by_cluster.items():
        found += _of_cluster(store, name, entries, now)
    return found


def _of_cluster(store: Store, cluster: str, entries: list[ScheduleEntry], now: float) -> list[Scheduled]:
    since = now - WINDOW_SECONDS
    gaps = queries.gaps(store, since, cluster)
    runs = {entry.name: _runs(store, entry, since, now) for entry in entries}
    judged = own_runs(runs)
    found = []
    for entry in entries:
        mine, sure = judged[entry.name]
        recent = [run for run in mine if run.at >= since] or list(mine[:1])
        cut = len(runs[entry.name]) == MOST_RUNS
        begin = max(since, recent[-1].at) if cut and recent else since
        found.append(Scheduled(entry, judge(entry, recent, gaps, begin, now, sure=sure)))
    return found


def _runs(store: Store, entry: ScheduleEntry, since: float, now: float) -> list[ScheduledRun]:
    return queries.entry_runs(store, entry, since) or queries.entry_runs(store, entry, now - LAST_SECONDS, limit=50)
