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
from monitor.store import queries
from monitor.store.sorting import SORTS
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import Cursor
from monitor.web.api.requests import Limit
from monitor.web.api.requests import Query
from monitor.web.api.shapes import shape
from monitor.web.api.shapes import shapes

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


class TaskItem(Struct, frozen=True, kw_only=True):
    """One task in a list."""

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
    root_id: str | None
    parent_id: str | None
    failure_group: int | None


class TaskPage(Struct, frozen=True, kw_only=True):
    """Tasks that match; ``next`` goes on where they end."""

    items: list[TaskItem]
    next: str | None
    count: Count | None
    searched: Count | None  # not null: only so many of the newest were searched; next goes on


def task_item(task: Task) -> TaskItem:
    return shape(TaskItem, task)


def task_page(page: Page[Task]) -> TaskPage:
    return TaskPage(items=shapes(TaskItem, page.items), next=page.next, count=page.count, searched=page.searched)


def list_tasks(call: Call, given: TaskListing) -> TaskPage:
    found = filters.parse(given.q, time.time())
    return task_page(queries.tasks(call.store, found, sort=given.sort, limit=given.limit, cursor=given.cursor))


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
