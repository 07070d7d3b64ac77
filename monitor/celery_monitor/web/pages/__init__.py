"""Pages. One noun in every place: ``pages/tasks.py`` · ``templates/tasks.html`` · ``/tasks``.

To add a page:

1. ``monitor/celery_monitor/web/pages/queues.py`` reads the store and declares the page::

       def context(view: View) -> Context:
           return {"queues": queries.queues(view.store, view.cluster)}

       PAGE = Page("/queues", "queues.html", context, title="Queues", nav="Queues", regions=("queues",),
                   rows={"queues": Rows("_queue_row.html", "queues", key=lambda queue: queue.name)})

   ``context`` runs in a thread, for the page and for its live update; it must depend on the view only. A MonitorError
   (NotFound ...) becomes an error page.
2. ``templates/queues.html`` extends ``base.html`` and fills ``{% block content %}``. Each live region is a block of the
   same name around **one element with** ``id="region-<name>"``::

       {% block queues %}<section id="region-queues">...</section>{% endblock %}

   It is rendered again after a commit and sent only if its HTML changed. So write times with ``{{ at | moment }}``
   (``ago``, ``clock`` or ``since``), never as text that depends on now. An element with ``data-tint`` is tinted when
   its value changes.
3. A region whose rows change is declared in ``rows`` instead of ``regions``: the block's element
   ``<tbody id="region-queues" data-rows>`` has one element per item, rendered by the partial, with
   ``data-key="{{ key | verbatim }}"``. Only changed rows are sent. With ``data-hold`` on the ``<tbody>``, new rows wait
   behind "+12 new"; without, they are inserted at once. ``context["extra"]`` has the items of ``view.extra``: rows that
   a browser still shows though they left the page; they are updated as well.
4. Add ``queues.PAGE`` to ``PAGES`` in ``monitor/celery_monitor/web/app.py``; ``nav`` makes it appear in the
   navigation, in that order.
5. A form posts to a path declared in ``actions``: ``{"enable-events": enable}`` serves
   ``POST /queues/enable-events`` with ``enable(view, request) -> Result``: a redirect, or the page with more context.
   The form has ``{{ csrf_field }}``. Everything that changes a cluster goes through ``request.controller.perform``.
6. Its styles go into ``static/css/<noun>.css`` (imported by ``static/css/index.css``), its script into
   ``static/<noun>.js``, named in ``Page.script``.

7. ``access=IN_PART`` opens the page to users with a scope, and to viewers who may not see
   arguments: ``view.store`` has only what is inside then. What is read elsewhere (a broker, a worker) must be compared
   with ``view.store.limits``.

8. A list without a bound is paged: ``part_of(view, rows)``, and the macro ``pages_of`` below its table.

Every template may use: ``view``, ``url(path, name=value ...)`` (keeps prefix and cluster), ``asset(file)``, and the
macros of ``_macros.html``: ``state``, ``task_link``, ``worker_link``, ``queue_link``, ``name_link``, ``number``,
``duration_of``, ``since``. Every string is escaped and its hidden characters are made visible; use ``| verbatim`` only
in form values and ``data-`` attributes.

A form is parsed into a command, which is performed; the answer is a redirect with the outcome.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

from msgspec.inspect import BoolType, FloatType, Type, VarTupleType
from starlette.datastructures import FormData, QueryParams

from celery_monitor.control.commands import (
    ClusterCommand,
    Command,
    given_fields,
    is_whole,
    kinds_of,
    noted,
    plain,
)
from celery_monitor.control.perform import Controller, JobRunner
from celery_monitor.errors import InvalidInput, MonitorError
from celery_monitor.records.user import Actor, Role
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.web.security.reach import Access

Context = dict[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """A requested page with its parameters: all that is needed to read it again."""

    path: str
    query: QueryParams
    store: Store
    settings: Settings
    now: float
    base: str = ""  # the URL prefix
    role: Role = Role.VIEWER
    required_roles: Mapping[str, Role] = field(default_factory=dict)  # by action, of those that the scope allows
    params: Mapping[str, Any] = field(default_factory=dict)  # of the path
    extra: tuple[str, ...] = ()  # keys of rows that the browser still shows, though they left the page

    @property
    def cluster(self) -> str | None:
        """The selected cluster; ``None`` for all."""
        return self.query.get("cluster") or None

    def may(self, action: str) -> bool:
        """Whether to offer an action. The controller checks again when it is performed."""
        required = self.required_roles.get(action)
        return required is not None and not self.settings.read_only and self.role >= required


PART_ROWS = 100
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """One page of a list that is in memory as a whole."""

    items: Sequence[T]
    number: int  # from 1
    total: int  # rows of all pages

    @property
    def first(self) -> int:
        return (self.number - 1) * PART_ROWS + 1

    @property
    def last(self) -> int:
        return self.first + len(self.items) - 1

    @property
    def next(self) -> int | None:
        return self.number + 1 if self.last < self.total else None

    @property
    def previous(self) -> int | None:
        return self.number - 1 if self.number > 1 else None


def part_of(view: View, rows: Sequence[T]) -> Part[T]:
    """The rows of the page that ``?page=`` names; the last one where there are fewer. Raises InvalidInput."""
    given = view.query.get("page") or "1"
    if not (given.isascii() and given.isdigit() and len(given) < 7 and int(given)):
        raise InvalidInput("page must be an integer from 1; omit it for the first page")
    number = min(int(given), max(1, -(-len(rows) // PART_ROWS)))
    return Part(rows[(number - 1) * PART_ROWS : number * PART_ROWS], number, len(rows))


@dataclass(frozen=True, slots=True)
class Rows:
    """A region made of rows: each item of ``context[items]`` is rendered by the macro ``row`` of ``template``."""

    template: str
    items: str
    key: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class FormRequest:
    """A posted form: the user, its fields, and what performs it."""

    actor: Actor
    controller: Controller
    form: FormData
    jobs: JobRunner


@dataclass(frozen=True, slots=True)
class Result:
    """The response to a form: a redirect ``to`` a path (303) with a notice, or the page again with ``context``."""

    to: str | None = None
    query: Mapping[str, object] = field(default_factory=dict)
    notice: str | None = None
    tone: str = "good"  # good, warning, bad
    link: str | None = None  # path that the notice links to
    link_query: Mapping[str, object] = field(default_factory=dict)
    context: Context = field(default_factory=dict)
    status: int = 200


Act = Callable[[View, FormRequest], Result]


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the dashboard; see the docstring of this module."""

    path: str
    template: str
    context: Callable[[View], Context]
    title: str
    nav: str | None = None
    regions: tuple[str, ...] = ()
    rows: Mapping[str, Rows] = field(default_factory=dict)
    actions: Mapping[str, Act] = field(default_factory=dict)
    script: str | None = None
    access: Access = Access()  # by default for those alone who see everything


