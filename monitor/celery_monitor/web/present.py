"""A view becomes HTML: the whole page for a request, its live regions and rows for those who watch."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlencode

from jinja2 import Environment
from markupsafe import Markup
from starlette.datastructures import QueryParams
from starlette.routing import compile_path

from celery_monitor.core.filters.terms import exactly
from celery_monitor.errors import NotFound
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.web.pages import Context, Page, View
from celery_monitor.web.render import link
from celery_monitor.web.shell import ShellReader

SHELL_REGIONS = ("shell_nav", "shell_banners")


def address(view: View) -> str:
    """The path and query that bring this view back."""
    query = urlencode(view.query.multi_items())
    return view.path + (f"?{query}" if query else "")


@dataclass(frozen=True, slots=True)
class Watched:
    """What a browser says it looks at. Equal ones are read once for all who share them."""

    address: str  # path and query below the prefix
    base: str
    role: Role
    held: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RowSet:
    """The rows of a region: which, in what order, and the HTML of each and of those held beside them."""

    order: tuple[str, ...]
    html: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ViewSnapshot:
    """Everything of a view that may change."""

    regions: Mapping[str, str]
    rows: Mapping[str, RowSet]


class Presenter:
    """Knows the pages; reads and renders them."""

    def __init__(self, pages: Iterable[Page], environment: Environment, store: Store, settings: Settings) -> None:
        self.pages = tuple(pages)
        self._environment = environment
        self._store = store
        self._settings = settings
        self._shell = ShellReader(self.pages)
        self._patterns = [(compile_path(page.path), page) for page in self.pages]

    def view(
        self,
        path: str,
        query: QueryParams,
        base: str,
        role: Role,
        params: Mapping[str, Any],
        held: tuple[str, ...] = (),
    ) -> View:
        return View(path, query, self._store, self._settings, time.time(), base, role, params, held)

    def find(self, watched: Watched) -> tuple[Page, View]:
        """The page at an address. Raises NotFound."""
        path, _, query = watched.address.partition("?")
        plain = unquote(path, errors="replace")
        for (regex, _, convertors), page in self._patterns:
            match = regex.match(plain)
            if match:
                params = {name: convertors[name].convert(value) for name, value in match.groupdict().items()}
                return page, self.view(path, QueryParams(query), watched.base, watched.role, params, watched.held)
        raise NotFound(f"There is no page at {path}.")

    def html(self, page: Page, view: View, extra: Context) -> str:
        """The whole page. ``extra`` has what belongs to the request: actor, token, notice, theme."""
        return self._environment.get_template(page.template).render(self._context(page, view) | extra)

    def bare(self, template: str, view: View, extra: Context) -> str:
        """A page that has nothing of its own, such as an error."""
        return self._environment.get_template(template).render(self._common(view) | extra)

    def snapshot(self, watched: Watched) -> ViewSnapshot:
        """Reads and renders what may have changed. Raises MonitorError as the page would."""
        page, view = self.find(watched)
        context = self._context(page, view) | {"csrf_field": csrf_field("")}
        template = self._environment.get_template(page.template)
        prepared = template.new_context(context)
        next(template.root_render_func(prepared))  # up to the first output: imports, macros and inherited blocks
        regions = {name: "".join(prepared.blocks[name][0](prepared)) for name in (*SHELL_REGIONS, *page.regions)}
        return ViewSnapshot(regions, {name: self._rows(page, name, context) for name in page.rows})

    def _rows(self, page: Page, name: str, context: Context) -> RowSet:
        rows = page.rows[name]
        row: Callable[[Any], Markup] = self._environment.get_template(rows.template).make_module(context).row  # type: ignore[attr-defined]
        items = list(context[rows.items])
        html = {rows.key(item): str(row(item)) for item in [*context["held"], *items]}
        return RowSet(tuple(rows.key(item) for item in items), html)

    def _context(self, page: Page, view: View) -> Context:
        common = self._common(view) | {"title": page.title, "script": page.script, "held": ()}
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
    """The hidden field of a form. Live regions are shared by users: there it is empty, and the script fills it."""
    return Markup('<input type="hidden" name="csrf_token" value="{}">').format(token)


def make_url(view: View) -> Callable[..., str]:
    """``url(path, name=value)``: a link below our prefix that stays in the cluster looked at."""

    def url(path: str, **query: object) -> str:
        return link(view.base, str(path), {"cluster": view.cluster} | query)

    return url


def make_asset(base: str, static: str) -> Callable[[str], str]:
    """``asset(file)``: the address of a static file."""

    def asset(name: str) -> str:
        return f"{base}{static}/{name}"

    return asset
