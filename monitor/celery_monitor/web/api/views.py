"""Saved views, and the search of the palette."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from celery_monitor.control.commands import NO_NUL, Performed, Reason, summary_of
from celery_monitor.control.views import LONGEST_NAME, LONGEST_PATH, LONGEST_QUERY, DeleteView, RenameView, SaveView
from celery_monitor.core.filters.terms import exactly
from celery_monitor.records.page import Hit, SavedView
from celery_monitor.records.task import TaskState
from celery_monitor.store.receivers import read_clusters
from celery_monitor.store.views import read_view, read_views, search
from celery_monitor.web.api.operation import CHANGE_ERRORS, Call, InCluster, NoParameters, Operation, operation
from celery_monitor.web.render import link, path_part
from celery_monitor.web.security.reach import IN_PART
from celery_monitor.web.wording import short, visible

NOT_BLANK = r"^[^\x00]*[^\x00\s][^\x00]*$"
ViewNumber = Annotated[int, Meta(ge=1, lt=2**31, description="Number of a saved view")]
ViewName = Annotated[str, Meta(pattern=NOT_BLANK, max_length=LONGEST_NAME, description="Name, for everyone")]
PATH_PATTERN = r"^/([\w.~%:@!$&'()*+,;=-][\w./~%:@!$&'()*+,;=-]*)?$"


class ViewAddress(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One saved view."""

    id: ViewNumber


class SaveViewBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A list to save under a name."""

    name: ViewName
    path: Annotated[str, Meta(pattern=PATH_PATTERN, max_length=LONGEST_PATH, description="Such as /tasks")]
    query: Annotated[str, Meta(pattern=NO_NUL, max_length=LONGEST_QUERY, description="Query without the ?")] = ""
    reason: Reason | None = None


class RenameViewBody(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The new name of a view."""

    name: ViewName
    reason: Reason | None = None


class ViewItem(Struct, frozen=True, kw_only=True):
    """A saved view; ``path`` is below the dashboard's prefix."""

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
    """The deleted view."""

    id: int
    message: str


def list_views(call: Call, _: NoParameters) -> ViewList:
    return ViewList([_item(view) for view in read_views(call.store)])


def save_view(call: Call, _: NoParameters, body: SaveViewBody) -> ViewItem:
    command = SaveView(name=body.name, path=body.path, query_string=body.query, reason=body.reason)
    return _item(read_view(call.store, _number(call.controller.perform(call.actor, command))))


def rename_view(call: Call, given: ViewAddress, body: RenameViewBody) -> ViewItem:
    call.controller.perform(call.actor, RenameView(view=given.id, name=body.name, reason=body.reason))
    return _item(read_view(call.store, given.id))


def _address(_: Call, given: ViewAddress) -> dict[str, Any]:
    return {"view": given.id}


def _deleted(performed: Performed) -> ViewDeleted:
    return ViewDeleted(_number(performed), performed.message)


def _number(performed: Performed) -> int:
    return int(str(performed.details["view"]))


def _item(view: SavedView) -> ViewItem:
    return ViewItem(id=view.id, name=view.name, path=view.path, query=view.query, actor=view.actor, at=view.at)


LONGEST_TEXT = 200
LONGEST_LABEL = 120


class Search(InCluster, frozen=True, kw_only=True):
    """Text to search for, and the limit per kind."""

    q: Annotated[
        str, Meta(pattern=NO_NUL, max_length=LONGEST_TEXT, description="Part of a name, or beginning of an id")
    ] = ""
    limit: Annotated[int, Meta(ge=1, le=20, description="Maximum number per kind")] = 6


class Found(Struct, frozen=True, kw_only=True):
    """One result; ``label`` and ``detail`` are shortened, with hidden characters made visible."""

    kind: Literal["task", "worker", "queue", "name", "view"]
    label: str
    detail: str
    path: str  # below the dashboard's prefix, with its query
    cluster: str | None
    state: TaskState | None
    term: str | None  # filter for its tasks


class SearchResult(Struct, frozen=True):
    """Tasks, workers, queues, task names and saved views."""

    items: list[Found]


def search_everything(call: Call, given: Search) -> SearchResult:
    hits = search(call.store, given.q, cluster=given.cluster, limit=given.limit)
    several = len(read_clusters(call.store)) > 1
    return SearchResult([_found(hit, given.cluster, several=several) for hit in hits])


def _found(hit: Hit, cluster: str | None, *, several: bool) -> Found:
    """A single cluster is neither shown nor part of links."""
    detail = ", ".join(each for each in (hit.detail, hit.cluster if several else None) if each)
    return Found(
        kind=hit.kind,
        label=visible(short(hit.name, LONGEST_LABEL)),
        detail=visible(short(detail, LONGEST_LABEL)),
        path=_path(hit, hit.cluster if several and hit.cluster else cluster),
        cluster=hit.cluster,
        state=hit.state,
        term=str(exactly(hit.kind, hit.name)) if hit.kind in {"name", "queue", "worker"} else None,
    )


def _path(hit: Hit, cluster: str | None) -> str:
    if hit.kind == "view":
        return f"{hit.path}?{hit.query}" if hit.query else str(hit.path)
    if hit.kind == "name":
        return link("", "/tasks", {"q": exactly("name", hit.name), "cluster": cluster})
    return link("", f"/{hit.kind}s/{path_part(hit.name)}", {"cluster": cluster})


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/views",
        handle=list_views,
        summary="List saved views by name",
        answer=ViewList,
        access=IN_PART,
    ),
    Operation(
        method="POST",
        path=f"/api/v1/{SaveView.route}",
        handle=save_view,
        summary=summary_of(SaveView),
        answer=ViewItem,
        body=SaveViewBody,
        errors=CHANGE_ERRORS,
        access=IN_PART,
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
        access=IN_PART,
    ),
    operation(DeleteView, ViewAddress, _address, ViewDeleted, _deleted, CHANGE_ERRORS),
    Operation(
        method="GET",
        path="/api/v1/search",
        handle=search_everything,
        summary="Search tasks by beginning of the id; workers, queues, task names and saved views by part of a name",
        answer=SearchResult,
        parameters=Search,
        access=IN_PART,
    ),
)
