"""Workflows: their tasks, what they wait for, and their critical path."""

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta
from msgspec import Struct

from monitor import workflow
from monitor.errors import NotFound
from monitor.records import Page
from monitor.records import TaskState
from monitor.records import WorkflowState
from monitor.records import WorkflowSummary
from monitor.store import queries
from monitor.web.api.operation import Call
from monitor.web.api.operation import Operation
from monitor.web.api.requests import Cursor
from monitor.web.api.requests import InCluster
from monitor.web.api.requests import TaskId
from monitor.web.api.shapes import shape
from monitor.web.api.shapes import shapes
from monitor.workflow import Tree
from monitor.workflow import critical_path
from monitor.workflow import state_of
from monitor.workflow import waiting_for

WorkflowLimit = Annotated[int, Meta(ge=1, le=100, description="Most workflows of a page")]


class WorkflowAddress(InCluster, frozen=True, kw_only=True):
    """One workflow, by its root task."""

    root_id: TaskId


class WorkflowListing(InCluster, frozen=True, kw_only=True):
    """How many workflows, from where."""

    limit: WorkflowLimit = 50
    cursor: Cursor | None = None


class StepItem(Struct, frozen=True, kw_only=True):
    """One task of a workflow; a null state: it is named as root or parent, and not in the record."""

    id: str
    parent_id: str | None
    name: str | None
    state: TaskState | None
    queue: str | None
    worker: str | None
    sent: float | None
    received: float | None
    started: float | None
    ended: float | None
    eta: float | None


class Waiting(Struct, frozen=True, kw_only=True):
    """Unfinished tasks of one state, name and queue."""

    state: TaskState
    name: str | None
    queue: str | None
    count: int


class WorkflowDetail(Struct, frozen=True, kw_only=True):
    """A root task and all under it. What a chord waits for, events do not tell; ``complete``: no task is left out.

    ``state`` is the workflow's, see WorkflowItem.
    """

    root_id: str
    cluster: str
    state: WorkflowState | None
    began: float | None
    last_seen: float | None
    states: dict[str, int]
    waiting_for: list[Waiting]
    critical_path: list[str]
    items: list[StepItem]
    complete: bool


class WorkflowItem(Struct, frozen=True, kw_only=True):
    """A root task with how many tasks of each state stand under it, itself included.

    ``state`` is the workflow's, not its root's: running while a task of it runs, waiting while none runs and some wait
    for a worker, a retry or an ETA; of one in which nothing goes on, the worst end: lost, failed, rejected, revoked,
    succeeded. Null: none of its tasks is in the record.
    """

    root: StepItem
    cluster: str
    state: WorkflowState | None
    states: dict[str, int]
    tasks: int
    last_seen: float
    unended: int
    waits_for: str | None
    waits_for_tasks: int


class WorkflowPage(Struct, frozen=True, kw_only=True):
    """Workflows among the newest tasks; ``next`` goes on where they end."""

    items: list[WorkflowItem]
    next: str | None


def _states(counts: Mapping[TaskState, int] | Mapping[TaskState | None, int]) -> dict[str, int]:
    return {"unknown" if state is None else state.value: count for state, count in counts.items()}


def workflow_page(page: Page[WorkflowSummary]) -> WorkflowPage:
    items = [
        shape(WorkflowItem, each, root=shape(StepItem, each.root), states=_states(each.states)) for each in page.items
    ]
    return WorkflowPage(items=items, next=page.next)


def workflow_detail(tree: Tree, cluster: str, *, complete: bool) -> WorkflowDetail:
    began, last = tree.span or (None, None)
    return WorkflowDetail(
        root_id=tree.root.id,
        cluster=cluster,
        state=state_of(tree.below[tree.root.id]),
        began=began,
        last_seen=last,
        states=_states(tree.below[tree.root.id]),
        waiting_for=[Waiting(state=s, name=name, queue=queue, count=n) for s, name, queue, n in waiting_for(tree)],
        critical_path=[step.id for step in critical_path(tree)],
        items=shapes(StepItem, tree.steps.values()),
        complete=complete,
    )


def list_workflows(call: Call, given: WorkflowListing) -> WorkflowPage:
    return workflow_page(queries.workflows(call.store, cluster=given.cluster, limit=given.limit, cursor=given.cursor))


def get_workflow(call: Call, given: WorkflowAddress) -> WorkflowDetail:
    cluster, steps, complete = queries.steps(call.store, given.root_id, given.cluster)
    return workflow_detail(workflow.build(steps), cluster, complete=complete)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/workflows",
        handle=list_workflows,
        summary="Workflows of more than one task, those first that were heard of last",
        answer=WorkflowPage,
        parameters=WorkflowListing,
    ),
    Operation(
        method="GET",
        path="/api/v1/workflows/{root_id:path}",
        handle=get_workflow,
        summary="One workflow: its tasks, what it waits for, and its critical path",
        answer=WorkflowDetail,
        parameters=WorkflowAddress,
        errors=(NotFound,),
    ),
)
