"""Tasks that match a filter."""

import time
from typing import Annotated

from msgspec import Meta
from msgspec import Struct

from monitor import filters
from monitor.records import Count
from monitor.records import Page
from monitor.records import Task
from monitor.records import TaskState
from monitor.records import WaitSince
from monitor.store import queries
from monitor.store.page import SORTS
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import Cursor
from monitor.web.api.requests import Limit
from monitor.web.api.requests import Query
from monitor.web.api.shapes import shape

SORT_KEYS = [sign + key for key in ("received", *SORTS) for sign in ("-", "")]
Sort = Annotated[
    str, Meta(description="What to sort by; - in front: the largest first", extra_json_schema={"enum": SORT_KEYS})
]


class TaskListing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which tasks, in which order, how many."""

    q: Query = ""
    sort: Sort = "-received"
    limit: Limit = 50
    cursor: Cursor | None = None


class RetriedItem(Struct, frozen=True, kw_only=True):
    """The newest task as which a person retried another; ``state`` is null while nothing of it is recorded."""

    id: str
    state: TaskState | None


class TaskItem(Struct, frozen=True, kw_only=True):
    """One task in a list. What is of a run is of its latest: worker, retries, received to finished, runtime, wait, eta.

    ``wait`` is in seconds, from ``wait_since`` to ``started``: from when the task was ``sent``, from its ``eta``, for a
    ``retry`` from the end of its countdown; ``received`` where none of these is known: it may have waited longer.
    """

    id: str
    cluster: str
    name: str | None
    state: TaskState
    queue: str | None
    worker: str | None
    args: str | None
    kwargs: str | None
    result: str | None
    exception: str | None
    traceback: str | None
    retries: int | None
    eta: float | None
    expires: float | None
    sent: float | None
    received: float | None
    started: float | None
    finished: float | None
    runtime: float | None
    runtime_estimated: bool  # from the record of its start and end: it was killed, lost, or replaced
    wait: float | None
    wait_since: WaitSince | None
    root_id: str | None
    parent_id: str | None
    failure_group: int | None
    retried: RetriedItem | None


class TaskPage(Struct, frozen=True, kw_only=True):
    """Tasks that match; ``next`` goes on where they end."""

    items: list[TaskItem]
    next: str | None
    count: Count | None
    searched: Count | None  # not null: only so many of the newest were searched; next goes on


def task_item(task: Task) -> TaskItem:
    return shape(TaskItem, task, retried=retried_item(task))


def retried_item(task: Task) -> RetriedItem | None:
    return None if task.retried is None else RetriedItem(id=task.retried.id, state=task.retried.state)


def task_page(page: Page[Task]) -> TaskPage:
    return TaskPage(
        items=[task_item(each) for each in page.items], next=page.next, count=page.count, searched=page.searched
    )


def list_tasks(call: Call, given: TaskListing) -> TaskPage:
    found = filters.parse(given.q, time.time())
    page = queries.tasks(call.store, found, sort=given.sort, limit=given.limit, cursor=given.cursor, tracebacks=True)
    return task_page(page)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/tasks",
        handle=list_tasks,
        summary="Tasks that match a filter, newest first",
        answer=TaskPage,
        parameters=TaskListing,
    ),
)
