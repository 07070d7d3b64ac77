"""The record as somebody with limits sees it: every table is replaced by the part that this user may read.

A statement of a limited store is preceded by ``WITH task AS (SELECT ... FROM task WHERE ...)`` for every table that it
names: within it, the name of a table stands for what is inside the scope, and texts of arguments, results and errors
are replaced. So no query has to be written for it, and none can forget it: a table without an entry in TABLES is empty,
and a statement that is not a SELECT is refused.

``begin`` is not limited: a command reads what it changes from here before.
"""

# ruff: noqa: S608 - the SQL is of this module: names of tables and columns, numbers, and texts in hexadecimal

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, event

from celery_monitor.core.filters.scope import HIDDEN, UNLIMITED, Limits, options_of
from celery_monitor.errors import Forbidden
from celery_monitor.settings import Settings
from celery_monitor.store import schema
from celery_monitor.store.engine import LOCK_TIMEOUT_SECONDS, Store
from celery_monitor.store.schema import TERM_KINDS, UNKNOWN
from celery_monitor.store.terms import COUNTED, OTHER

DAY = 86400
NOTHING = "1 = 0"
_SCHEMA = sa.select(sa.func.current_schema())
_statement = re.compile(r"\s*\(*\s*(SELECT|WITH)\b", re.IGNORECASE)
_transaction = re.compile(r"BEGIN$|SET LOCAL enable_")
_tables = re.compile(rf"\b({'|'.join(schema.metadata.tables)})\b")
_ctes = re.compile(r"\s*WITH\s", re.IGNORECASE)


class LimitedStore(Store):
    """A store whose reads have limits; for one request, or one reading of a view."""

    def __init__(self, store: Store, limits: Limits) -> None:
        super().__init__(store.engine.execution_options())  # an engine of its own on the same pool
        event.listen(self.engine, "before_cursor_execute", self._replace, retval=True)
        self._whole = store
        self._limits = limits
        self._views: Views | None = None

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def whole(self) -> Store:
        return self._whole

    @contextmanager
    def begin(self, lock_timeout: float = LOCK_TIMEOUT_SECONDS) -> Iterator[Connection]:
        with self._whole.begin(lock_timeout) as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        if self._views is None:
            with self._whole.read() as connection:
                self._views = make_views(connection, self._limits)
        with super().read() as connection:
            connection.execution_options(limits=self._limits)
            yield connection

    def _replace(
        self, _: Connection, __: object, statement: str, parameters: Any, context: Any, ___: bool
    ) -> tuple[str, Any]:
        if _transaction.match(statement) or (context is not None and context.execution_options.get("unlimited")):
            return statement, parameters
        if self._views is None or not _statement.match(statement):
            raise Forbidden("This needs a user whose scope is everything.")
        return self._views.before(statement), parameters


def limited(store: Store, limits: Limits) -> Store:
    """The same record within these limits."""
    return LimitedStore(store.whole, limits) if limits != UNLIMITED else store.whole


def limited_settings(settings: Settings, limits: Limits) -> Settings:
    """The settings with the brokers of the clusters inside."""
    inside = tuple(each for each in settings.broker if limits.scope.allows("cluster", each.cluster))
    return settings if inside == settings.broker else replace(settings, broker=inside)


@dataclass(frozen=True, slots=True)
class Views:
    """The tables of one database within limits, as SQL."""

    selects: dict[str, str]

    def before(self, statement: str) -> str:
        """The statement with the tables that it names replaced."""
        named = set(_tables.findall(statement))
        if named & {"failure_variant", "failure_rollup"}:
            named.add("failure_group")
        if not named:
            return statement
        ordered = [name for name in self.selects if name in named]
        views = ", ".join(f"{name} AS NOT MATERIALIZED ({self.selects[name]})" for name in ordered)
        own = _ctes.match(statement)
        return f"WITH {views}, {statement[own.end() :]}" if own else f"WITH {views} {statement}"


