"""What the palette asks: things by name, each with the path that leads to it."""

from typing import Annotated
from typing import Literal

from msgspec import Meta
from msgspec import Struct

from monitor.control.commands import NO_NUL
from monitor.filter_terms import exactly
from monitor.records import Hit
from monitor.records import TaskState
from monitor.store import queries
from monitor.store.search import search
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import InCluster
from monitor.web.render import link
from monitor.web.render import path_part
from monitor.web.wording import short
from monitor.web.wording import visible

LONGEST_TEXT = 200
LONGEST_LABEL = 120


class Search(InCluster, frozen=True, kw_only=True):
    """What to look for, and how many of each kind."""

    q: Annotated[
        str, Meta(pattern=NO_NUL, max_length=LONGEST_TEXT, description="Part of a name, beginning of an id")
    ] = ""
    limit: Annotated[int, Meta(ge=1, le=20, description="Most of each kind")] = 6


class Found(Struct, frozen=True, kw_only=True):
    """One thing; ``label`` and ``detail`` are for people, cut and with hidden characters shown."""

    kind: Literal["task", "worker", "queue", "name", "view"]
    label: str
    detail: str
    path: str  # below the dashboard's own, with its query
    cluster: str | None
    state: TaskState | None
    term: str | None  # finds its tasks in a filter


class SearchResult(Struct, frozen=True):
    """What was found: tasks, workers, queues, task names, saved views, at most so many of each."""

    items: list[Found]


def search_everything(call: Call, given: Search) -> SearchResult:
    hits = search(call.store, given.q, cluster=given.cluster, limit=given.limit)
    several = len(queries.clusters(call.store)) > 1
    return SearchResult([_found(hit, given.cluster, several=several) for hit in hits])


def _found(hit: Hit, cluster: str | None, *, several: bool) -> Found:
    """Where there is one cluster, nobody is told of it, and no link narrows to it."""
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
        path="/api/v1/search",
        handle=search_everything,
        summary="Tasks by the beginning of their id; workers, queues, task names and saved views by part of a name",
        answer=SearchResult,
        parameters=Search,
    ),
)
