"""The audit trail."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from celery_monitor.control.commands import NO_NUL
from celery_monitor.store.actions import read_actions
from celery_monitor.web.api.operation import Call, Cursor, InCluster, Limit, Name, Operation, shapes

ActionOutcome = Annotated[
    Literal["done", "denied", "failed", "unconfirmed"], Meta(description="Only actions with this outcome")
]


class ActionListing(InCluster, frozen=True, kw_only=True):
    """Filters and pagination."""

    actor: Name | None = None
    action: (
        Annotated[str, Meta(pattern=NO_NUL, description="Such as worker.shutdown; worker.* for all of workers")] | None
    ) = None
    outcome: ActionOutcome | UnsetType = UNSET
    target: Annotated[str, Meta(pattern=NO_NUL, description="Task id, worker or queue")] | None = None
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


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/actions",
        handle=list_actions,
        summary="List actions, newest first",
        answer=ActionPage,
        parameters=ActionListing,
    ),
)
