"""The schedule with what the record tells of each entry: for the page, the API and whoever watches beat."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from monitor.records import ScheduleEntry
from monitor.schedule import Standing
from monitor.schedule import entries_alike
from monitor.schedule import in_own_queue
from monitor.schedule import judge
from monitor.schedule import judge_alike
from monitor.schedule import may_wait_in
from monitor.schedule import own_runs
from monitor.store.clusters import gaps as read_gaps
from monitor.store.clusters import queues
from monitor.store.engine import Store
from monitor.store.schedule import MOST_RUNS
from monitor.store.schedule import Runs
from monitor.store.schedule import runs_of
from monitor.store.schedule import schedule

WINDOW_SECONDS = 86400.0
LEAST_RUNS, ALL_RUNS = 50, 20_000  # of each entry, and of all together
STOPPED_ENTRIES = 2  # entries overdue together say that beat itself has stopped
LAST_SECONDS = 40 * 86400.0  # how far back a last run is looked for, where the window has none


class Scheduled(NamedTuple):
    """One entry and how it does; ``known_until``: when it is not known what beat sent since then."""

    entry: ScheduleEntry
    standing: Standing
    known_until: float | None = None


def read_schedule(
    store: Store, cluster: str | None, now: float, known_until: Mapping[str, float], most: int = MOST_RUNS
) -> list[Scheduled]:
    """Every entry of the clusters, judged by the last day and the newest tasks of its name: at most ``most``, fewer
    where there are many entries.

    ``known_until`` names the clusters of which the record does not know what was sent since then: there nothing is
    overdue.
    """
    found: list[Scheduled] = []
    by_cluster: dict[str, list[ScheduleEntry]] = {}
    for entry in schedule(store, cluster):
        by_cluster.setdefault(entry.cluster, []).append(entry)
    for name, entries in by_cluster.items():
        found += _of_cluster(store, name, entries, _Moment(now, known_until.get(name)), most)
    return found


class _Moment(NamedTuple):
    now: float
    known_until: float | None  # ``None``: until now


def _of_cluster(
    store: Store, cluster: str, entries: list[ScheduleEntry], moment: _Moment, most: int
) -> list[Scheduled]:
    now, known_until = moment
    since = now - WINDOW_SECONDS
    gaps = read_gaps(store, since, cluster)
    runs = _runs(store, cluster, entries, now, max(LEAST_RUNS, min(most, ALL_RUNS // len(entries))))
    waiting = {queue.name: queue.ready for queue in queues(store, cluster)}
    by_name = {entry.name: in_own_queue(entry, entries, runs[entry.name].runs) for entry in entries}
    alike = entries_alike(entries, by_name)
    judged = own_runs(by_name, alike)
    found = []
    for entry in entries:
        mine, sure = judged[entry.name]
        recent = [run for run in mine if run.at >= since] or list(mine[:1])
        begin = max(since, runs[entry.name].since)
        until = now if known_until is None else known_until
        if others := alike[entry.name]:
            standing = judge_alike(entry, recent, gaps, begin, until, shared_with=others)
        else:
            standing = judge(entry, recent, gaps, begin, until, sure=sure)
        if known_until is not None:
            standing = _unaccused(standing, known_until)
        elif standing.overdue is not None:
            standing = standing._replace(may_wait_in=may_wait_in(entry, standing.last, waiting))
        found.append(Scheduled(entry, standing, known_until))
    return found


def _unaccused(standing: Standing, known_until: float) -> Standing:
    """What it missed while the record could tell still counts; whether it is overdue now cannot be told."""
    if known_until <= standing.since:
        standing = standing._replace(missed=None, late=None)
    return standing._replace(overdue=None)


def all_overdue(rows: Sequence[Scheduled]) -> bool:
    """Everything that is expected of beat is overdue: it seems to have stopped."""
    overdue = sum(row.standing.surely_overdue for row in rows)
    return overdue >= STOPPED_ENTRIES and overdue == sum(_expected(row) for row in rows)


def _expected(row: Scheduled) -> bool:
    return row.standing.last_at is not None and (row.standing.next is not None or row.standing.overdue is not None)


def _runs(store: Store, cluster: str, entries: Sequence[ScheduleEntry], now: float, most: int) -> dict[str, Runs]:
    since = now - WINDOW_SECONDS
    found = runs_of(store, cluster, entries, since, most)
    # Where not all of the window was looked at, nothing older would be.
    none = [entry for entry in entries if not found[entry.name].runs and found[entry.name].since <= since]
    return found | (runs_of(store, cluster, none, now - LAST_SECONDS, LEAST_RUNS) if none else {})
