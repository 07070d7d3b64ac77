"""Saved views in the JSON API."""

from typing import Annotated
from typing import Any

from msgspec import Meta
from msgspec import Struct

from monitor.control.commands import NO_NUL
from monitor.control.commands import Performed
from monitor.control.commands import Reason
from monitor.control.commands import summary_of
from monitor.control.views import LONGEST_NAME
from monitor.control.views import LONGEST_PATH
from monitor.control.views import LONGEST_QUERY
from monitor.control.views import DeleteView
from monitor.control.views import RenameView
from monitor.control.views import SaveView
from monitor.records import SavedView
from monitor.store import views
from monitor.web.api.acting import CHANGE_ERRORS
from monitor.web.api.acting import operation
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import NoParameters

SOMETHING = r"^[^\x00]*[^\x00\s][^\x00]*$"
ViewNumber = Annotated[int, Meta(ge=1, lt=2**31, description="Number of a saved view")]
ViewName = Annotated[str, Meta(pattern=SOMETHING, max_length=LONGEST_NAME, description="Its name, for everybody")]
PATH_PATTERN = r"^/([\w.~%:@!$&'()*+,;=-][\w./~%:@!$&'()*+,;=-]*)?$"


class ViewAddress(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One saved view."""

    id: ViewNumber


class SaveViewBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A list to keep: its name, path and query."""

    name: ViewName
    path: Annotated[str, Meta(pattern=PATH_PATTERN, max_length=LONGEST_PATH, description="Such as /tasks")]
    query: Annotated[str, Meta(pattern=NO_NUL, max_length=LONGEST_QUERY, description="What stands behind the ?")] = ""
    reason: Reason | None = None


class RenameViewBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Another name for a view."""

    name: ViewName
    reason: Reason | None = None


class ViewItem(Struct, frozen=True, kw_only=True):
    """A list that somebody has named: its path below the dashboard's own, its query, who saved it and when."""

    id: int
    name: str
    path: str
    query: str
    actor: str
    at: float | None


class ViewList(Struct, frozen=True):
    """Saved views, by name."""

    items: list[ViewItem]


class ViewDeleted(Struct, frozen=True):
    """The view that is gone."""

    id: int
    message: str


def list_views(call: Call, _: NoParameters) -> ViewList:
    return ViewList([_item(view) for view in views.saved_views(call.store)])


def save_view(call: Call, _: NoParameters, body: SaveViewBody) -> ViewItem:
    command = SaveView(name=body.name, path=body.path, query_string=body.query, reason=body.reason)
    return _item(views.saved_view(call.store, _number(call.controller.perform(call.actor, command))))


def rename_view(call: Call, given: ViewAddress, body: RenameViewBody) -> ViewItem:
    call.controller.perform(call.actor, RenameView(view=given.id, name=body.name, reason=body.reason))
    return _item(views.saved_view(call.store, given.id))


def _address(_: Call, given: ViewAddress) -> dict[str, Any]:
    return {"view": given.id}


def _deleted(performed: Performed) -> ViewDeleted:
    return ViewDeleted(_number(performed), performed.message)


def _number(performed: Performed) -> int:
    return int(str(performed.details["view"]))


def _item(view: SavedView) -> ViewItem:
    return ViewItem(id=view.id, name=view.name, path=view.path, query=view.query, actor=view.actor, at=view.at)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/views",
        handle=list_views,
        summary="Saved views, by name",
        answer=ViewList,
    ),
    Operation(
        method="POST",
        path=f"/api/v1/{SaveView.route}",
        handle=save_view,
        summary=summary_of(SaveView),
        answer=ViewItem,
        body=SaveViewBody,
        errors=CHANGE_ERRORS,
    ),
    Operation(
        method="POST",
        path=f"/api/v1/{RenameView.route}",
        handle=rename_view,
        summary=summary_of(RenameView),
        answer=ViewItem,
        parameters=ViewAddress,
        body=RenameViewBody,
        errors=CHANGE_ERRORS,
    ),
    operation(DeleteView, ViewAddress, _address, ViewDeleted, _deleted, CHANGE_ERRORS),
)
