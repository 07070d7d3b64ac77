"""A finding: one judged fact, as pages, the API and doctor show it, and the thresholds of all findings.

Also which queues are growing, by their samples.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple

from celery_monitor.core.words import named
from celery_monitor.records.queue import Queue, QueueSample
from celery_monitor.records.receiver import ReceiverHealth

GROWTH_SECONDS = 300.0  # how far back a queue is compared with itself
RISE_SECONDS = 60.0  # the same for samples of every second
RISE_SAMPLES = 3  # a single higher sample may be a burst that is being consumed
PEAK_SHARE = 0.9
PEAK_SAMPLES = 5  # a peak within the last samples still counts after the queue was emptied
GROWTH_LEAST = 10  # messages; a smaller increase is noise


class RecentSamples:
    """The samples of the last minute of one cluster's queues, which are not recorded."""

    def __init__(self) -> None:
        self._samples: dict[str, deque[tuple[float, int]]] = defaultdict(deque)
        self._rising: set[str] = set()

    def rising(self, queues: Sequence[Queue], at: float) -> tuple[str, ...]:
        """Adds the samples taken at ``at``; returns the queues that have begun to grow."""
        recent = {name: each for name, each in self._samples.items() if each[-1][0] >= at - RISE_SECONDS}
        self._samples = defaultdict(deque, recent)
        for queue in queues:
            rises = queue.ready is not None and self._add(queue, queue.ready, at)
            (self._rising.add if rises else self._rising.discard)(queue.name)
        self._rising &= self._samples.keys()
        return tuple(sorted(self._rising))

    def _add(self, queue: Queue, ready: int, at: float) -> bool:
        samples = self._samples[queue.name]
        samples.append((at, ready))
        while samples[0][0] < at - RISE_SECONDS:
            samples.popleft()
        return is_rising([each for _, each in samples])


def grows(queue: Queue, samples: Sequence[QueueSample], rising: AbstractSet[tuple[str, str]], now: float) -> bool:
    """Whether the queue fills faster than it is emptied; ``rising`` has (cluster, name) of those that begin to grow."""
    measured = [(sample.at, sample.ready) for sample in samples]
    latest = (queue.sampled_at or now, queue.ready)
    return (queue.cluster, queue.name) in rising or is_growing([*measured, latest], now)


def unattended(queue: Queue) -> bool:
    """Whether messages wait and no worker consumes them."""
    return queue.consumers == 0 and bool(queue.ready)


def is_growing(samples: Sequence[tuple[float, int | None]], now: float) -> bool:
    """Whether a queue has clearly more messages than minutes ago; ``samples`` are (time, messages ready), in order.

    At least two samples in the window are needed. A queue well below the highest sample is being emptied.
    """
    window = [ready for at, ready in samples if ready is not None and at >= now - GROWTH_SECONDS]
    return len(window) >= 2 and _grew(window[0], window)


def is_rising(window: Sequence[int]) -> bool:
    """Whether a queue has just begun to grow; ``window`` are the messages ready in the samples of the last minute.

    Compared with the lowest sample; the last three samples have to rise. A backlog that was emptied since then does
    not count, unless that was a moment ago.
    """
    if len(window) < RISE_SAMPLES or not window[-3] <= window[-2] < window[-1]:
        return False
    start = _emptied(window) if window.index(max(window)) < len(window) - PEAK_SAMPLES else 0
    return _grew(min(window[start:]), window[start:])


def _emptied(window: Sequence[int]) -> int:
    """The index of the last sample with at most a tenth of the highest; else 0."""
    least = (1 - PEAK_SHARE) * max(window)
    return max((at for at, ready in enumerate(window) if ready <= least), default=0)