class _Within:
    """Conditions of a scope in the SQL of one database. Names are numbers by now, or written in hexadecimal."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self.limits = limits
        self.is_sqlite = connection.dialect.name == "sqlite"
        # The tables themselves: without their schema, names are those of the views.
        self.main = "main." if self.is_sqlite else f"{_quoted(connection, connection.execute(_SCHEMA).scalar_one())}."
        term, cluster, queue = schema.term.c, schema.cluster.c, schema.queue.c
        self.clusters = self._numbers("cluster", connection.execute(sa.select(cluster.id, cluster.name)))
        found = {
            field: self._numbers(
                field, connection.execute(sa.select(term.id, term.text).where(term.kind == TERM_KINDS[field]))
            )
            for field in ("queue", "name")
        }
        self.queues, self.names = found["queue"], found["name"]
        sampled = connection.execute(sa.select(queue.name).distinct()).scalars() if self.queues is not None else ()
        self.queue_names = [each for each in sampled if limits.scope.allows("queue", each)]

    def _numbers(self, field: str, rows: Iterable[Any]) -> list[int] | None:
        """The numbers of the names that the scope allows; ``None``: all."""
        if not any(options_of(term)[0].field == field for term in self.limits.scope.terms):
            return None
        return [number for number, text in rows if text != OTHER and self.limits.scope.allows(field, text)]

    def cluster(self, table: str) -> str:
        return _among(f"{table}.cluster_id", self.clusters)

    def place(self, table: str) -> str:
        """On a table with cluster, name and queue of tasks."""
        return " AND ".join(
            (
                self.cluster(table),
                _among(f"{table}.name_id", self.names),
                _among(f"{table}.queue_id", self.queues),
            )
        )

    def task(self, condition: str) -> str:
        """That a task inside meets a condition; ``t`` is the task."""
        return f"EXISTS (SELECT 1 FROM {self.main}task AS t WHERE {condition} AND {self.place('t')})"

    def text(self, value: str) -> str:
        data = value.encode().hex()
        return f"CAST(x'{data}' AS TEXT)" if self.is_sqlite else f"convert_from('\\x{data}'::bytea, 'UTF8')"

    def used(self, column: str) -> str:
        """The names of tasks inside."""
        return f"SELECT c.{column} FROM {self.main}task_count AS c WHERE {self.place('c')}"

    def mixed(self, table: str, condition: str) -> str:
        """The names of tasks that were seen in another queue too."""
        outside = f"NOT ({_among('c.queue_id', self.queues)}) AND c.queue_id <> {UNKNOWN}"
        return f"SELECT c.name_id FROM {self.main}{table} AS c WHERE {condition} AND {self.cluster('c')} AND {outside}"


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote(name)


def _among(column: str, numbers: list[int] | None) -> str:
    """With ``+ 0``, so that the database does not choose an index for it."""
    if numbers is None:
        return "1 = 1"
    return f"{column} + 0 IN ({', '.join(map(str, numbers))})" if numbers else NOTHING


def _inside_group(within: _Within) -> str:
    """A failure group has one task name and many queues: inside are those whose name is seen in no queue outside."""
    if not within.limits.scope.is_partial:
        return within.cluster("x")
    names = [f"m.id IN ({within.used('name_id')})"]
    if within.queues is not None:
        names.append(f"m.id NOT IN ({within.mixed('task_count', 'c.count > 0')})")
        names.append(f"m.id NOT IN ({within.mixed('rollup', f'c.resolution = {DAY}')})")
    named = f"SELECT m.text FROM {within.main}term AS m WHERE m.kind = {TERM_KINDS['name']} AND {' AND '.join(names)}"
    return f"{within.cluster('x')} AND x.name IN ({named})"


def _inside_term(within: _Within) -> str:
    """Names that tasks inside have. Those of publishers, exchanges and routing keys are looked up by the number in a
    task's row alone, which is inside: a captured message is compared with them."""
    if not within.limits.scope.terms:
        return "1 = 1"
    counted = [f"(x.kind = {TERM_KINDS[kind]} AND x.id IN ({within.used(f'{kind}_id')}))" for kind in COUNTED]
    others = ", ".join(str(TERM_KINDS[kind]) for kind in ("client", "exchange", "routing_key"))
    return f"(x.kind IN ({others}) OR {' OR '.join(counted)})"


