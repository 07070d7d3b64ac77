"""What stands around every page: clusters, navigation with counts, and what must be said first."""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from threading import Lock

from celery_monitor.core.filters.parser import UNHANDLED, parse
from celery_monitor.core.findings import Finding
from celery_monitor.core.health import banners
from celery_monitor.records.page import Count
from celery_monitor.records.queue import Queue
from celery_monitor.records.task import TaskState
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.store.engine import Store
from celery_monitor.store.health import read_banner_facts
from celery_monitor.store.queues import read_queues
from celery_monitor.store.receivers import read_clusters
from celery_monitor.store.rollups.failures import read_open_groups
from celery_monitor.store.tasks.page import count_states, count_tasks
from celery_monitor.web.pages import Page, View
from celery_monitor.web.wording import brief, counted, number

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
        return brief(int(re.sub(r"/.*|\D", "", self.count))) + more


@dataclass(frozen=True, slots=True)
class Shell:
    """What stands around a view of the clusters (or of one); ``nav`` is the view's own."""

    clusters: tuple[str, ...]
    failed: Count  # that still need somebody
    banners: tuple[Finding, ...]
    counts: Mapping[str, tuple[str | None, str]]  # beside the entries of the navigation, and what they mean
    nav: tuple[NavItem, ...] = ()


class ShellReader:
    """Reads the shell of a view; what views have in common is read once."""

    def __init__(self, pages: Iterable[Page]) -> None:
        self._pages = [page for page in pages if page.nav]
        self._known: dict[str | None, tuple[float, Shell]] = {}
        self._lock = Lock()

    def read(self, view: View) -> Shell:
        shell = self._shared(view)
        return replace(shell, nav=tuple(self._nav(view, shell)))

    def _shared(self, view: View) -> Shell:
        with self._lock:
            read_at, shell = self._known.get(view.cluster, (0.0, None))
            if shell is None or time.monotonic() - read_at > FRESH_SECONDS:
                shell = read_shell(view.store, view.settings.clusters, view.cluster, view.now)
                if len(self._known) >= MOST_KNOWN:  # the name of a cluster comes from an address that anybody may type
                    self._known.clear()
                self._known[view.cluster] = (time.monotonic(), shell)
            return shell

    def _nav(self, view: View, shell: Shell) -> Iterable[NavItem]:
        failed = view.path == "/tasks" and view.query.get("q") == UNHANDLED
        for page in self._pages:
            noun = page.path.strip("/") or "overview"
            current = not failed and (view.path == page.path or view.path.startswith(f"{page.path}/"))
            count, means = shell.counts.get(noun, (None, ""))
            yield NavItem(
                page.path, page.nav or "", noun, count=count, means=means, current=current, first=noun in FIRST
            )
            if noun == "tasks":
                yield _failed_item(shell.failed, current=failed)


def _failed_item(failed: Count, *, current: bool) -> NavItem:
    return NavItem(
        "/tasks",
        "Failed",
        "failed",
        {"q": UNHANDLED},
        counted(failed),
        "failed tasks that nobody retried, muted or resolved",
        alarm=failed.value > 0,
        current=current,
    )


def read_shell(store: Store, configured: tuple[str, ...], cluster: str | None, now: float) -> Shell:
    """What views of one cluster, or of all, have in common."""
    facts, states = read_banner_facts(store, cluster, now), count_states(store, cluster)
    up = sum(worker.status is not WorkerStatus.OFFLINE for worker in facts.workers)
    groups = read_open_groups(store, since=now - DAY, cluster=cluster)
    waiting = _waiting(read_queues(store, cluster))
    return Shell(
        clusters=tuple(sorted({*read_clusters(store), *configured})),
        failed=unhandled(store, cluster, states[TaskState.FAILURE], now),
        banners=banners(facts),
        counts={
            "tasks": (number(sum(states.values())), "tasks in the record"),
            "failures": (number(groups), "open failures of the last 24 h"),
            "queues": (None if waiting is None else number(waiting), "queues with waiting tasks"),
            "workers": (f"{number(up)}/{number(len(facts.workers))}", "workers up, of all known"),
        },
    )


def unhandled(store: Store, cluster: str | None, failed: int, now: float) -> Count:
    """Failed tasks that still need somebody: what the query UNHANDLED lists."""
    if not failed:
        return Count(0)
    return count_tasks(store, parse(UNHANDLED, now).in_cluster(cluster))


def _waiting(queues: Iterable[Queue]) -> int | None:
    """In how many queues something waits; ``None``: no depth is known."""
    depths = [queue.ready for queue in queues if queue.ready is not None]
    return sum(depth > 0 for depth in depths) if depths else None
