"""The audit trail."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from starlette.responses import StreamingResponse

from celery_monitor.control.commands import NO_NUL, READS
from celery_monitor.errors import Forbidden
from celery_monitor.store.actions import MOST_ROWS, read_actions
from celery_monitor.store.engine import Store
from celery_monitor.web.api.operation import Call, Cursor, InCluster, Limit, Name, Operation, shapes
from celery_monitor.web.api.tasks import MEDIA, Format, csv_cell, csv_rows, download
from celery_monitor.web.security.reach import IN_PART

ActionOutcome = Annotated[
    Literal["done", "denied", "failed", "unconfirmed"], Meta(description="Only actions with this outcome")
]


ActionName = Annotated[str, Meta(pattern=NO_NUL, description="Such as worker.shutdown; worker.* for all of workers")]
ActionTarget = Annotated[str, Meta(pattern=NO_NUL, description="Task id, worker or queue")]
EXPORT = "export.actions"


class ActionListing(InCluster, frozen=True, kw_only=True):
    """Filters and pagination."""

    actor: Name | None = None
    action: ActionName | None = None
    outcome: ActionOutcome | UnsetType = UNSET
    target: ActionTarget | None = None
    limit: Limit = 50
    cursor: Cursor | None = None


class ActionItem(Struct, frozen=True, kw_only=True):
    """An action with its user, target, reason and result."""

    id: int | None
    at: float
    actor: str
    action: str
    cluster: str | None
    target: str | None
    query: str | None
    count: int | None
    reason: str | None
    parameters: dict[str, Any]
    outcome: str
    message: str | None


class ActionPage(Struct, frozen=True, kw_only=True):
    """A page of actions; ``next`` is the cursor of the following page."""

    items: list[ActionItem]
    next: str | None


def list_actions(call: Call, given: ActionListing) -> ActionPage:
    page = read_actions(
        call.store,
        limit=given.limit,
        cursor=given.cursor,
        actor=given.actor,
        action=given.action,
        outcome=None if given.outcome is UNSET else given.outcome,
        target=given.target,
        cluster=given.cluster,
    )
    return ActionPage(items=shapes(ActionItem, page.items), next=page.next)


class ActionExport(InCluster, frozen=True, kw_only=True):
    """Filters and format."""

    actor: Name | None = None
    action: ActionName | None = None
    outcome: ActionOutcome | UnsetType = UNSET
    target: ActionTarget | None = None
    format: Annotated[Format, Meta(description="csv for spreadsheets, ndjson for programs")] = "csv"


def export_actions(call: Call, given: ActionExport) -> StreamingResponse:
    """The actions up to now; the export itself is the newest of them."""
    outcome = None if given.outcome is UNSET else given.outcome
    filters = {"actor": given.actor, "action": given.action, "outcome": outcome, "target": given.target}
    wanted = {name: value for name, value in filters.items() if value is not None}
    call.controller.note(
        call.actor,
        EXPORT,
        READS[EXPORT].role,
        cluster=given.cluster,
        query=urlencode(wanted),
        parameters={"format": given.format},
    )
    chunks = _pages(call.store, given.cluster, wanted)
    lines = _csv_lines(chunks) if given.format == "csv" else _ndjson_lines(chunks)
    return download("actions", given.format, lines, {})


def _pages(store: Store, cluster: str | None, wanted: Mapping[str, str]) -> Iterator[list[ActionItem]]:
    cursor: str | None = None
    while True:
        page = read_actions(store, limit=MOST_ROWS, cursor=cursor, cluster=cluster, **wanted)
        yield shapes(ActionItem, page.items)
        cursor = page.next
        if cursor is None:
            return


def _csv_lines(pages: Iterable[list[ActionItem]]) -> Iterator[bytes]:
    names = ActionItem.__struct_fields__
    yield csv_rows([names])
    for page in pages:
        yield csv_rows([csv_cell(name, _plain(getattr(item, name))) for name in names] for item in page)


def _plain(value: object) -> object:
    return msgspec.json.encode(value).decode() if isinstance(value, dict) else value


def _ndjson_lines(pages: Iterable[list[ActionItem]]) -> Iterator[bytes]:
    for page in pages:
        yield b"".join(msgspec.json.encode(item) + b"\n" for item in page)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/actions",
        handle=list_actions,
        summary="List actions, newest first",
        answer=ActionPage,
        parameters=ActionListing,
        access=IN_PART,
    ),
    Operation(
        method="GET",
        path="/api/v1/export/actions",
        handle=export_actions,
        summary="Export all actions that match, newest first",
        answer=ActionItem,
        parameters=ActionExport,
        errors=(Forbidden,),
        media=tuple(MEDIA.values()),
        access=IN_PART,
    ),
)
