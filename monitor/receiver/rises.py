"""Which queues have just begun to grow: seen in their samples of the last minute, which the record does not keep."""

from collections import defaultdict
from collections import deque
from collections.abc import Sequence

from monitor.health_sentence import RISE_SECONDS
from monitor.health_sentence import is_rising
from monitor.records import Queue


class Rises:
    """The samples of the queues of one cluster."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[float, int]]] = defaultdict(deque)

    def after(self, queues: Sequence[Queue], at: float) -> tuple[str, ...]:
        """The queues that rise, these samples of the moment ``at`` included."""
        names = {queue.name for queue in queues}
        self._samples = defaultdict(deque, {name: each for name, each in self._samples.items() if name in names})
        return tuple(queue.name for queue in queues if queue.ready is not None and self._rises(queue, queue.ready, at))

    def _rises(self, queue: Queue, ready: int, at: float) -> bool:
        samples = self._samples[queue.name]
        samples.append((at, ready))
        while samples[0][0] < at - RISE_SECONDS:
            samples.popleft()
        return is_rising([each for _, each in samples])
