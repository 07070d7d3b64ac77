"""Looking for a task's message in a queue of RabbitMQ, which shows none without delivering it: so it is an action."""

from monitor.access import Role
from monitor.brokers import held
from monitor.control.commands import ClusterCommand
from monitor.control.commands import Performed
from monitor.control.commands import TaskResult
from monitor.control.known import IN_BROKER
from monitor.control.target import Target
from monitor.errors import Conflict
from monitor.messages import why_not_exact
from monitor.records import Task
from monitor.store import queries
from monitor.store.messages import keep_message

HAZARD = (
    f"RabbitMQ shows no message without delivering it. Up to {held.MOST_TAKEN} are taken out of the queue and put "
    "back at once: they are marked as redelivered from then on, may stand in another order if workers take messages "
    "meanwhile, and a quorum queue counts it as a delivery."
)


def why_not_find(target: Target, task: Task) -> str | None:
    """Why its message is not looked for in this way; ``None`` where it may be."""
    if not held.can_take(target.broker):
        return "Only a queue of RabbitMQ is looked into in this way; where reading is free, it is done by itself."
    if task.state not in IN_BROKER:
        return f"Task {task.id} is {task.state.word}: its message has been acknowledged."
    if task.queue is None:
        return f"The queue of task {task.id} is not known."
    if not target.settings.capture:
        return "No messages are kept here (--no-capture), and what is found could not be."
    return None


class FindMessage(ClusterCommand, frozen=True, kw_only=True):
    """Look for a task's message in its queue on RabbitMQ, which takes messages out and puts them back.

    Why to look for a message.
    """

    action = "task.find_message"
    subject = "{0.id}"
    role = Role.OPERATOR
    route = "tasks/{id:name}/find-message"
    body = "FindBody"
    note = (
        "RabbitMQ only: messages of the task's queue are taken out and put back, as by reading it; what is found is "
        "kept like a captured message"
    )
    address = ("cluster", "id")
    id: str

    def run(self, target: Target) -> Performed:
        """Keeps it as a captured one. Raises Conflict where it cannot be looked for, or is not there."""
        task = queries.task(target.store, self.id, target.cluster)
        if why := why_not_find(target, task):
            raise Conflict(why)
        queue = str(task.queue)
        found = held.take(target.broker, target.settings, task.id, queue)
        message = found.messages.get(task.id)
        if message is None:
            looked = "the queue" if found.whole else f"the first {held.MOST_TAKEN} messages of the queue"
            raise Conflict(f"Its message is not in {looked} {queue}. One that a worker has cannot be seen on RabbitMQ.")
        if why := why_not_exact(message, task):
            raise Conflict(f"It was found in the queue {queue}, and cannot be used: {why}.")
        kept = keep_message(target.store, task, message, target.now(), target.settings.max_message_bytes)
        if not kept:
            raise Conflict(
                f"Its message was found in the queue {queue}, and is too large to keep: {message.size} bytes."
            )
        said = f"Its message was found in the queue {queue}, and is kept: a retry is exact."
        return Performed(
            outcome="done",
            message=said,
            results=(TaskResult(id=task.id, outcome="done", message=said, fidelity="exact"),),
            details={"queue": queue, "size": message.size},
        )
