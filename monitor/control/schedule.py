"""Sending now what beat sends by its schedule."""

from uuid import uuid4

import msgspec

from monitor.access import Role
from monitor.brokers.publish import Call
from monitor.brokers.publish import Route
from monitor.brokers.publish import publisher
from monitor.control.commands import ClusterCommand
from monitor.control.commands import Performed
from monitor.control.commands import TaskResult
from monitor.control.retry import find_route
from monitor.control.target import Target
from monitor.errors import ArgumentsUnknown
from monitor.errors import ConfirmationRequired
from monitor.errors import Conflict
from monitor.records import ScheduleEntry
from monitor.store import queries
from monitor.store.schedule import entry_runs
from monitor.store.schedule import schedule_entry

_args = msgspec.json.Decoder(list[object])
_kwargs = msgspec.json.Decoder(dict[str, object])


class RunScheduled(ClusterCommand, frozen=True, kw_only=True):
    """Send what an entry of the schedule sends, now.

    ``confirm``: its arguments were seen.
    """

    action = "schedule.run"
    subject = "{0.entry}"
    role = Role.OPERATOR
    route = "schedule/run"
    note = "the entry's task is sent once, now; beat's own next run stays as it was"
    entry: str
    confirm: bool = False

    def run(self, target: Target) -> Performed:
        """Raises NotFound, ArgumentsUnknown, Conflict for an unknown queue, and asks back without ``confirm``."""
        entry = schedule_entry(target.store, self.entry, target.cluster)
        if entry.args_json is None or entry.kwargs_json is None:
            raise ArgumentsUnknown(
                f"The arguments of {entry.name!r} are not known well enough to send it: they hold something "
                "that is not JSON, or a secret that is masked.",
                args=entry.args,
                kwargs=entry.kwargs,
            )
        route = _route(target, entry)
        if not self.confirm:
            raise ConfirmationRequired(
                f"{entry.task} goes to {route} with args {entry.args} and kwargs {entry.kwargs}. Confirm to send it.",
                args=entry.args,
                kwargs=entry.kwargs,
                queue=route.queue,
            )
        call = Call(
            id=str(uuid4()),
            name=entry.task,
            args=_args.decode(entry.args_json),
            kwargs=_kwargs.decode(entry.kwargs_json),
            route=route,
        )
        with publisher(target.broker, target.settings) as sender:
            sender.send(call)
        message = f"Sent {entry.task} as {call.id} to {route}."
        result = TaskResult(id=call.id, outcome="done", message=message, new_id=call.id)
        return Performed(
            outcome="done", message=message, results=(result,), details={"new_id": call.id, "to": str(route)}
        )


def _route(target: Target, entry: ScheduleEntry) -> Route:
    """The queue that the entry names, else the one that its last run had."""
    if entry.queue is not None:
        return Route("", entry.queue)
    for run in entry_runs(target.store, entry, 0.0, limit=5):
        return find_route(target, queries.task(target.store, run.id, target.cluster), None)
    raise Conflict(f"{entry.name!r} names no queue, and no run of it is in the record that would tell where it goes.")
