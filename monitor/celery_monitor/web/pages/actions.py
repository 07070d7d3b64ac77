"""The audit trail: user, action, target, reason and result, denied actions included; and the latest jobs."""

from celery_monitor.control import REQUIRED_ROLE
from celery_monitor.store.actions import read_actions
from celery_monitor.store.jobs import read_jobs
from celery_monitor.web.pages import Context, Page, View
from celery_monitor.web.security.reach import IN_PART

PAGE_SIZE = 100
FILTERS = ("actor", "action", "outcome", "target")
JOBS_SHOWN = 10
OUTCOMES = ("done", "unconfirmed", "failed", "denied")


def context(view: View) -> Context:
    """An empty field does not filter; an unknown value matches nothing."""
    wanted = {name: view.query.get(name) or None for name in FILTERS}
    trail = read_actions(
        view.store, limit=PAGE_SIZE, cursor=view.query.get("cursor") or None, cluster=view.cluster, **wanted
    )
    groups = sorted({f"{action.partition('.')[0]}.*" for action in REQUIRED_ROLE})
    first = not view.query.get("cursor") and not any(wanted.values())
    return {
        "jobs": read_jobs(view.store, limit=JOBS_SHOWN, cluster=view.cluster) if first else [],
        "trail": trail,
        "wanted": wanted,
        "filtered": any(wanted.values()),
        "known_actions": [*groups, *sorted(REQUIRED_ROLE)],
        "outcomes": OUTCOMES,
        "may_export": view.role >= REQUIRED_ROLE["export.actions"],
    }


PAGE = Page(
    "/actions", "actions.html", context, title="Actions", nav="Actions", regions=("jobs", "actions"), access=IN_PART
)
