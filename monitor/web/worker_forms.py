"""The forms on a worker's page, as commands."""

from collections.abc import Callable

from monitor.control.worker_commands import AddConsumer
from monitor.control.worker_commands import Autoscale
from monitor.control.worker_commands import CancelConsumer
from monitor.control.worker_commands import DisableEvents
from monitor.control.worker_commands import EnableEvents
from monitor.control.worker_commands import PoolGrow
from monitor.control.worker_commands import PoolRestart
from monitor.control.worker_commands import PoolShrink
from monitor.control.worker_commands import RateLimit
from monitor.control.worker_commands import Shutdown
from monitor.control.worker_commands import TimeLimit
from monitor.control.worker_commands import WorkerCommand
from monitor.web.forms import Form
from monitor.web.forms import doing
from monitor.web.forms import seconds
from monitor.web.forms import whole
from monitor.web.pages import Act

Make = Callable[[str, Form], WorkerCommand]


def _grow(name: str, form: Form) -> WorkerCommand:
    return PoolGrow(cluster=form.get("of_cluster", ""), workers=(name,), number=whole(form, "number"))


def _shrink(name: str, form: Form) -> WorkerCommand:
    return PoolShrink(cluster=form.get("of_cluster", ""), workers=(name,), number=whole(form, "number"))


def _restart(name: str, form: Form) -> WorkerCommand:
    return PoolRestart(cluster=form.get("of_cluster", ""), workers=(name,))


def _autoscale(name: str, form: Form) -> WorkerCommand:
    maximum, minimum = whole(form, "maximum"), whole(form, "minimum")
    return Autoscale(cluster=form.get("of_cluster", ""), workers=(name,), maximum=maximum, minimum=minimum)


def _add_consumer(name: str, form: Form) -> WorkerCommand:
    return AddConsumer(cluster=form.get("of_cluster", ""), workers=(name,), queue=form.get("queue", "").strip())


def _cancel_consumer(name: str, form: Form) -> WorkerCommand:
    return CancelConsumer(cluster=form.get("of_cluster", ""), workers=(name,), queue=form.get("queue", ""))


def _rate_limit(name: str, form: Form) -> WorkerCommand:
    task, rate = form.get("task", "").strip(), form.get("rate", "").strip()
    return RateLimit(cluster=form.get("of_cluster", ""), workers=(name,), task=task, rate=rate)


def _time_limit(name: str, form: Form) -> WorkerCommand:
    return TimeLimit(
        cluster=form.get("of_cluster", ""),
        workers=(name,),
        task=form.get("task", "").strip(),
        soft=seconds(form, "soft"),
        hard=seconds(form, "hard"),
    )


def _enable_events(name: str, form: Form) -> WorkerCommand:
    return EnableEvents(cluster=form.get("of_cluster", ""), workers=(name,))


def _disable_events(name: str, form: Form) -> WorkerCommand:
    return DisableEvents(cluster=form.get("of_cluster", ""), workers=(name,))


def _shutdown(name: str, form: Form) -> WorkerCommand:
    return Shutdown(cluster=form.get("of_cluster", ""), workers=(name,), confirm=form.get("confirm"))


_MAKERS: dict[str, Make] = {
    "grow": _grow,
    "shrink": _shrink,
    "restart": _restart,
    "autoscale": _autoscale,
    "add-consumer": _add_consumer,
    "cancel-consumer": _cancel_consumer,
    "rate-limit": _rate_limit,
    "time-limit": _time_limit,
    "enable-events": _enable_events,
    "disable-events": _disable_events,
    "shutdown": _shutdown,
}
ACTIONS: dict[str, Act] = {name: doing("/workers", "hostname", make) for name, make in _MAKERS.items()}
OFFERED = tuple(
    command.action
    for command in (PoolGrow, PoolRestart, Autoscale, AddConsumer, RateLimit, TimeLimit, EnableEvents, Shutdown)
)