def _inside_queue(within: _Within) -> str:
    if within.names is not None:
        return NOTHING
    if within.queues is None:
        return within.cluster("x")
    names = ", ".join(map(within.text, within.queue_names))
    return f"{within.cluster('x')} AND x.name IN ({names})" if names else NOTHING


def _own(within: _Within) -> str:
    return f"x.actor = {within.text(within.limits.actor)}"


def _inside_run(within: _Within) -> str:
    return within.task("t.id = x.task_id") if within.limits.scope.terms else "1 = 1"


def _whole_cluster(within: _Within) -> str:
    return NOTHING if within.limits.scope.is_partial else within.cluster("x")


def _of_task(within: _Within) -> str:
    same = "t.cluster_id = x.cluster_id AND t.key = x.key"
    return within.task(same) if within.limits.scope.terms else "1 = 1"


def _view(within: _Within) -> str:
    return _own(within) if within.limits.scope.terms else "1 = 1"


def _own_job(within: _Within) -> str:
    return f"x.job_id IN (SELECT j.id FROM {within.main}job AS j WHERE j.actor = {within.text(within.limits.actor)})"


def _message(within: _Within) -> str:
    return _of_task(within) if within.limits.arguments else NOTHING


def _variant(within: _Within) -> str:
    return "x.group_id IN (SELECT id FROM failure_group)" if within.limits.arguments else NOTHING


# The rows of each table that are inside; ``x`` is the table. Users, sessions, tokens and ``meta`` are of everything.
TABLES: dict[str, Callable[[_Within], str]] = {
    "cluster": lambda within: _among("x.id", within.clusters),
    "term": _inside_term,
    "task": lambda within: within.place("x"),
    "run": _inside_run,
    "task_count": lambda within: within.place("x"),
    "rollup": lambda within: within.place("x"),
    "failure_group": _inside_group,
    "failure_variant": _variant,
    "failure_rollup": lambda _: "x.group_id IN (SELECT id FROM failure_group)",
    "worker": _whole_cluster,
    "worker_start": _whole_cluster,
    "receiver": _whole_cluster,
    "queue": _inside_queue,
    "queue_sample": _inside_queue,
    "gap": lambda within: within.cluster("x"),
    "action": _own,
    "retry": _of_task,
    "message": _message,
    "schedule": lambda within: within.cluster("x"),  # store/schedule.py compares task and queue
    "saved_view": _view,
    "job": _own,
    "job_task": _own_job,
    "job_outcome": _own_job,
}

_texts = {name: f"CASE WHEN x.{name} IS NOT NULL THEN '{HIDDEN}' END" for name in
          ("args", "kwargs", "result", "exception", "traceback")}  # fmt: skip
# What stands in place of a column for who may not see arguments.
MASKED: dict[str, dict[str, str]] = {
    "task": _texts,
    "run": {**{name: _texts[name] for name in ("result", "exception", "traceback")}, "message": "NULL"},
    "failure_group": {"message": f"'{HIDDEN}'"},
}
# ... and for whom only a part of a cluster is inside.
PARTIAL: dict[str, dict[str, str]] = {
    "queue": {"workers": "'[]'"},
    "gap": {"reconciliation": "NULL"},
}


def make_views(connection: Connection, limits: Limits) -> Views:
    """The tables within these limits, by the names that are recorded now."""
    within = _Within(connection, limits)
    replaced = {**(PARTIAL if limits.scope.is_partial else {}), **({} if limits.arguments else MASKED)}
    selects = {}
    for name, table in schema.metadata.tables.items():
        own = replaced.get(name, {})
        columns = ", ".join(
            f"{own.get(each.name, f'x.{column}')} AS {column}"
            for each in table.columns
            for column in (_quoted(connection, each.name),)
        )
        inside = TABLES[name](within) if name in TABLES else NOTHING
        selects[name] = f"SELECT {columns} FROM {within.main}{_quoted(connection, name)} AS x WHERE {inside}"
    return Views(selects)
