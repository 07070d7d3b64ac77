"""What is wrong with a set-up, and the mend: judged from facts that others have gathered. No I/O, no clock."""

import re
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from datetime import UTC
from datetime import datetime
from typing import Literal
from typing import NamedTuple

from monitor.records import FailingHelper
from monitor.workers import RENAME

Level = Literal["ok", "note", "unknown", "wrong"]

SKEW_SECONDS = 2.0
LEAST_DISK_BYTES = 1024**3
LONG_RUN_SECONDS = 60.0
OLDEST_POSTGRESQL = 13
OLDEST_SQLITE = (3, 35)  # the first with RETURNING
KEEPS_EVENTS = (5, 7)  # the first Celery that keeps buffered events over a reconnect
NAMED = 3
CAPTURE = "celery_monitor_capture"
INSTALL = "pip install celery-monitor-capture; app.conf.task_annotations ="
FORMER_CAPTURE = re.compile(r"(?:celery_)?monitor\.capture:")


class Finding(NamedTuple):
    """One thing that was looked at. ``mend`` is what to do; empty where there is nothing to do."""

    check: str
    level: Level
    what: str
    mend: str = ""


class Heard(NamedTuple):
    """What the events of a worker told. ``skew`` is our clock minus its, in seconds."""

    skew: float
    version: str | None


class EventQueue(NamedTuple):
    """A queue of events on RabbitMQ."""

    name: str
    messages: int
    consumers: int


@dataclass(frozen=True, kw_only=True)
class BrokerFacts:
    """What a broker and its workers told; ``None``: they did not."""

    transport: str
    workers: Sequence[str] = ()
    answers: Mapping[str, int] = field(default_factory=dict)  # to one ping, by node name: one for each process
    conf: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # by worker
    heard: Mapping[str, Heard] | None = None  # who sent events while we listened
    refused: Mapping[str, str] = field(default_factory=dict)  # the type of events that are not read, by sender
    redis: Mapping[str, object] | None = None  # INFO, and the limit of CONFIG GET as pubsub_limit
    queues: Sequence[EventQueue] | None = None
    own_queue: str | None = None


@dataclass(frozen=True, kw_only=True)
class RecordFacts:
    """What the database told, and what the record of one cluster says."""

    product: Literal["sqlite", "postgresql"]
    version: tuple[int, ...] = ()
    exists: bool = True
    refusal: str | None = None  # why it takes no writing
    free_bytes: int | None = None
    events_off: Sequence[str] = ()
    events_on: Sequence[str] = ()
    longest_run: float | None = None
    longest_eta: float | None = None
    helpers: Sequence[FailingHelper] = ()


def judge_workers(facts: BrokerFacts, record: RecordFacts | None) -> list[Finding]:
    """Everything about the workers of one broker."""
    found = [_workers(facts), *_node_names(facts), *_events(facts, record), *_configuration(facts, record)]
    return [*found, *_clocks(facts), *_versions(facts)]


def judge_record(record: RecordFacts) -> list[Finding]:
    """Everything about the database."""
    found = [_writable(record)]
    if record.version:
        oldest = OLDEST_SQLITE if record.product == "sqlite" else (OLDEST_POSTGRESQL,)
        number = ".".join(map(str, record.version))
        if record.version < oldest:
            wanted = ".".join(map(str, oldest))
            found.append(
                Finding(
                    "version of the database",
                    "wrong",
                    f"{record.product} {number} is too old.",
                    f"Take {wanted} or newer.",
                )
            )
        else:
            found.append(Finding("version of the database", "ok", f"{record.product} {number}."))
    if record.free_bytes is not None:
        free = f"{record.free_bytes / 1024**3:.1f} GiB are free on its disk."
        low = record.free_bytes < LEAST_DISK_BYTES
        found.append(Finding("disk", "wrong" if low else "ok", free, "Free space, or lower keep_tasks." if low else ""))
    return found