TONES = {"done": "good", "unconfirmed": "warning", "failed": "bad"}
Form = dict[str, str]
CommandT = TypeVar("CommandT", bound=Command)


def fields(form: FormData) -> Form:
    """The fields of a form as text."""
    return {name: str(value) for name, value in form.items()}


def command_of(command: type[CommandT], form: Form, **address: Any) -> CommandT:
    """The command that a form asks for. Raises InvalidInput.

    A missing or empty field has its default. ``address`` are the fields that the URL gives; without a cluster among
    them it is in the form field ``of_cluster``.
    """
    given: dict[str, Any] = {}
    for each in given_fields(command):
        if each.required or each.name in form:
            value = _value(form, each.name, kinds_of(command)[each.name])
            given[each.name] = each.default if value == "" and not each.required else value
    if issubclass(command, ClusterCommand):
        address.setdefault("cluster", form.get("of_cluster", ""))
    return command(**address, **given)


def _value(form: Form, name: str, kind: Type) -> object:
    text, limits = form.get(name, ""), plain(kind)
    if is_whole(limits):
        return whole(form, name)
    if isinstance(limits, FloatType):
        return seconds(form, name)
    if isinstance(limits, BoolType):
        return text == "1"
    if isinstance(limits, VarTupleType):
        return tuple(text.split())
    return text.strip() if noted(kind, "strip") else text


def whole(form: Form, name: str) -> int:
    """An integer field. Raises InvalidInput."""
    try:
        return int(form.get(name, "").strip())
    except ValueError:
        raise InvalidInput(f"{name} {form.get(name, '')!r} must be an integer", field=name) from None


def seconds(form: Form, name: str) -> float | None:
    """A number of seconds; ``None`` for an empty field. Raises InvalidInput."""
    text = form.get(name, "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"{name} {text!r} must be a number of seconds", field=name) from None


def action_on(folder: str, parameter: str, make: Callable[[str, Form], Command]) -> Act:
    """An action that performs the command from ``make(name, form)`` and redirects to ``folder/name``."""

    def act(view: View, request: FormRequest) -> Result:
        name = str(view.params[parameter])
        return perform_form(
            f"{folder}/{quote(name, safe='', errors='replace')}", view, request, lambda form: make(name, form)
        )

    return act


def perform_form(path: str, view: View, request: FormRequest, make: Callable[[Form], Command]) -> Result:
    """Performs the command from ``make(form)`` and redirects to ``path`` with the outcome."""
    try:
        performed = request.controller.perform(request.actor, make(fields(request.form)))
    except MonitorError as error:
        return Result(path, {"cluster": view.cluster}, error.message, "bad")
    return Result(path, {"cluster": view.cluster}, performed.message, TONES[performed.outcome])
