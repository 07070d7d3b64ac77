"""Everything that matches as a file, streamed. A client that goes away ends it: no chunk is read ahead."""

import time
from typing import Annotated

from msgspec import Meta
from starlette.responses import StreamingResponse

from monitor import filters
from monitor.web.api_operation import Call
from monitor.web.api_operation import Operation
from monitor.web.api_requests import InCluster
from monitor.web.api_requests import Query
from monitor.web.api_shapes import TaskItem
from monitor.web.export import MEDIA
from monitor.web.export import Format
from monitor.web.export import export
from monitor.web.present import term

COUNT_HEADER = "X-Total-Count"
EXACT_HEADER = "X-Total-Exact"


class Export(InCluster, frozen=True, kw_only=True):
    """Which tasks, as what."""

    q: Query = ""
    format: Annotated[Format, Meta(description="csv for spreadsheets, ndjson for programs")] = "csv"


def export_tasks(call: Call, given: Export) -> StreamingResponse:
    """Says how many rows are to come, where that is known without counting them all."""
    wanted = filters.parse(given.q, time.time())
    if given.cluster is not None:
        wanted = wanted.with_term(term("cluster", given.cluster))
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
