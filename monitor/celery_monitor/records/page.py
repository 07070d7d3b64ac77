"""Pages of lists, counts, search results, saved views and actions."""

from typing import Generic, Literal, TypeVar

import msgspec

from celery_monitor.records.task import TaskState


class Action(msgspec.Struct, kw_only=True):
    """Who did what, to what, why, and with which outcome. Append-only."""

    id: int | None = None
    at: float
    actor: str
    action: str
    cluster: str | None  # None: an action on the dashboard itself
    target: str | None = None  # a task id, a worker, a queue
    query: str | None = None
    count: int | None = None
    reason: str | None = None
    parameters: dict[str, object] = {}
    outcome: str = "done"  # done, denied, failed, unconfirmed
    message: str | None = None


class SavedView(msgspec.Struct, frozen=True, kw_only=True):
    """A list under a name, shared by all users: a path of the dashboard and its query."""

    id: int
    name: str
    path: str
    query: str
    actor: str
    at: float | None = None


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """One search result: a task, a worker, a queue, a task name or a saved view."""

    kind: Literal["task", "worker", "queue", "name", "view"]
    name: str  # the id of a task
    cluster: str | None = None
    state: TaskState | None = None  # of a task
    detail: str | None = None
    path: str | None = None  # of a saved view
    query: str | None = None


class Count(msgspec.Struct, frozen=True):
    """A number of tasks. ``exact`` is False where counting stopped: then it is at least ``value``."""

    value: int
    exact: bool = True


T = TypeVar("T")


class ListPage(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list. Cursors are opaque; ``None``: no such page.

    ``searched`` is set where not every row was read: it is the number of newest rows that were. ``next`` continues.
    """

    items: list[T]
    next: str | None = None
    previous: str | None = None
    count: Count | None = None
    searched: Count | None = None