def _writable(record: RecordFacts) -> Finding:
    if record.refusal is not None:
        return Finding(
            "database",
            "wrong",
            f"It cannot be written: {record.refusal}.",
            "Give this user the right to write, or check --database.",
        )
    return Finding(
        "database", "ok", "It can be written." if record.exists else "It does not exist yet; serve makes it."
    )


def judge_receiver(record: RecordFacts) -> Iterable[Finding]:
    """What keeps failing within the receiver that writes the record."""
    for helper in record.helpers:
        since = datetime.fromtimestamp(helper.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        yield Finding(
            "receiver",
            "wrong",
            f"The {helper.name} failed {helper.failures} times in a row, since {since}: {helper.error}",
            "Fix the cause; it is tried again by itself.",
        )


def _workers(facts: BrokerFacts) -> Finding:
    if not facts.workers:
        return Finding(
            "workers",
            "wrong",
            "No worker answers.",
            "Start one on this broker; a solo pool does not answer while it works.",
        )
    return Finding("workers", "ok", f"{len(facts.workers)} answer: {named(facts.workers)}.")


def _node_names(facts: BrokerFacts) -> Iterable[Finding]:
    doubled = sorted(name for name, answers in facts.answers.items() if answers > 1)
    if doubled:
        told = "; ".join(f"{facts.answers[name]} processes call themselves {name}" for name in doubled[:NAMED])
        yield Finding("node names", "wrong", f"{told}.", RENAME)
    elif facts.workers:
        yield Finding("node names", "ok", "Each worker has its own.")


def _events(facts: BrokerFacts, record: RecordFacts | None) -> Iterable[Finding]:
    yield from _serializers(facts)
    if not facts.workers:
        return
    heard = facts.heard.keys() | facts.refused.keys() if facts.heard is not None else set(facts.workers)
    silent = sorted(set(facts.workers) - heard)
    if silent:
        yield Finding(
            "heartbeats",
            "wrong",
            f"{named(silent)}: no event came while we listened.",
            "Start workers without --without-heartbeat; else their death is noticed late.",
        )
    elif facts.heard is not None:
        yield Finding("heartbeats", "ok", "Every worker sends them.")
    off = sorted(set(record.events_off) & set(facts.workers)) if record else []
    on = {name for name, conf in facts.conf.items() if conf.get("worker_send_task_events")}
    on |= set(record.events_on) if record else set()
    unknown = sorted(set(facts.workers) - on - set(off))
    if off:
        yield Finding(
            "task events",
            "wrong",
            f"{named(off)}: off, so tasks there are not seen.",
            "Start workers with -E, or set worker_send_task_events = True.",
        )
    elif unknown:
        yield Finding(
            "task events",
            "unknown",
            f"{named(unknown)}: not known; a worker does not tell whether it runs with -E.",
            "Start workers with -E. serve turns events on where they are off.",
        )
    else:
        yield Finding("task events", "ok", "On at every worker.")


def _serializers(facts: BrokerFacts) -> Iterable[Finding]:
    if facts.refused:
        kinds = ", ".join(sorted(set(facts.refused.values())))
        yield Finding(
            "event serializer",
            "wrong",
            f"{named(sorted(each or 'a sender without a name' for each in facts.refused))}: events are {kinds}, "
            "which is refused, so tasks there are not seen.",
            'Set event_serializer = "json" there (msgpack and yaml are read too) and restart.',
        )


def _configuration(facts: BrokerFacts, record: RecordFacts | None) -> Iterable[Finding]:
    if not facts.workers:
        return
    if not facts.conf:
        yield Finding("configuration", "unknown", "No worker told its configuration.")
        return
    unsent = sorted(name for name, conf in facts.conf.items() if not conf.get("task_send_sent_event"))
    if unsent:
        yield Finding(
            "sent events",
            "wrong",
            f"task_send_sent_event is off at {named(unsent)}: tasks are not seen until a worker takes them, and queues "
            "may stay unknown.",
            "Set task_send_sent_event = True where tasks are sent from.",
        )
    else:
        yield Finding("sent events", "ok", "task_send_sent_event is on.")
    yield from _capture({name: str(conf.get("task_annotations")) for name, conf in facts.conf.items()})
    yield from _prefetch(facts, record)


def _capture(annotations: Mapping[str, str]) -> Iterable[Finding]:
    """By worker, the text of its ``task_annotations``. A former line works until the package there is upgraded."""
    old = sorted(name for name, text in annotations.items() if FORMER_CAPTURE.search(text))
    bare = sorted(name for name, text in annotations.items() if name not in old and f"{CAPTURE}:" not in text)
    if old:
        line = FORMER_CAPTURE.sub(f"{CAPTURE}:", annotations[old[0]])
        yield Finding(
            "exact retries",
            "wrong",
            f"{named(old)}: the line for exact retries names a module that newer versions do not have.",
            f"{INSTALL} {line}",
        )
    if bare:
        yield Finding(
            "exact retries",
            "note",
            f"{CAPTURE} is not in use at {named(bare)}: retries are probable or refused there.",
            f'{INSTALL} {{"*": {{"Request": "{CAPTURE}:Request"}}}}',
        )
    if not (old or bare):
        yield Finding("exact retries", "ok", f"All workers use {CAPTURE}.")


def _prefetch(facts: BrokerFacts, record: RecordFacts | None) -> Iterable[Finding]:
    many = {name: conf.get("worker_prefetch_multiplier") for name, conf in facts.conf.items()}
    unbounded = sorted(name for name, each in many.items() if each == 0)
    if unbounded:
        yield Finding(
            "prefetch",
            "wrong",
            f"worker_prefetch_multiplier is 0 at {named(unbounded)}: one worker takes everything.",
            "Set it to 1 or more.",
        )
        return
    longest = record.longest_run if record else None
    hoarding = sorted(name for name, each in many.items() if isinstance(each, int) and each > 1)
    if hoarding and longest is not None and longest > LONG_RUN_SECONDS:
        yield Finding(
            "prefetch",
            "note",
            f"Tasks run up to {longest:.0f} s, and {named(hoarding)} hold others back meanwhile.",
            "For long tasks, worker_prefetch_multiplier = 1.",
        )
    else:
        yield Finding("prefetch", "ok", "worker_prefetch_multiplier is bounded.")


def _clocks(facts: BrokerFacts) -> Iterable[Finding]:
    if not facts.heard:
        return
    off = {name: heard.skew for name, heard in facts.heard.items() if abs(heard.skew) > SKEW_SECONDS}
    if off:
        worst = max(off.values(), key=abs)
        yield Finding(
            "clocks",
            "wrong",
            f"{named(sorted(off))}: off by up to {abs(worst):.1f} s.",
            "Set the clocks (NTP): workers meet ETAs by them, and their times are shown as stamped.",
        )
    else:
        yield Finding("clocks", "ok", f"All agree within {SKEW_SECONDS:.0f} s.")


def _versions(facts: BrokerFacts) -> Iterable[Finding]:
    by_version: dict[str, list[str]] = {}
    for name, heard in sorted((facts.heard or {}).items()):
        if heard.version is not None:
            by_version.setdefault(heard.version, []).append(name)
    dropping = sorted(name for version, names in by_version.items() if _drops_events(version) for name in names)
    if dropping:
        yield Finding(
            "reconnects",
            "note",
            f"{named(dropping)}: Celery before 5.7.0 drops the events that it holds when it reconnects to the broker.",
            "Upgrade Celery there to 5.7.0 or newer (celery#10401, #10417, #10435).",
        )
    if len(by_version) > 1:
        told = "; ".join(f"{version} at {named(names)}" for version, names in sorted(by_version.items()))
        yield Finding("Celery", "wrong", f"Its versions differ: {told}.", "Bring all workers to one version.")
    elif by_version:
        yield Finding("Celery", "ok", f"{next(iter(by_version))} everywhere.")


def _drops_events(version: str) -> bool:
    """Whether this Celery is older than 5.7.0; False for a version that is no number."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) < KEEPS_EVENTS


def named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
