"""A finding: one judged fact, as pages, the API and doctor show it, and the thresholds of all judgements.

Also which queues grow, judged by their samples.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple

from celery_monitor.core.words import named
from celery_monitor.records.queue import Queue, QueueSample
from celery_monitor.records.receiver import ReceiverHealth

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


QUIET_SECONDS = 3.0  # a receiver writes its health every second
SILENT_SECONDS = 15.0  # after which it is not only busy
ENDING_SECONDS = 120.0  # after its last end; a process that keeps ending is started again after 30 s at most
FEWEST_ENDINGS = 2
STANDBY_SECONDS = 10.0  # a receiver that stands by writes so every other second
GAP_SECONDS = 3600.0  # how long a gap that is over is shown; charts show it for ever
WINDOW_SECONDS = 900.0  # of failures
GONE_SECONDS = 3600.0  # how long a worker that left is named
BARELY_SECONDS = 10.0  # an entry of the schedule may come that late from a beat that is only slow
NAMED_APART = 2  # more of one kind are counted in one finding
MOST_ERROR = 300  # characters

RENAME = (
    "Remote control reaches all of them, and only one answers for the name. "
    "Give each worker a node name of its own, for example -n worker1@%h and -n worker2@%h."
)
RECEIVER = "receiver"  # among the helpers: its process
SINCE = "Failing since"
MEANINGS = {  # of the names in receiver/helper_failures.py
    "sampler": "Queues, pools and statistics of workers are out of date, and task events are not turned on.",
    "queue sampler": "Queue depths are out of date.",
    "schedules": "The schedule is out of date, and overdue entries are not noticed.",
    "reconciler": "Workers that die and tasks that are lost are not noticed.",
    "retention": "Old tasks are not deleted, and the database grows.",
    "socket process": "A thread reads the broker until the receiver is restarted; a large burst may be cut off.",
}

Tone = Literal["good", "plain", "unknown", "warning", "bad"]


class FindingLink(NamedTuple):
    """Where a finding leads: a path below the prefix, and its query."""

    path: str
    query: Mapping[str, str] = {}


class Finding(NamedTuple):
    """One judged fact. ``plain`` needs nobody, and ``unknown`` could not be found out."""

    kind: str
    tone: Tone
    text: str
    then: str = ""  # what it means for the tasks, or what to do
    link: FindingLink | None = None
    since: float | None = None  # a moment to show, in epoch seconds,
    mark: str = "Last event"  # and what happened then
    cluster: str | None = None  # at whose workers task events can be turned on
    rest: "Finding | None" = None  # the end of the sentence, where it leads elsewhere


def failing_helpers(health: ReceiverHealth, now: float, name: str = "") -> Iterator[Finding]:
    """What keeps failing. Without the broker nearly all does, and that is a finding of its own."""
    speaks = health.updated_at is not None and now - health.updated_at <= SILENT_SECONDS
    for helper in health.helpers:
        error = as_sentence(helper.error)
        if helper.name == RECEIVER:
            text = f"The receiver{name} ended {helper.failures} times in a row: {error}"
            then = "Each time it is started again; events may be missed meanwhile."
            yield Finding("receiver", "bad", text, then, since=helper.since, mark=SINCE)
        elif speaks and health.connected:
            text, then = f"The {helper.name}{name} keeps failing: {error}", MEANINGS.get(helper.name, "")
            yield Finding("receiver", "warning", text, then, since=helper.since, mark=SINCE)


def as_sentence(error: str) -> str:
    """The text of an error with its full stop, shortened to MOST_ERROR characters."""
    text = error if len(error) <= MOST_ERROR else f"{error[:MOST_ERROR]}…"
    return text if text.endswith((".", "…")) else f"{text}."


def refused_events(refused: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """Events that are not read, as (sender, content type)."""
    if pairs := sorted(set(refused)):
        names, kinds = sorted({sender for sender, _ in pairs}), sorted({kind for _, kind in pairs})
        text = f"Events of {named(names)} are not read: they are {', '.join(kinds)}, which is refused."
        then = (
            'Tasks there are not seen. Set event_serializer = "json" there (msgpack and yaml are read too) and restart.'
        )
        yield Finding("event serializer", "bad", text, then)


def events_off(hostnames: Sequence[str], cluster: str | None = None) -> Iterator[Finding]:
    """Workers that send no task events."""
    if hostnames:
        send = "sends" if len(hostnames) == 1 else "send"
        text = f"{named(hostnames)} {send} no task events, so tasks there are not seen."
        then = "Start workers with -E, or set worker_send_task_events = True."
        yield Finding("task events", "warning", text, then, FindingLink("/workers"), cluster=cluster)


def shared_names(processes: Mapping[str, int]) -> Iterator[Finding]:
    """Node names that several processes have, and how many."""
    if processes:
        told = [f"{number} processes call themselves {name}" for name, number in sorted(processes.items())]
        yield Finding("node names", "warning", f"{named(told)}.", RENAME, FindingLink("/workers"))


def skewed_clocks(skews: Mapping[str, float]) -> Iterator[Finding]:
    """Workers whose clocks are off, and by how many seconds."""
    if skews:
        clocks = "clock is" if len(skews) == 1 else "clocks are"
        text = f"{named(sorted(skews))}: {clocks} off by up to {max(map(abs, skews.values())):.1f} s."
        then = "Set the clocks (NTP): workers meet ETAs by them, and their times are shown as stamped."
        yield Finding("clocks", "warning", text, then, FindingLink("/workers"))
