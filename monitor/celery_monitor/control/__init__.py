"""Commands: everything that a person can change, one Struct each, by the module of its noun."""

from celery_monitor.control.alerts import ALERT_COMMANDS
from celery_monitor.control.bulk import AbortJob, BulkRetry, BulkRevoke
from celery_monitor.control.commands import READS, Allowed, Command
from celery_monitor.control.queues import QUEUE_COMMANDS, FindMessage
from celery_monitor.control.retry import RetryTask, RetryTasks
from celery_monitor.control.revoke import RevokeById, RevokeStamped, RevokeTask, RevokeTasks
from celery_monitor.control.run import AbortTask, RunScheduled, RunTask, SendTask
from celery_monitor.control.users import USER_COMMANDS
from celery_monitor.control.views import FAILURE_COMMANDS, VIEW_COMMANDS
from celery_monitor.control.workers import WORKER_COMMANDS
from celery_monitor.records.user import Role

COMMANDS: tuple[type[Command], ...] = (
    RetryTask, RetryTasks, RevokeTask, RevokeTasks, RevokeById, RevokeStamped, FindMessage, RunTask, SendTask,
    AbortTask, RunScheduled, BulkRetry, BulkRevoke, AbortJob, *FAILURE_COMMANDS, *VIEW_COMMANDS, *WORKER_COMMANDS,
    *QUEUE_COMMANDS, *USER_COMMANDS, *ALERT_COMMANDS,
)  # fmt: skip
ALLOWED: dict[str, Allowed] = {
    **{command.action: Allowed(command.role, command.in_part) for command in COMMANDS},
    **READS,
}
REQUIRED_ROLE: dict[str, Role] = {action: each.role for action, each in ALLOWED.items()}
