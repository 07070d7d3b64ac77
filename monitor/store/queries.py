"""Every read of the record, in one place to import from. All take the store first and give records."""

from monitor.store.clusters import actions
from monitor.store.clusters import clusters
from monitor.store.clusters import endings
from monitor.store.clusters import gaps
from monitor.store.clusters import health
from monitor.store.clusters import open_gaps
from monitor.store.clusters import pauses
from monitor.store.clusters import queue_history
from monitor.store.clusters import queues
from monitor.store.clusters import receiver_health
from monitor.store.clusters import rising
from monitor.store.clusters import standbys
from monitor.store.clusters import terms
from monitor.store.clusters import worker
from monitor.store.clusters import workers
from monitor.store.facets import facets
from monitor.store.failures import failure_counts
from monitor.store.failures import failure_group
from monitor.store.failures import failure_groups
from monitor.store.failures import failure_summaries
from monitor.store.failures import failure_summary
from monitor.store.failures import failure_trend
from monitor.store.failures import group_states
from monitor.store.failures import latest_of_group
from monitor.store.failures import new_failure_groups
from monitor.store.failures import open_groups
from monitor.store.held import held_tasks
from monitor.store.held import usual_runs
from monitor.store.messages import message
from monitor.store.messages import messages
from monitor.store.overview import longest_running
from monitor.store.overview import state_counts
from monitor.store.page import count
from monitor.store.page import tasks
from monitor.store.page import walk_tasks
from monitor.store.schedule import beat_health
from monitor.store.schedule import entry_runs
from monitor.store.schedule import schedule
from monitor.store.schedule import schedule_heard_at
from monitor.store.series import began
from monitor.store.series import most_time
from monitor.store.series import name_totals
from monitor.store.series import series
from monitor.store.series import slowest
from monitor.store.stuck import stuck_workflows
from monitor.store.tasks import lineage
from monitor.store.tasks import task
from monitor.store.tasks import tree
from monitor.store.views import saved_views
from monitor.store.workflows import steps
from monitor.store.workflows import workflows

__all__ = [
    "actions",
    "beat_health",
    "began",
    "clusters",
    "count",
    "endings",
    "entry_runs",
    "facets",
    "failure_counts",
    "failure_group",
    "failure_groups",
    "failure_summaries",
    "failure_summary",
    "failure_trend",
    "gaps",
    "group_states",
    "health",
    "held_tasks",
    "latest_of_group",
    "lineage",
    "longest_running",
    "message",
    "messages",
    "most_time",
    "name_totals",
    "new_failure_groups",
    "open_gaps",
    "open_groups",
    "pauses",
    "queue_history",
    "queues",
    "receiver_health",
    "rising",
    "saved_views",
    "schedule",
    "schedule_heard_at",
    "series",
    "slowest",
    "standbys",
    "state_counts",
    "steps",
    "stuck_workflows",
    "task",
    "tasks",
    "terms",
    "tree",
    "usual_runs",
    "walk_tasks",
    "worker",
    "workers",
    "workflows",
]
