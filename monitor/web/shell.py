"""What stands around every page: clusters, navigation with counts, and what must be said first."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field
from threading import Lock

from monitor.records import Count
from monitor.records import TaskState
from monitor.records import WorkerStatus
from monitor.store import queries
from monitor.store.engine import Store
from monitor.web.banners import Banner
from monitor.web.banners import banners
from monitor.web.banners import gaps_shown_since
from monitor.web.pages import Page
from monitor.web.pages import View
from monitor.web.receivers import read_health

FRESH_SECONDS = 0.4  # several views of one refresh share what is read here
MOST_KNOWN = 32
FIRST = frozenset({"overview", "tasks", "failures", "queues", "workers"})
FAILED_QUERY = "state:failed"


@dataclass(frozen=True, slots=True)
class NavItem:
    """One entry of the navigation."""

    path: str
    label: str
    icon: str
    query: dict[str, str] = field(default_factory=dict)
    count: Count | None = None
    alarm: bool = False
    current: bool = False
    first: bool = False  # one of the five that a phone shows


@dataclass(frozen=True, slots=True)
class Facts:
    """What the shell knows of the clusters (or of one)."""

    clusters: tuple[str, ...]
    tasks: Count
    failed: Count
    queues: Count
    workers: Count
    banners: tuple[Banner, ...]

    def count_for(self, noun: str) -> Count | None:
        known = {"tasks": self.tasks, "failed": self.failed, "queues": self.queues, "workers": self.workers}
        return known.get(noun)


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
        failed = view.path == "/tasks" and view.query.get("q") == FAILED_QUERY
        for page in self._pages:
            noun = page.path.strip("/") or "overview"
            current = not failed and (view.path == page.path or view.path.startswith(f"{page.path}/"))
            count = facts.count_for(noun)
            yield NavItem(page.path, page.nav or "", noun, count=count, current=current, first=noun in FIRST)
            if noun == "tasks":
                alarm = facts.failed.value > 0
                yield NavItem("/tasks", "Failed", "failed", {"q": FAILED_QUERY}, facts.failed, alarm, failed)


def read_facts(store: Store, configured: tuple[str, ...], cluster: str | None, now: float) -> Facts:
    """The facts of one cluster, or of all."""
    counts = queries.state_counts(store, cluster)
    workers = queries.workers(store, cluster)
    health = [each for each in read_health(store, now) if cluster in (None, each.cluster)]
    gaps = queries.gaps(store, gaps_shown_since(now), cluster)
    return Facts(
        clusters=tuple(sorted({*queries.clusters(store), *configured})),
        tasks=Count(sum(counts.values())),
        failed=Count(counts.get(TaskState.FAILURE, 0)),
        queues=Count(len(queries.queues(store, cluster))),
        workers=Count(sum(worker.status is not WorkerStatus.OFFLINE for worker in workers)),
        banners=banners(health, workers, gaps, now),
    )
