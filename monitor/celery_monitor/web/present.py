"""A view becomes HTML: the whole page for a request, its live regions and rows for open browsers.

The shell is what every page has around it: clusters, navigation with counts, banners.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlencode

import msgspec
from jinja2 import Environment, Template
from jinja2.runtime import Context as TemplateContext
from markupsafe import Markup
from starlette.datastructures import QueryParams
from starlette.routing import compile_path

from celery_monitor.control.commands import Allowed
from celery_monitor.core.filters.parser import UNHANDLED
from celery_monitor.core.filters.scope import UNLIMITED, Limits
from celery_monitor.core.filters.terms import exactly
from celery_monitor.core.health.findings import Finding
from celery_monitor.core.health.judgement import banners
from celery_monitor.errors import Forbidden, NotFound
from celery_monitor.records.alert import Alert
from celery_monitor.records.page import Count
from celery_monitor.records.queue import Queue
from celery_monitor.records.user import Role
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.store.accounts.limited import limited, limited_settings
from celery_monitor.store.alerts.states import count_firing, read_alerts
from celery_monitor.store.engine import Store
from celery_monitor.store.health import read_banner_facts
from celery_monitor.store.queues import read_queues
from celery_monitor.store.receivers import read_clusters
from celery_monitor.store.rollups.failures import read_open_groups
from celery_monitor.store.tasks.page import count_states, count_unhandled
from celery_monitor.web.pages import Context, Page, View
from celery_monitor.web.problems import guarded
from celery_monitor.web.render import link
from celery_monitor.web.security.reach import allows
from celery_monitor.web.wording import brief, counted, number, visible

BASE = "base.html"  # has the blocks of the shell
SHELL_REGIONS = ("shell_nav", "shell_banners")
FRESH_SECONDS = 0.4  # views of one refresh share one shell
MOST_CACHED = 32
DAY = 86400.0  # default range of the failures page
BRIEF = 5  # characters
FIRING_LISTED = 10  # of which a browser may notify
FIRST = frozenset({"overview", "tasks", "queues", "workers"})  # and failed tasks


@dataclass(frozen=True, slots=True)
class NavItem:
    """One entry of the navigation."""

    path: str
    label: str
    icon: str
    query: dict[str, str] = field(default_factory=dict)
    count: str | None = None
    means: str = ""  # title of the count
    alarm: bool = False
    current: bool = False
    first: bool = False  # one of the five shown on a phone

    @property
    def brief(self) -> str | None:
        """The count in at most five characters: ``2/3``, ``12 k``; of many workers, how many are up."""
        if self.count is None or len(self.count) <= BRIEF:
            return self.count
        more = "+" if self.count.endswith("+") else ""
        return brief(int(re.sub(r"/.*|\D", "", self.count))) + more


@dataclass(frozen=True, slots=True)
class Shell:
    """What surrounds a view of one cluster or of all; ``nav`` differs by view."""

    clusters: tuple[str, ...]
    failed: Count  # that still need attention
    banners: tuple[Finding, ...]
    firing: tuple[Alert, ...]  # the latest of FIRING_LISTED
    counts: Mapping[str, tuple[str | None, str]]  # of the navigation entries, with their titles
    nav: tuple[NavItem, ...] = ()
    firing_count: int = 0

    @property
    def firing_json(self) -> str:
        """For the notifications of a browser."""
        shown = [
            {"id": each.id, "title": visible(each.rule), "text": visible(each.measured.text)} for each in self.firing
        ]
        return msgspec.json.encode(shown).decode()


class ShellReader:
    """Reads the shell of a view; the part that views share is cached for FRESH_SECONDS."""

    def __init__(self, pages: Iterable[Page]) -> None:
        self._pages = [page for page in pages if page.nav]
        self._cache: dict[tuple[str | None, Limits], tuple[float, Shell]] = {}
        self._lock = Lock()

    def read(self, view: View) -> Shell:
        shell = self._shared(view)
        return replace(shell, nav=tuple(self._nav(view, shell)))

    def _shared(self, view: View) -> Shell:
        key = view.cluster, view.store.limits
        with self._lock:
            read_at, shell = self._cache.get(key, (0.0, None))
            if shell is None or time.monotonic() - read_at > FRESH_SECONDS:
                shell = read_shell(view.store, view.settings.clusters, view.cluster, view.now)
                if len(self._cache) >= MOST_CACHED:  # anybody may put any cluster name into a URL
                    self._cache.clear()
                self._cache[key] = (time.monotonic(), shell)
            return shell

    def _nav(self, view: View, shell: Shell) -> Iterable[NavItem]:
        failed = view.path == "/tasks" and view.query.get("q") == UNHANDLED
        for page in self._pages:
            if not allows(page.access, view.store.limits):
                continue
            noun = page.path.strip("/") or "overview"
            current = not failed and (view.path == page.path or view.path.startswith(f"{page.path}/"))
            count, means = shell.counts.get(noun, (None, ""))
            alarm = noun == "alerts" and bool(shell.firing)
            first = noun in FIRST
            yield NavItem(page.path, page.nav or "", noun, {}, count, means, alarm=alarm, current=current, first=first)
            if noun == "tasks":
                yield _failed_item(shell.failed, current=failed)


def _failed_item(failed: Count, *, current: bool) -> NavItem:
    return NavItem(
        "/tasks",
        "Failed tasks",
        "failed",
        {"q": UNHANDLED},
        counted(failed),
        "failed tasks that nobody retried, muted or resolved",
        alarm=failed.value > 0,
        current=current,
        first=True,
    )


def read_shell(store: Store, configured: tuple[str, ...], cluster: str | None, now: float) -> Shell:
    """The part of the shell that all views of a cluster share."""
    facts, states = read_banner_facts(store, cluster, now), count_states(store, cluster)
    up = sum(worker.status is not WorkerStatus.OFFLINE for worker in facts.workers)
    groups = read_open_groups(store, since=now - DAY, cluster=cluster)
    waiting = _waiting(read_queues(store, cluster))
    firing = count_firing(store, cluster)
    return Shell(
        clusters=tuple(sorted({*read_clusters(store), *configured})),
        failed=count_unhandled(store, cluster, now),
        banners=banners(facts),
        firing=tuple(read_alerts(store, cluster=cluster, limit=FIRING_LISTED)) if firing else (),
        firing_count=firing,
        counts={
            "alerts": (number(firing), "alerts that fire now"),
            "tasks": (number(sum(states.values())), "recorded tasks"),
            "failures": (number(groups), "open failures of the last 24 h"),
            "queues": (None if waiting is None else number(waiting), "queues with waiting tasks"),
            "workers": (f"{number(up)}/{number(len(facts.workers))}", "workers up, of all recorded"),
        },
    )


def _waiting(queues: Iterable[Queue]) -> int | None:
    """Number of queues with waiting messages; ``None`` if no depth is known."""
    depths = [queue.ready for queue in queues if queue.ready is not None]
    return sum(depth > 0 for depth in depths) if depths else None


def address(view: View) -> str:
    """Path and query of this view, below the prefix."""
    query = urlencode(view.query.multi_items())
    return view.path + (f"?{query}" if query else "")


@dataclass(frozen=True, slots=True)
class Watched:
    """A view that a browser has open. Browsers with an equal one share its snapshot."""

    address: str  # path and query below the prefix
    base: str
    role: Role
    limits: Limits = UNLIMITED
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RowSet:
    """The rows of a region: the keys in order, and the HTML of each and of the extra rows."""

    order: tuple[str, ...]
    html: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ViewSnapshot:
    """The parts of a view that may change."""

    regions: Mapping[str, str]
    rows: Mapping[str, RowSet]


class Presenter:
    """Reads and renders the pages."""

    def __init__(
        self,
        pages: Iterable[Page],
        environment: Environment,
        store: Store,
        settings: Settings,
        commands: Mapping[str, Allowed],
    ) -> None:
        self.pages = tuple(pages)
        self._environment = environment
        self._store = store
        self._settings = settings
        self._commands = commands
        self._shell = ShellReader(self.pages)
        self._patterns = [(compile_path(page.path), page) for page in self.pages]

    def view(
        self,
        path: str,
        query: QueryParams,
        base: str,
        role: Role,
        params: Mapping[str, Any],
        limits: Limits = UNLIMITED,
        extra: tuple[str, ...] = (),
    ) -> View:
        store, settings = limited(self._store, limits), limited_settings(self._settings, limits)
        scope = limits.scope
        roles = {action: each.role for action, each in self._commands.items() if each.in_part or not scope.is_partial}
        return View(path, query, store, settings, time.time(), base, role, roles, params, extra)

    def find(self, watched: Watched) -> tuple[Page, View]:
        """The page at an address. Raises NotFound and Forbidden."""
        path, _, query = watched.address.partition("?")
        plain = unquote(path, errors="replace")
        for (regex, _, convertors), page in self._patterns:
            match = regex.match(plain)
            if match:
                params = {name: convertors[name].convert(value) for name, value in match.groupdict().items()}
                if not allows(page.access, watched.limits):
                    raise Forbidden("This page is outside of your scope.")
                limits, extra = watched.limits, watched.extra
                return page, self.view(path, QueryParams(query), watched.base, watched.role, params, limits, extra)
        raise NotFound(f"There is no page at {path}.")

    def html(self, page: Page, view: View, request_context: Context) -> str:
        """The whole page. ``request_context``: actor, token, notice, theme."""
        template = self._environment.get_template(page.template)
        prepared = self._guarded(template, page, self._context(page, view) | request_context)
        return "".join(template.root_render_func(prepared))

    def bare(self, template: str, view: View, request_context: Context) -> str:
        """A page without a context of its own, such as an error."""
        return self._environment.get_template(template).render(self._common(view) | request_context)

    def snapshot(self, watched: Watched) -> ViewSnapshot:
        """Reads and renders the live regions and rows. Raises MonitorError as the page does."""
        page, view = self.find(watched)
        context = self._context(page, view) | {"csrf_field": csrf_field("")}
        template = self._environment.get_template(page.template)
        prepared = self._guarded(template, page, context)
        next(template.root_render_func(prepared))  # up to the first output: imports, macros and inherited blocks
        regions = {name: "".join(prepared.blocks[name][0](prepared)) for name in (*SHELL_REGIONS, *page.regions)}
        return ViewSnapshot(regions, {name: self._rows(page, name, context) for name in page.rows})

    def _guarded(self, template: Template, page: Page, context: Context) -> TemplateContext:
        """The context of a template whose regions fail alone."""
        prepared = template.new_context(context)
        inherited = self._environment.get_template(BASE).blocks
        for name in (*SHELL_REGIONS, *page.regions):
            own = prepared.blocks.setdefault(name, [])
            own[:1] = [guarded(page.template, name, own[0] if own else inherited[name])]
        return prepared

    def _rows(self, page: Page, name: str, context: Context) -> RowSet:
        rows = page.rows[name]
        row: Callable[[Any], Markup] = self._environment.get_template(rows.template).make_module(context).row  # type: ignore[attr-defined]
        items = list(context[rows.items])
        html = {rows.key(item): str(row(item)) for item in [*context["extra"], *items]}
        return RowSet(tuple(rows.key(item) for item in items), html)

    def _context(self, page: Page, view: View) -> Context:
        common = self._common(view) | {"title": page.title, "script": page.script, "extra": ()}
        return common | page.context(view)

    def _common(self, view: View) -> Context:
        return {
            "view": view,
            "shell": self._shell.read(view),
            "url": make_url(view),
            "asset": make_asset(view.base, str(self._environment.globals["static"])),
            "live_view": address(view),
            "term": exactly,
        }


def csrf_field(token: str) -> Markup:
    """The hidden field of a form. In live regions, which users share, it is empty and app.js fills it in."""
    return Markup('<input type="hidden" name="csrf_token" value="{}">').format(token)


def make_url(view: View) -> Callable[..., str]:
    """``url(path, name=value)``: a link below the prefix that keeps the selected cluster."""

    def url(path: str, **query: object) -> str:
        return link(view.base, str(path), {"cluster": view.cluster} | query)

    return url


def make_asset(base: str, static: str) -> Callable[[str], str]:
    """``asset(file)``: the address of a static file."""

    def asset(name: str) -> str:
        return f"{base}{static}/{name}"

    return asset
