"""Which queues grow, judged by their samples. No I/O, no clock."""

from collections import defaultdict
from collections import deque
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from monitor.records import Queue
from monitor.records import QueueSample

GROWTH_SECONDS = 300.0  # how far back a queue is compared with itself
RISE_SECONDS = 60.0  # and how far back, where it is sampled every second
RISE_SAMPLES = 3  # one sample more than before may be a burst that is being taken
PEAK_SHARE = 0.9
PEAK_SAMPLES = 5  # a peak that is younger still counts, though the queue was emptied since
GROWTH_LEAST = 10  # fewer messages more than before are noise


class RecentSamples:
    """The samples of the last minute of one cluster's queues, which the record does not keep."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[float, int]]] = defaultdict(deque)

    def rising(self, queues: Sequence[Queue], at: float) -> tuple[str, ...]:
        """The queues that have begun to grow, with these samples of the moment ``at``."""
        names = {queue.name for queue in queues}
        self._samples = defaultdict(deque, {name: each for name, each in self._samples.items() if name in names})
        return tuple(queue.name for queue in queues if queue.ready is not None and self._rises(queue, queue.ready, at))

    def _rises(self, queue: Queue, ready: int, at: float) -> bool:
        samples = self._samples[queue.name]
        samples.append((at, ready))
        while samples[0][0] < at - RISE_SECONDS:
            samples.popleft()
        return is_rising([each for _, each in samples])


def grows(queue: Queue, samples: Sequence[QueueSample], rising: AbstractSet[tuple[str, str]], now: float) -> bool:
    """Whether the queue fills faster than it is emptied; ``rising`` are (cluster, name) of those seen to begin so."""
    measured = [(sample.at, sample.ready) for sample in samples]
    latest = (queue.sampled_at or now, queue.ready)
    return (queue.cluster, queue.name) in rising or is_growing([*measured, latest], now)


def unattended(queue: Queue) -> bool:
    """Messages wait, and no worker consumes them."""
    return queue.consumers == 0 and bool(queue.ready)


def is_growing(samples: Sequence[tuple[float, int | None]], now: float) -> bool:
    """Whether a queue holds clearly more than some minutes ago; ``samples`` are (time, messages ready), in order.

    A queue that was measured less than twice in the window is not known to grow, and one that is well below its
    highest of the window is being emptied.
    """
    window = [ready for at, ready in samples if ready is not None and at >= now - GROWTH_SECONDS]
    return len(window) >= 2 and _grew(window[0], window)


def is_rising(window: Sequence[int]) -> bool:
    """Whether a queue has just begun to grow; ``window`` are the messages ready in the samples of the last minute.

    It is compared with its lowest, and has to have more than in the sample before and the one before that. A backlog
    that was emptied since then is no measure of it, unless that was a moment ago.
    """
    if len(window) < RISE_SAMPLES or not window[-3] <= window[-2] < window[-1]:
        return False
    began = _emptied(window) if window.index(max(window)) < len(window) - PEAK_SAMPLES else 0
    return _grew(min(window[began:]), window[began:])


def _emptied(window: Sequence[int]) -> int:
    """The last sample in which next to nothing of the highest was left; else the first."""
    least = (1 - PEAK_SHARE) * max(window)
    return max((at for at, ready in enumerate(window) if ready <= least), default=0)


def _grew(before: int, window: Sequence[int]) -> bool:
    return window[-1] - before >= max(GROWTH_LEAST, before // 10) and window[-1] >= PEAK_SHARE * max(window)
