"""Tasks that match a filter: a page of them, or all as a file.

A file is streamed: CSV for spreadsheets, NDJSON for programs. No chunk is read ahead, so the stream ends with its
client.
"""

import csv
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct
from starlette.responses import StreamingResponse

from celery_monitor.control.commands import READS
from celery_monitor.core.filters.parser import Filter, parse
from celery_monitor.records.page import Count, ListPage
from celery_monitor.records.task import Task, TaskState, WaitSince
from celery_monitor.store.engine import Store
from celery_monitor.store.tasks.page import SORTS, count_tasks, find_tasks, iterate_tasks
from celery_monitor.web.api.operation import Call, Cursor, InCluster, Limit, Operation, Query, shape
from celery_monitor.web.security.reach import IN_PART
from celery_monitor.web.wording import iso

SORT_KEYS = [sign + key for key in ("received", *SORTS) for sign in ("-", "")]
Sort = Annotated[
    str, Meta(description="Sort key; with a leading - in descending order", extra_json_schema={"enum": SORT_KEYS})
]


class TaskListing(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Filter, order and pagination."""

    q: Query = ""
    sort: Sort = "-received"
    limit: Limit = 50
    cursor: Cursor | None = None


class RetriedItem(Struct, frozen=True, kw_only=True):
    """The latest retry by a person; ``state`` is null until an event of it arrives."""

    id: str
    state: TaskState | None


class TaskItem(Struct, frozen=True, kw_only=True):
    """One task of a list. Worker, retries, runtime, wait, eta and times from received on are of the latest run.

    ``wait`` is in seconds, from ``wait_since`` to ``started``: since it was ``sent``, since its ``eta``, for a
    ``retry`` since the end of its countdown; since ``received`` if these are unknown, so it may have waited longer.
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
    runtime_estimated: bool  # from recorded start and end: it was killed, lost or replaced
    wait: float | None
    wait_since: WaitSince | None
    root_id: str | None
    parent_id: str | None
    failure_group: int | None
    retried: RetriedItem | None


class TaskPage(Struct, frozen=True, kw_only=True):
    """A page of tasks; ``next`` is the cursor of the following page."""

    items: list[TaskItem]
    next: str | None
    count: Count | None
    searched: Count | None  # if not null, only so many of the newest tasks were searched; next continues


def task_item(task: Task) -> TaskItem:
    return shape(TaskItem, task, retried=retried_item(task))


def retried_item(task: Task) -> RetriedItem | None:
    return None if task.retried is None else RetriedItem(id=task.retried.id, state=task.retried.state)


def task_page(page: ListPage[Task]) -> TaskPage:
    return TaskPage(
        items=[task_item(each) for each in page.items], next=page.next, count=page.count, searched=page.searched
    )


def list_tasks(call: Call, given: TaskListing) -> TaskPage:
    found = parse(given.q, time.time())
    page = find_tasks(call.store, found, sort=given.sort, limit=given.limit, cursor=given.cursor, tracebacks=True)
    return task_page(page)


COUNT_HEADER = "X-Total-Count"
EXACT_HEADER = "X-Total-Exact"
EXPORT = "export.tasks"
Format = Literal["csv", "ndjson"]
MEDIA = {"csv": "text/csv", "ndjson": "application/x-ndjson"}
COLUMNS = tuple(name for name in TaskItem.__struct_fields__ if name != "traceback")  # no list reads tracebacks
TIMES = frozenset({"at", "eta", "expires", "sent", "received", "started", "finished"})
# A spreadsheet runs a cell that begins with one of these as a formula, which may call programs or send data away; the
# wide forms are from East Asian keyboards.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_encode = msgspec.json.Encoder().encode


def export(store: Store, wanted: Filter, format: Format) -> tuple[Count, Iterator[bytes]]:  # noqa: A002
    """The number of matching tasks, as far as known up front, and the file in chunks."""
    lines = _csv if format == "csv" else _ndjson
    return count_tasks(store, wanted), _bytes(store, wanted, lines, b"" if format == "ndjson" else _head())


def _bytes(store: Store, wanted: Filter, lines: Callable[[list[Task]], bytes], head: bytes) -> Iterator[bytes]:
    if head:
        yield head
    for tasks in iterate_tasks(store, wanted):
        if tasks:
            yield lines(tasks)


def _ndjson(tasks: list[Task]) -> bytes:
    return b"".join(_encode(_values(task)) + b"\n" for task in tasks)


def _csv(tasks: list[Task]) -> bytes:
    return csv_rows([csv_cell(name, value) for name, value in _values(task).items()] for task in tasks)


def _values(task: Task) -> dict[str, object]:
    return {name: retried_item(task) if name == "retried" else getattr(task, name) for name in COLUMNS}


def _head() -> bytes:
    return csv_rows([COLUMNS])


class _Text:
    """Collects what csv writes."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def write(self, text: str) -> None:
        self.parts.append(text)


def csv_rows(rows: Iterable[Iterable[object]]) -> bytes:
    out = _Text()
    csv.writer(out, lineterminator="\r\n").writerows(rows)
    return "".join(out.parts).encode("utf-8", "replace")


def csv_cell(name: str, value: object) -> object:
    """Unknown is empty; text that a spreadsheet would run as a formula gets an apostrophe."""
    if value is None:
        return ""
    if name in TIMES:
        return _time(value)
    if isinstance(value, RetriedItem):
        return f"{value.state.word if value.state else 'state unknown'} as {value.id}"
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else str(value)
    return value


def _time(value: object) -> object:
    assert isinstance(value, float)  # noqa: S101 -- the shape says so
    try:
        return iso(value)
    except (ValueError, OverflowError, OSError):
        return value  # outside of the calendar


class Export(InCluster, frozen=True, kw_only=True):
    """Filter and format."""

    q: Query = ""
    format: Annotated[Format, Meta(description="csv for spreadsheets, ndjson for programs")] = "csv"


def export_tasks(call: Call, given: Export) -> StreamingResponse:
    """The headers have the number of rows, if known without counting them all."""
    wanted = parse(given.q, time.time()).in_cluster(given.cluster)
    count, chunks = export(call.store, wanted, given.format)
    parameters: dict[str, object] = {"format": given.format, "count": count.value}
    if not count.exact:
        parameters["at_least"] = True
    call.controller.note(
        call.actor, EXPORT, READS[EXPORT].role, cluster=given.cluster, query=given.q, parameters=parameters
    )
    exact = {COUNT_HEADER: str(count.value), EXACT_HEADER: "true" if count.exact else "false"}
    return download("tasks", given.format, chunks, exact)


def download(name: str, format: Format, chunks: Iterator[bytes], headers: Mapping[str, str]) -> StreamingResponse:  # noqa: A002
    """A file that is made while it is read."""
    own = {"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="{name}.{format}"'}
    return StreamingResponse(chunks, media_type=MEDIA[format], headers={**own, **headers})


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/tasks",
        handle=list_tasks,
        summary="List tasks that match a filter, newest first",
        answer=TaskPage,
        parameters=TaskListing,
        access=IN_PART,
    ),
    Operation(
        method="GET",
        path="/api/v1/export/tasks",
        handle=export_tasks,
        summary="Export all tasks that match a filter, newest first",
        answer=TaskItem,
        parameters=Export,
        media=tuple(MEDIA.values()),
        access=IN_PART,
    ),
)
