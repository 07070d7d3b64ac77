"""Commands: everything that a person can change, one Struct each, by the module of its noun."""

from celery_monitor.control.alerts import ALERT_COMMANDS
from celery_monitor.control.bulk import AbortJob, BulkRetry, BulkRevoke
from celery_monitor.control.commands import Command
from celery_monitor.control.queues import QUEUE_COMMANDS, FindMessage
from celery_monitor.control.retry import RetryTask, RetryTasks
from celery_monitor.control.revoke import RevokeStamped, RevokeTask, RevokeTasks
from celery_monitor.control.run import RunScheduled, RunTask
from celery_monitor.control.users import USER_COMMANDS
from celery_monitor.control.views import FAILURE_COMMANDS, VIEW_COMMANDS
from celery_monitor.control.workers import WORKER_COMMANDS
from celery_monitor.records.user import Role

COMMANDS: tuple[type[Command], ...] = (
    RetryTask, RetryTasks, RevokeTask, RevokeTasks, RevokeStamped, FindMessage, RunTask, RunScheduled, BulkRetry,
    BulkRevoke, AbortJob, *FAILURE_COMMANDS, *VIEW_COMMANDS, *WORKER_COMMANDS, *QUEUE_COMMANDS,
    *USER_COMMANDS, *ALERT_COMMANDS,
)  # fmt: skip
REQUIRED_ROLE: dict[str, Role] = {
    **{command.action: command.role for command in COMMANDS},
    "message.read": Role.ADMIN,  # a captured message is stored with its secrets
    "export.tasks": Role.VIEWER,
    "export.actions": Role.ADMIN,  # reasons and parameters of everybody's actions
}
