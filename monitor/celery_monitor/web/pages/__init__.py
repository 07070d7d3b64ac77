"""What a page is. One noun in every place: ``pages/tasks.py`` · ``templates/tasks.html`` · ``/tasks``.

To add a page:

1. ``monitor/celery_monitor/web/pages/queues.py`` reads the store and declares itself::

       def context(view: View) -> Context:
           return {"queues": queries.queues(view.store, view.cluster)}

       PAGE = Page("/queues", "queues.html", context, title="Queues", nav="Queues", regions=("queues",),
                   rows={"queues": Rows("_queue_row.html", "queues", key=lambda queue: queue.name)})

   ``context`` runs in a thread, for the page and for its live update alike; it must depend on nothing but the view.
   Raise a MonitorError (NotFound ...) and the reader sees it as a page.
2. ``templates/queues.html`` extends ``base.html`` and fills ``{% block content %}``. Each live region is a block of the
   same name around **one element with** ``id="region-<name>"``::

       {% block queues %}<section id="region-queues">...</section>{% endblock %}

   It is rendered again after a commit and sent only if its HTML changed: so write times with ``{{ at | moment }}``
   (``ago``, ``clock`` or ``since``), never as text that depends on now. A value that should tint when it changes
   stands in an element with ``data-tint``.
3. A region with rows that come and go is declared in ``rows`` instead of ``regions``: the block's element
   ``<tbody id="region-queues" data-rows>`` has one element per item, made by the partial, with
   ``data-key="{{ key | verbatim }}"``. Only changed rows are sent. With ``data-hold`` on the ``<tbody>``, new rows wait
   behind "+12 new"; without, they are put in place at once. ``context["held"]`` has the items of ``view.held``: rows
   that a browser still shows, though newer ones have taken their place; they are kept true as well.
4. Add ``queues.PAGE`` to ``PAGES`` in ``monitor/celery_monitor/web/app.py``; ``nav`` makes it appear in the
navigation, in that order.
5. A form posts to an address declared in ``actions``: ``{"enable-events": enable}`` serves
   ``POST /queues/enable-events`` with ``enable(view, request) -> Result``: where to go next, or what to show instead.
   The form has ``{{ csrf_field }}``. Everything that changes a cluster goes through ``request.controller.perform``.
6. Styles of its own go into ``static/css/<noun>.css`` (imported by ``static/css/index.css``), scripts of its own into
   ``static/<noun>.js``, named in ``Page.script``.

Every template may use: ``view``, ``url(path, name=value ...)`` (keeps prefix and cluster), ``asset(file)``, and the
macros of ``_macros.html``: ``state``, ``task_link``, ``worker_link``, ``queue_link``, ``name_link``, ``number``,
``spell``, ``since``. Every string is escaped and shows its hidden characters by itself; use ``| verbatim`` in form
values and ``data-`` attributes alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.datastructures import FormData, QueryParams

from celery_monitor.control.bulk import BulkCommand, BulkRetry
from celery_monitor.control.commands import Actor, Command, Performed
from celery_monitor.control.perform import REQUIRED_ROLE
from celery_monitor.records.job import Job
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store

Context = dict[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """What somebody looks at: all that is needed to read it again. ``cluster`` None: all of them."""

    path: str
    query: QueryParams
    store: Store
    settings: Settings
    now: float
    base: str = ""  # the prefix we are mounted under
    role: Role = Role.VIEWER
    params: Mapping[str, Any] = field(default_factory=dict)  # parts of the path
    held: tuple[str, ...] = ()  # keys of rows that a browser still shows, though others have taken their place

    @property
    def cluster(self) -> str | None:
        return self.query.get("cluster") or None

    def may(self, action: str) -> bool:
        """Whether to offer an action. The door decides again when it is asked for."""
        return not self.settings.read_only and self.role >= REQUIRED_ROLE[action]


@dataclass(frozen=True, slots=True)
class Rows:
    """A region made of rows: each item of ``context[items]`` is rendered by the macro ``row`` of ``template``."""

    template: str
    items: str
    key: Callable[[Any], str]


class Door(Protocol):
    """The one door to everything that changes a cluster: celery_monitor.control.perform.Controller."""

    def perform(self, actor: Actor, command: Command) -> Performed: ...

    def preview(self, actor: Actor, command: BulkCommand) -> Job: ...

    def look_again(self, actor: Actor, command: BulkRetry, *, include_retried: bool) -> Job: ...


class Jobs(Protocol):
    """What works at jobs: celery_monitor.control.jobs.Runner."""

    def start(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FormRequest:
    """What somebody asks to be done: who, with which form, through which door."""

    actor: Actor
    controller: Door
    form: FormData
    jobs: Jobs


@dataclass(frozen=True, slots=True)
class Result:
    """What follows a form: go ``to`` a path (303) with a ``notice``, or show the page again with ``context`` added."""

    to: str | None = None
    query: Mapping[str, object] = field(default_factory=dict)
    notice: str | None = None
    tone: str = "good"  # good, warning, bad
    link: str | None = None  # path that the notice leads to, with its query
    link_query: Mapping[str, object] = field(default_factory=dict)
    context: Context = field(default_factory=dict)
    status: int = 200


Act = Callable[[View, FormRequest], Result]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the dashboard; see the module's text."""

    path: str
    template: str
    context: Callable[[View], Context]
    title: str
    nav: str | None = None
    regions: tuple[str, ...] = ()
    rows: Mapping[str, Rows] = field(default_factory=dict)
    actions: Mapping[str, Act] = field(default_factory=dict)
    script: str | None = None