def _grew(before: int, window: Sequence[int]) -> bool:
    return window[-1] - before >= max(GROWTH_LEAST, before // 10) and window[-1] >= PEAK_SHARE * max(window)


SILENT_SECONDS = 15.0  # after which a receiver is not just busy
ENDING_SECONDS = 120.0  # since its last exit; a process that keeps exiting is restarted within 30 s
FEWEST_ENDINGS = 2
STANDBY_SECONDS = 10.0  # a receiver that stands by writes so every other second
GAP_SECONDS = 3600.0  # how long a closed gap is shown; charts always show it
WINDOW_SECONDS = 900.0  # of failures
GONE_SECONDS = 3600.0  # how long an offline worker is named
BARELY_SECONDS = 10.0  # by which a slow beat may be late
MOST_OF_A_KIND = 2  # findings; more are counted in one
MOST_ERROR = 300  # characters

RENAME = (
    "Remote control reaches all of them, but only one answers for the name. "
    "Give each worker its own node name, for example -n worker1@%h and -n worker2@%h."
)
RECEIVER = "receiver"  # among the helpers: its process
SINCE = "Failing since"
MEANINGS = {  # of the names in receiver/helper_failures.py
    "sampler": "Queues, pools and worker stats are out of date, and task events are not turned on.",
    "queue sampler": "Queue depths are out of date.",
    "schedules": "The schedule is out of date, and overdue entries are not noticed.",
    "reconciler": "Dead workers and lost tasks are not noticed.",
    "retention": "Old tasks are not deleted, and the database grows.",
    "alert evaluation": "Alert rules are not evaluated: no alert fires or resolves.",
    "alert sender": "Messages of alerts are not sent.",
    "socket process": "A thread reads the broker until the receiver restarts; a large burst may disconnect it.",
}

BOUND_WORDS = {
    "workers": (
        "{most} workers{name} are recorded, which is the limit.",
        "New ones are listed once others have sent nothing for an hour. Their tasks are still recorded.",
    ),
    "queues": (
        "{most} queues{name} are measured, which is the limit.",
        "Others are not listed. Queues that workers consume have precedence, and tasks keep the names of their queues.",
    ),
    "counters": (
        "There were too many task names, queues or workers{name} in the last hour to count each.",
        "Charts and totals count the rest as (other). Tasks keep their names, and lists and facets count all of them.",
    ),
    "failures": (
        "{most} failure groups{name} are recorded, which is the limit.",
        "Failures of new causes are counted in the group (other).",
    ),
}

Tone = Literal["good", "plain", "unknown", "warning", "bad"]


class Bound(NamedTuple):
    """A most that was reached."""

    kind: Literal["workers", "queues", "counters", "failures"]
    most: int


class FindingLink(NamedTuple):
    """The link of a finding: a path below the prefix, and a query."""

    path: str
    query: Mapping[str, str] = {}


class Finding(NamedTuple):
    """One judged fact. ``plain`` needs no action; ``unknown`` could not be determined."""

    kind: str
    tone: Tone
    text: str
    then: str = ""  # the consequence for the tasks, or what to do
    link: FindingLink | None = None
    since: float | None = None  # a time to show, in epoch seconds
    mark: str = "Last event"  # its label
    cluster: str | None = None  # where task events can be turned on
    rest: "Finding | None" = None  # the rest of the sentence, with its own link


def failing_helpers(health: ReceiverHealth, now: float, name: str = "") -> Iterator[Finding]:
    """Helpers that keep failing. Without the broker nearly all do, which is another finding."""
    alive = health.late(now) <= SILENT_SECONDS
    for helper in health.helpers:
        error = as_sentence(helper.error)
        if helper.name == RECEIVER:
            text = f"The receiver{name} exited {helper.failures} times in a row: {error}"
            then = "It is restarted each time; events may be missed meanwhile."
            yield Finding("receiver", "bad", text, then, since=helper.since, mark=SINCE)
        elif alive and health.connected:
            text, then = f"The {helper.name}{name} keeps failing: {error}", MEANINGS.get(helper.name, "")
            yield Finding("receiver", "warning", text, then, since=helper.since, mark=SINCE)


def as_sentence(error: str) -> str:
    """The text of an error with its full stop, shortened to MOST_ERROR characters."""
    text = error if len(error) <= MOST_ERROR else f"{error[:MOST_ERROR]}…"
    return text if text.endswith((".", "…")) else f"{text}."


def refused_events(refused: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    """Senders whose events are refused, as (sender, content type)."""
    if pairs := sorted(set(refused)):
        names, kinds = sorted({sender for sender, _ in pairs}), sorted({kind for _, kind in pairs})
        text = f"Events from {named(names)} are refused: their format is {', '.join(kinds)}."
        then = 'Their tasks are not seen. Set event_serializer = "json" (or msgpack or yaml) there and restart.'
        yield Finding("event serializer", "bad", text, then)


def events_off(hostnames: Sequence[str], cluster: str | None = None) -> Iterator[Finding]:
    """Workers that send no task events."""
    if hostnames:
        send = "sends" if len(hostnames) == 1 else "send"
        text = f"{named(hostnames)} {send} no task events, so their tasks are not seen."
        then = "Start workers with -E, or set worker_send_task_events = True."
        yield Finding("task events", "warning", text, then, FindingLink("/workers"), cluster=cluster)


def shared_names(processes: Mapping[str, int]) -> Iterator[Finding]:
    """Node names with more than one process, and their number."""
    if processes:
        shared = [f"{number} processes share the name {name}" for name, number in sorted(processes.items())]
        yield Finding("node names", "warning", f"{named(shared)}.", RENAME, FindingLink("/workers"))


def skewed_clocks(skews: Mapping[str, float]) -> Iterator[Finding]:
    """Workers whose clocks are off, and by how many seconds."""
    if skews:
        clocks = "clock is" if len(skews) == 1 else "clocks are"
        text = f"{named(sorted(skews))}: {clocks} off by up to {max(map(abs, skews.values())):.1f} s."
        then = "Synchronize the clocks (NTP): ETAs depend on them, and times are shown as reported."
        yield Finding("clocks", "warning", text, then, FindingLink("/workers"))
