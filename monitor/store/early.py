"""What was captured before anything else was known of its task: workers hold task events back, and captures not."""

from collections import OrderedDict

import msgspec

from monitor.lifecycle import fold
from monitor.records import Event
from monitor.records import Task

MOST = 10_000  # tasks that may be waited for; then the oldest are not


class Early:
    """Keeps what messages say of their tasks, without their bodies."""

    def __init__(self) -> None:
        self._events: OrderedDict[str, Event] = OrderedDict()

    def keep(self, task_id: str, event: Event) -> None:
        if event.message is not None:
            facts = msgspec.structs.replace(event.message, body=None)
            self._events[task_id] = msgspec.structs.replace(event, message=facts)
        if len(self._events) > MOST:
            self._events.popitem(last=False)

    def tell(self, task: Task) -> None:
        """Folds what is known into a new task. Kept on: the transaction that tells it may fail."""
        if self._events and (event := self._events.get(task.id)) is not None:
            fold(task, event)
