"""Everything that matches as a file, streamed: CSV for people and spreadsheets, NDJSON for programs.

Line by line, never all at once; a client that goes away ends it, since no chunk is read ahead.
"""

import csv
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from typing import Annotated
from typing import Literal

import msgspec
from msgspec import Meta
from starlette.responses import StreamingResponse

from monitor import filters
from monitor.filters import Filter
from monitor.records import Count
from monitor.records import Task
from monitor.store import queries
from monitor.store.engine import Store
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import InCluster
from monitor.web.api.requests import Query
from monitor.web.api.tasks import RetriedItem
from monitor.web.api.tasks import TaskItem
from monitor.web.api.tasks import retried_item
from monitor.web.wording import iso

COUNT_HEADER = "X-Total-Count"
EXACT_HEADER = "X-Total-Exact"
Format = Literal["csv", "ndjson"]
MEDIA = {"csv": "text/csv", "ndjson": "application/x-ndjson"}
COLUMNS = tuple(name for name in TaskItem.__struct_fields__ if name != "traceback")  # no list reads tracebacks
TIMES = frozenset({"eta", "expires", "sent", "received", "started", "finished"})
# A spreadsheet takes a cell that begins so for a formula, which may call programs or send data away; the wide forms
# are those of East Asian keyboards.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_encode = msgspec.json.Encoder().encode


def export(store: Store, wanted: Filter, format: Format) -> tuple[Count, Iterator[bytes]]:  # noqa: A002
    """How many tasks match, as far as that is known up front, and the bytes of the file in chunks."""
    lines = _csv if format == "csv" else _ndjson
    return queries.count(store, wanted), _bytes(store, wanted, lines, b"" if format == "ndjson" else _head())


def _bytes(store: Store, wanted: Filter, lines: Callable[[list[Task]], bytes], head: bytes) -> Iterator[bytes]:
    if head:
        yield head
    for tasks in queries.walk_tasks(store, wanted):
        if tasks:
            yield lines(tasks)


def _ndjson(tasks: list[Task]) -> bytes:
    return b"".join(_encode(_values(task)) + b"\n" for task in tasks)


def _csv(tasks: list[Task]) -> bytes:
    return _rows([_cell(name, value) for name, value in _values(task).items()] for task in tasks)


def _values(task: Task) -> dict[str, object]:
    return {name: retried_item(task) if name == "retried" else getattr(task, name) for name in COLUMNS}


def _head() -> bytes:
    return _rows([COLUMNS])


class _Text:
    """What csv writes into; gives it back as bytes."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def write(self, text: str) -> None:
        self.parts.append(text)


def _rows(rows: Iterable[Iterable[object]]) -> bytes:
    out = _Text()
    csv.writer(out, lineterminator="\r\n").writerows(rows)
    return "".join(out.parts).encode("utf-8", "replace")


def _cell(name: str, value: object) -> object:
    """Unknown is empty; a text that a spreadsheet would run is kept from it by an apostrophe."""
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
        return value  # no moment that a calendar has


class Export(InCluster, frozen=True, kw_only=True):
    """Which tasks, as what."""

    q: Query = ""
    format: Annotated[Format, Meta(description="csv for spreadsheets, ndjson for programs")] = "csv"


def export_tasks(call: Call, given: Export) -> StreamingResponse:
    """Says how many rows are to come, where that is known without counting them all."""
    wanted = filters.parse(given.q, time.time()).in_cluster(given.cluster)
    count, chunks = export(call.store, wanted, given.format)
    headers = {
        "Cache-Control": "no-store",
        "Content-Disposition": f'attachment; filename="tasks.{given.format}"',
        COUNT_HEADER: str(count.value),
        EXACT_HEADER: "true" if count.exact else "false",
    }
    return StreamingResponse(chunks, media_type=MEDIA[given.format], headers=headers)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/export/tasks",
        handle=export_tasks,
        summary="Every task that matches, newest first, as a file",
        answer=TaskItem,
        parameters=Export,
        media=tuple(MEDIA.values()),
    ),
)
