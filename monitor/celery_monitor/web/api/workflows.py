"""Workflows: tasks, what they wait for, and critical path."""

from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, Struct

from celery_monitor.core.workflow import Tree, build, critical_path, state_of, waiting_for
from celery_monitor.errors import NotFound
from celery_monitor.records.page import ListPage
from celery_monitor.records.task import TaskState, WorkflowState, WorkflowSummary
from celery_monitor.store.tasks.workflows import read_steps, read_workflows
from celery_monitor.web.api.operation import Call, Cursor, InCluster, Operation, TaskId, shape, shapes
from celery_monitor.web.security.reach import IN_PART

WorkflowLimit = Annotated[int, Meta(ge=1, le=100, description="Maximum number of items")]


class WorkflowAddress(InCluster, frozen=True, kw_only=True):
    """One workflow, by its root task."""

    root_id: TaskId


class WorkflowListing(InCluster, frozen=True, kw_only=True):
    """Pagination."""

    limit: WorkflowLimit = 50
    cursor: Cursor | None = None


class StepItem(Struct, frozen=True, kw_only=True):
    """One task of a workflow; ``state`` is null if it is only known as root or parent of others."""

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
    """A root task and its subtasks; ``complete``: none is left out. Events do not report what a chord waits for.

    ``state``: see WorkflowItem.
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
    """A root task and the number of tasks by state, the root included.

    ``state`` is the workflow's, not the root's: running while a task runs; waiting while none runs and some wait for a
    worker, a retry or an ETA; else the worst outcome: lost, failed, rejected, revoked, succeeded. Null: no task is
    recorded.
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
    """A page of workflows among the newest tasks; ``next`` is the cursor of the following page."""

    items: list[WorkflowItem]
    next: str | None


def _states(counts: Mapping[TaskState, int] | Mapping[TaskState | None, int]) -> dict[str, int]:
    return {"unknown" if state is None else state.value: count for state, count in counts.items()}


def workflow_page(page: ListPage[WorkflowSummary]) -> WorkflowPage:
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
    return workflow_page(read_workflows(call.store, cluster=given.cluster, limit=given.limit, cursor=given.cursor))


def get_workflow(call: Call, given: WorkflowAddress) -> WorkflowDetail:
    cluster, steps, complete = read_steps(call.store, given.root_id, given.cluster)
    return workflow_detail(build(steps), cluster, complete=complete)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/workflows",
        handle=list_workflows,
        summary="List workflows of more than one task, by last event",
        answer=WorkflowPage,
        parameters=WorkflowListing,
        access=IN_PART,
    ),
    Operation(
        method="GET",
        path="/api/v1/workflows/{root_id:path}",
        handle=get_workflow,
        summary="Get a workflow: tasks, what it waits for, and critical path",
        answer=WorkflowDetail,
        parameters=WorkflowAddress,
        errors=(NotFound,),
        access=IN_PART,
    ),
)
