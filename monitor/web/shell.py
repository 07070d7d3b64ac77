"""What stands around every page: clusters, navigation with counts, and what must be said first."""

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field
from threading import Lock

from monitor.filters import UNHANDLED
from monitor.filters import parse
from monitor.records import Count
from monitor.records import Queue
from monitor.records import TaskState
from monitor.records import WorkerStatus
from monitor.store import queries
from monitor.store.engine import Store
from monitor.web import wording
from monitor.web.banners import Banner
from monitor.web.banners import banners
from monitor.web.banners import gaps_shown_since
from monitor.web.pages import Page
from monitor.web.pages import View
from monitor.web.receivers import read_health

FRESH_SECONDS = 0.4  # several views of one refresh share what is read here
MOST_KNOWN = 32
DAY = 86400.0  # the time of the page of failures
BRIEF = 5
FIRST = frozenset({"overview", "tasks", "failures", "queues", "workers"})


@dataclass(frozen=True, slots=True)
class NavItem:
    """One entry of the navigation."""

    path: str
    label: str
    icon: str
    query: dict[str, str] = field(default_factory=dict)
    count: str | None = None
    means: str = ""  # what the count counts
    alarm: bool = False
    current: bool = False
    first: bool = False  # one of the five that a phone shows

    @property
    def brief(self) -> str | None:
        """The count where there is room for five characters: ``2/3``, of many workers those that are up, ``12 k``."""
        if self.count is None or len(self.count) <= BRIEF:
            return self.count
        more = "+" if self.count.endswith("+") else ""
        return wording.brief(int(re.sub(r"/.*|\D", "", self.count))) + more


@dataclass(frozen=True, slots=True)
class Facts:
    """What the shell knows of the clusters (or of one)."""

    clusters: tuple[str, ...]
    tasks: Count
    failed: Count  # that still need somebody
    groups: int  # of failures of the last day that nobody has resolved or muted
    waiting: int | None  # queues in which something waits; None: no depth is known
    workers: int
    workers_up: int
    banners: tuple[Banner, ...]

    def count_for(self, noun: str) -> tuple[str | None, str]:
        """What stands beside an entry of the navigation, and what it means."""
        if noun == "tasks":
            return wording.counted(self.tasks), "tasks in the record"
        if noun == "failures":
            return wording.number(self.groups), "open failures of the last 24 h"
        if noun == "queues":
            return (None if self.waiting is None else wording.number(self.waiting)), "queues with waiting tasks"
        if noun == "workers":
            return f"{wording.number(self.workers_up)}/{wording.number(self.workers)}", "workers up, of all known"
        return None, ""


@dataclass(frozen=True, slots=True)
class Shell:
    """The facts and the navigation of one view."""

    clusters: tuple[str, ...]
    failed: Count
    banners: tuple[Banner, ...]
    nav: tuple[NavItem, ...]


class ShellReader:
    """Reads the shell of a view; what views have in common is read once."""

    def __init__(self, pages: Iterable[Page]) -> None:
        self._pages = [page for page in pages if page.nav]
        self._known: dict[str | None, tuple[float, Facts]] = {}
        self._lock = Lock()

    def read(self, view: View) -> Shell:
        facts = self._facts(view)
        return Shell(facts.clusters, facts.failed, facts.banners, tuple(self._nav(view, facts)))

    def _facts(self, view: View) -> Facts:
        with self._lock:
            read_at, facts = self._known.get(view.cluster, (0.0, None))
            if facts is None or time.monotonic() - read_at > FRESH_SECONDS:
                facts = read_facts(view.store, view.settings.clusters, view.cluster, view.now)
                if len(self._known) >= MOST_KNOWN:  # the name of a cluster comes from an address that anybody may type
                    self._known.clear()
                self._known[view.cluster] = (time.monotonic(), facts)
            return facts

    def _nav(self, view: View, facts: Facts) -> Iterable[NavItem]:
        failed = view.path == "/tasks" and view.query.get("q") == UNHANDLED
        for page in self._pages:
            noun = page.path.strip("/") or "overview"
            current = not failed and (view.path == page.path or view.path.startswith(f"{page.path}/"))
            count, means = facts.count_for(noun)
            yield NavItem(
                page.path, page.nav or "", noun, count=count, means=means, current=current, first=noun in FIRST
            )
            if noun == "tasks":
                yield _failed_item(facts, current=failed)


def _failed_item(facts: Facts, *, current: bool) -> NavItem:
    return NavItem(
        "/tasks",
        "Failed",
        "failed",
        {"q": UNHANDLED},
        wording.counted(facts.failed),
        "failed tasks that nobody retried, muted or resolved",
        alarm=facts.failed.value > 0,
        current=current,
    )


def read_facts(store: Store, configured: tuple[str, ...], cluster: str | None, now: float) -> Facts:
    """The facts of one cluster, or of all."""
    counts = queries.state_counts(store, cluster)
    workers = queries.workers(store, cluster)
    health = [each for each in read_health(store, now) if cluster in (None, each.cluster)]
    gaps = queries.gaps(store, gaps_shown_since(now), cluster)
    return Facts(
        clusters=tuple(sorted({*queries.clusters(store), *configured})),
        tasks=Count(sum(counts.values())),
        failed=unhandled(store, cluster, counts[TaskState.FAILURE], now),
        groups=queries.open_groups(store, since=now - DAY, cluster=cluster),
        waiting=_waiting(queries.queues(store, cluster)),
        workers=len(workers),
        workers_up=sum(worker.status is not WorkerStatus.OFFLINE for worker in workers),
        banners=banners(health, workers, gaps, now),
    )


def unhandled(store: Store, cluster: str | None, failed: int, now: float) -> Count:
    """Failed tasks that still need somebody: what the query UNHANDLED lists."""
    if not failed:
        return Count(0)
    return queries.count(store, parse(UNHANDLED, now).in_cluster(cluster))


def _waiting(queues: Iterable[Queue]) -> int | None:
    depths = [queue.ready for queue in queues if queue.ready is not None]
    return sum(depth > 0 for depth in depths) if depths else None
