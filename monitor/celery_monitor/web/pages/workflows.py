"""Workflows; and one workflow as a tree with a timeline."""

import re
from typing import NamedTuple

from celery_monitor.core.filters.parser import parse
from celery_monitor.core.filters.terms import any_of, exactly
from celery_monitor.core.workflow import (
    MOST_ROWS,
    PAGE_ROWS,
    Opened,
    Row,
    Tree,
    build,
    critical_path,
    rows_to,
    state_of,
    tree_rows,
    waiting_for,
)
from celery_monitor.records.task import TaskState
from celery_monitor.store.tasks.page import find_tasks
from celery_monitor.store.tasks.workflows import MOST_STUCK, read_steps, read_stuck_workflows, read_workflows
from celery_monitor.web.pages import Context, Page, View
from celery_monitor.web.problems import read_part
from celery_monitor.web.security.reach import IN_PART

LISTED = 50
MOST_FOUND = 200
_ROW = re.compile(r"[0-9]{1,9}")


class Line(NamedTuple):
    """A row of the tree with its position in the timeline, in percent."""

    row: Row
    waited_from: float
    ran_from: float
    ends: float
    running: bool


def context(view: View) -> Context:
    page = read_workflows(view.store, cluster=view.cluster, limit=LISTED, cursor=view.query.get("cursor") or None)
    return {
        "workflows": page.items,
        "next": page.next,
        "later_page": "cursor" in view.query,
        "most_stuck": MOST_STUCK,
        "stuck": read_stuck_workflows(view.store, view.now, view.cluster),
        "several": len({each.cluster for each in page.items}) > 1,
    }


def workflow_context(view: View) -> Context:
    """One workflow. Raises NotFound."""
    root_id = str(view.params["root_id"])
    cluster, steps, whole = read_steps(view.store, root_id, view.cluster)
    tree = build(steps)
    path = critical_path(tree)
    on_path = {step.id for step in path}
    search = (view.query.get("q") or "").strip()
    opened = _opened(view)
    found = _found(view, root_id, cluster, search) if search else None
    rows = tree_rows(tree, opened, on_path) if found is None else rows_to(tree, found, on_path)
    return {
        "title": tree.root.name or "Workflow",
        "root": tree.root,
        "cluster": cluster,
        **read_part(lambda: {"lines": _lines(tree, rows)}, "lines"),
        "span": tree.span,
        "states": tree.below[tree.root.id],
        "state_now": state_of(tree.below[tree.root.id]),
        "total": len(steps),
        "whole": whole,
        "cut": len(rows) >= MOST_ROWS,
        "path": path if len(path) > 1 else [],
        "waiting": waiting_for(tree),
        "unfinished": len(tree.unfinished),
        "failed": tree.below[tree.root.id][TaskState.FAILURE],
        "search": search,
        "found": None if found is None else len(found),
        "most_found": MOST_FOUND,
        "opened": opened,
        "page_rows": PAGE_ROWS,
    }


def _opened(view: View) -> Opened | None:
    parent = view.query.get("parent")
    if parent is None:
        return None
    start = view.query.get("start", "0")
    return Opened(parent, view.query.get("name") or "", int(start) if _ROW.fullmatch(start) else 0)


def _found(view: View, root_id: str, cluster: str, search: str) -> list[str]:
    """Ids of the workflow's tasks that match a filter. Raises FilterError."""
    mine = any_of((exactly("root", root_id), exactly("id", root_id)))
    found = (parse(search, view.now) & mine).in_cluster(cluster)
    page = find_tasks(view.store, found, limit=MOST_FOUND)
    return [task.id for task in page.items]


def _lines(tree: Tree, rows: list[Row]) -> list[Line]:
    begin, end = tree.span or (0.0, 0.0)
    span = max(end - begin, 0.001) * (1.08 if tree.unfinished else 1.0)

    def place(at: float | None, otherwise: float) -> float:
        return otherwise if at is None else round((at - begin) / span * 100, 2)

    return [_line(row, place(row.begins, 0.0), place(_ran_from(row), -1.0), place(row.ends, 0.0)) for row in rows]


def _ran_from(row: Row) -> float | None:
    return row.begins if row.bundle else row.step.started


def _line(row: Row, begins: float, started: float, ends: float) -> Line:
    running = not row.bundle and row.step.state is TaskState.STARTED
    ran_from = started if started >= 0 else ends
    return Line(row, begins, ran_from, 100.0 if running else ends, running)


PAGE = Page(
    "/workflows", "workflows.html", context, title="Workflows", nav="Workflows", regions=("workflows",), access=IN_PART
)
WORKFLOW_PAGE = Page(
    "/workflows/{root_id:path}",
    "workflow.html",
    workflow_context,
    title="Workflow",
    regions=("summary", "tree"),
    access=IN_PART,
)
