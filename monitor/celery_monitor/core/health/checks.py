"""The checks of ``doctor``: problems of a setup and their fixes, from facts collected elsewhere. No I/O, no clock.

The kind of a finding is the name of its check, ``then`` is the fix. docs/doctor.md lists the checks.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from celery_monitor.core.health.findings import Finding, events_off, refused_events, shared_names, skewed_clocks
from celery_monitor.core.words import counted, named
from celery_monitor.core.workers import SKEW_SECONDS
from celery_monitor.records.application import Application
from celery_monitor.records.receiver import ReceiverHealth

LEAST_DISK_BYTES = 1024**3
LONG_RUN_SECONDS = 60.0
OLDEST = {"postgresql": (13,), "sqlite": (3, 35)}  # SQLite's is the first with RETURNING
KEEPS_EVENTS = (5, 7)  # the first Celery that keeps buffered events when it reconnects
PUBSUB_BYTES = 32 * 1024**2  # Redis's default; below it a burst disconnects the receiver
PUBSUB_FIX = "CONFIG SET client-output-buffer-limit 'pubsub 256mb 64mb 60', and the same in redis.conf"
FULL_SHARE = 0.9
VISIBILITY_SECONDS = 3600.0  # kombu's default on Redis
SENT_EVENTS_FIX = "Set task_send_sent_event = True where tasks are sent."
CAPTURE = "celery_monitor_capture"
EVENT_QUEUE = "celery-monitor-events"  # its default queue
CAPTURE_KEY = "capture_key_file"  # the setting of Celery that names the workers' key
INSTALL = "pip install celery-monitor-capture; app.conf.task_annotations ="
INSTALL_QUEUE = (
    "In the workers' environment: pip install celery-monitor-capture. Where the application is made: "
    "import celery_monitor_capture; celery_monitor_capture.install(app)"
)
FORMER_CAPTURE = re.compile(r"(?:celery_)?monitor\.capture:")


class Sender(NamedTuple):
    """Facts from the events of a worker. ``skew`` is our clock minus the worker's, in seconds."""

    skew: float
    version: str | None


class EventQueue(NamedTuple):
    """An event queue on RabbitMQ."""

    name: str
    messages: int
    consumers: int


@dataclass(frozen=True, kw_only=True)
class BrokerFacts:
    """Answers of a broker and its workers; ``None``: no answer."""

    transport: str
    workers: Sequence[str] = ()
    answers: Mapping[str, int] = field(default_factory=dict)  # to one ping, by node name; each process answers
    conf: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # by worker
    senders: Mapping[str, Sender] | None = None  # seen in the events of some seconds
    refused: Mapping[str, str] = field(default_factory=dict)  # content types of refused events, by sender
    redis: Mapping[str, object] | None = None  # INFO, and the limit of CONFIG GET as pubsub_limit
    queues: Sequence[EventQueue] | None = None
    own_queue: str | None = None
    capture_key: bool = False  # whether this monitor has one
    event_queue: str | None = None  # of celery_monitor_capture, where events come through it


@dataclass(frozen=True, kw_only=True)
class RecordFacts:
    """The database, and recorded facts of one cluster."""

    product: Literal["sqlite", "postgresql"]
    version: tuple[int, ...] = ()
    exists: bool = True
    refusal: str | None = None  # why it cannot be written
    exposed: Sequence[str] = ()  # files that other users of the machine may read or write
    free_bytes: int | None = None
    events_off: Sequence[str] = ()
    events_on: Sequence[str] = ()
    longest_run: float | None = None
    longest_eta: float | None = None
    receiver: ReceiverHealth | None = None


class ResultFacts(NamedTuple):
    """The result backend of a cluster. ``reason``: why it cannot be read; ``refusal``: why it does not answer."""

    address: str
    reason: str | None
    refusal: str | None


# The database


def judge_record(record: RecordFacts) -> Iterator[Finding]:
    """Checks of the database."""
    if record.refusal is not None:
        fix = "Grant this user write access, or check --database."
        yield Finding("database", "bad", f"Not writable: {record.refusal}.", fix)
    else:
        text = "Writable." if record.exists else "Does not exist yet; serve creates it."
        yield Finding("database", "good", text)
    if record.exposed:
        text = f"Other users of this machine may read or write {named(record.exposed)}."
        yield Finding("files of the database", "bad", text, f"Run chmod 600 {' '.join(record.exposed)} as their owner.")
    oldest, number = OLDEST[record.product], ".".join(map(str, record.version))
    if record.version and record.version < oldest:
        text, fix = f"{record.product} {number} is too old.", f"Use {'.'.join(map(str, oldest))} or newer."
        yield Finding("version of the database", "bad", text, fix)
    elif record.version:
        yield Finding("version of the database", "good", f"{record.product} {number}.")
    if record.free_bytes is not None:
        text, low = f"{record.free_bytes / 1024**3:.1f} GiB free on its disk.", record.free_bytes < LEAST_DISK_BYTES
        yield Finding("disk", "bad" if low else "good", text, "Free space, or lower keep_tasks." if low else "")


# The workers of one broker


def judge_workers(facts: BrokerFacts, record: RecordFacts | None) -> Iterator[Finding]:
    """Checks of the workers of one broker."""
    if facts.workers:
        yield Finding("workers", "good", f"{len(facts.workers)} answered: {named(facts.workers)}.")
    elif facts.event_queue is not None:
        text = (
            f"No worker with celery_monitor_capture answered. Over {facts.transport} Celery sends no events and has no "
            "remote control, so workers without it cannot be seen."
        )
        queue = "" if facts.event_queue == EVENT_QUEUE else f'(app, event_queue="{facts.event_queue}")'
        yield Finding("plug-in", "bad", text, INSTALL_QUEUE.replace("(app)", queue) if queue else INSTALL_QUEUE)
    else:
        fix = "Start one on this broker; a solo pool does not answer while it runs a task."
        yield Finding("workers", "bad", "No worker answered.", fix)
    shared = {name: answers for name, answers in facts.answers.items() if answers > 1}
    yield from shared_names(shared)
    if facts.workers and not shared:
        yield Finding("node names", "good", "Each worker has its own.")
    yield from refused_events(facts.refused.items())
    if facts.workers:
        yield from _heartbeats(facts)
        yield from _task_events(facts, record)
        yield from _configuration(facts, record)
    yield from _clocks(facts.senders or {})
    yield from _versions(facts.senders or {})


def _heartbeats(facts: BrokerFacts) -> Iterator[Finding]:
    if facts.senders is None:
        return
    silent = sorted(set(facts.workers) - facts.senders.keys() - facts.refused.keys())
    if silent:
        text = f"No events received from {named(silent)}."
        fix = "Start workers without --without-heartbeat; otherwise a crash is noticed late."
        yield Finding("heartbeats", "bad", text, fix)
    else:
        yield Finding("heartbeats", "good", "Sent by every worker.")


def _task_events(facts: BrokerFacts, record: RecordFacts | None) -> Iterator[Finding]:
    off = sorted(set(record.events_off) & set(facts.workers)) if record else []
    on = {name for name, conf in facts.conf.items() if conf.get("worker_send_task_events")}
    on |= set(record.events_on) if record else set()
    unknown = sorted(set(facts.workers) - on - set(off))
    yield from events_off(off)
    if unknown and not off:
        text = f"Unknown for {named(unknown)}: workers do not report whether they run with -E."
        fix = "Start workers with -E. serve also turns events on."
        yield Finding("task events", "unknown", text, fix)
    elif not off:
        yield Finding("task events", "good", "On for every worker.")


def _configuration(facts: BrokerFacts, record: RecordFacts | None) -> Iterator[Finding]:
    if not facts.conf:
        yield Finding("configuration", "unknown", "No worker reported its configuration.")
        return
    unsent = sorted(name for name, conf in facts.conf.items() if not conf.get("task_send_sent_event"))
    if unsent:
        text = f"task_send_sent_event is off on {named(unsent)}: tasks are not seen until a worker receives them, and "
        yield Finding("sent events", "bad", f"{text}their queues may stay unknown.", SENT_EVENTS_FIX)
    else:
        yield Finding("sent events", "good", "task_send_sent_event is on.")
    yield from _capture({name: str(conf.get("task_annotations")) for name, conf in facts.conf.items()})
    yield from _capture_keys(facts)
    yield _prefetch(facts, record)


def _capture_keys(facts: BrokerFacts) -> Iterator[Finding]:
    """A worker's environment is not visible, only its configuration."""
    signing = sorted(name for name, conf in facts.conf.items() if conf.get(CAPTURE_KEY))
    if signing and not facts.capture_key:
        text = f"{named(signing)}: captured messages are signed, and this monitor has no key to check them."
        yield Finding("signed messages", "bad", text, "Set --capture-key-file to a file with the key of the workers.")
    elif facts.capture_key and len(signing) < len(facts.conf):
        others = sorted(facts.conf.keys() - set(signing))
        text = f"capture_key is set; {CAPTURE_KEY} is not, on {named(others)}: retries are exact only if messages are "
        fix = "Set CELERY_CAPTURE_KEY_FILE there, which is not visible from here, or capture_key_file."
        yield Finding("signed messages", "unknown", f"{text}signed.", fix)
    elif signing:
        yield Finding("signed messages", "good", "Captured messages are signed, and this monitor has a key.")


def _capture(annotations: Mapping[str, str]) -> Iterator[Finding]:
    """``annotations``: ``task_annotations`` by worker. The former name works until the package there is upgraded."""
    old = sorted(name for name, text in annotations.items() if FORMER_CAPTURE.search(text))
    bare = sorted(name for name, text in annotations.items() if name not in old and f"{CAPTURE}:" not in text)
    if old:
        line = FORMER_CAPTURE.sub(f"{CAPTURE}:", annotations[old[0]])
        text = f"{named(old)}: task_annotations names a module that newer versions do not have."
        yield Finding("exact retries", "bad", text, f"{INSTALL} {line}")
    if bare:
        text = f"{CAPTURE} is not used on {named(bare)}: retries are probable or refused there."
        yield Finding("exact retries", "plain", text, f'{INSTALL} {{"*": {{"Request": "{CAPTURE}:Request"}}}}')
    if not (old or bare):
        yield Finding("exact retries", "good", f"All workers use {CAPTURE}.")


def _prefetch(facts: BrokerFacts, record: RecordFacts | None) -> Finding:
    many = {name: conf.get("worker_prefetch_multiplier") for name, conf in facts.conf.items()}
    unbounded = sorted(name for name, each in many.items() if each == 0)
    if unbounded:
        text = f"worker_prefetch_multiplier is 0 on {named(unbounded)}: one worker prefetches all messages."
        return Finding("prefetch", "bad", text, "Set it to 1 or more.")
    longest = record.longest_run if record else None
    hoarding = sorted(name for name, each in many.items() if isinstance(each, int) and each > 1)
    if hoarding and longest is not None and longest > LONG_RUN_SECONDS:
        text = f"Tasks run up to {longest:.0f} s, and {named(hoarding)} prefetch others meanwhile."
        return Finding("prefetch", "plain", text, "For long tasks, set worker_prefetch_multiplier = 1.")
    return Finding("prefetch", "good", "worker_prefetch_multiplier is bounded.")


def _clocks(senders: Mapping[str, Sender]) -> Iterator[Finding]:
    off = {name: sender.skew for name, sender in senders.items() if abs(sender.skew) > SKEW_SECONDS}
    yield from skewed_clocks(off)
    if senders and not off:
        yield Finding("clocks", "good", f"All agree within {SKEW_SECONDS:.0f} s.")


def _versions(senders: Mapping[str, Sender]) -> Iterator[Finding]:
    by_version: dict[str, list[str]] = {}
    for name, sender in sorted(senders.items()):
        if sender.version is not None:
            by_version.setdefault(sender.version, []).append(name)
    dropping = sorted(name for version, names in by_version.items() if _drops_events(version) for name in names)
    if dropping:
        text = f"{named(dropping)}: Celery before 5.7.0 drops buffered events when it reconnects to the broker."
        fix = "Upgrade Celery there to 5.7.0 or newer (celery#10401, #10417, #10435)."
        yield Finding("reconnects", "plain", text, fix)
    if len(by_version) > 1:
        versions = "; ".join(f"{version} on {named(names)}" for version, names in sorted(by_version.items()))
        yield Finding("Celery", "bad", f"Versions differ: {versions}.", "Use one version on all workers.")
    elif by_version:
        yield Finding("Celery", "good", f"{next(iter(by_version))} everywhere.")


def _drops_events(version: str) -> bool:
    """Whether this Celery is older than 5.7.0; False if the version is not a number."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and (int(found[1]), int(found[2])) < KEEPS_EVENTS


# The broker


def judge_transport(facts: BrokerFacts, record: RecordFacts | None) -> Iterator[Finding]:
    """Checks of the broker."""
    if facts.transport == "redis":
        info = facts.redis or {}
        yield _redis_memory(info)
        yield _pubsub(info.get("pubsub_limit"))
        if facts.conf:
            yield _visibility(facts, record)
    yield from _event_queues(facts)


def _redis_memory(info: Mapping[str, object]) -> Finding:
    limit, used, policy = info.get("maxmemory"), info.get("used_memory"), info.get("maxmemory_policy")
    if not isinstance(limit, int) or policy is None:
        return Finding(
            "memory of Redis", "unknown", "This user may not read the limits of Redis.", "Allow it the command INFO."
        )
    if limit and policy != "noeviction":
        text = f"maxmemory-policy is {policy}: when memory is full, Redis evicts queues."
        return Finding(
            "memory of Redis", "bad", text, "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
        )
    if limit and isinstance(used, int) and used > FULL_SHARE * limit:
        text = f"{used / limit:.0%} of maxmemory used; at the limit no task can be sent."
        return Finding("memory of Redis", "bad", text, "Raise maxmemory, or empty queues.")
    return Finding("memory of Redis", "good", "Nothing is evicted." if limit else "No limit is set.")


def _pubsub(limit: object) -> Finding:
    found = re.search(r"pubsub (\d+) (\d+) (\d+)", str(limit))
    if found is None:
        return Finding("bursts", "unknown", "This user may not read client-output-buffer-limit.")
    hard, soft, seconds = map(int, found.groups())
    if (hard and hard < PUBSUB_BYTES) or (soft and soft < PUBSUB_BYTES // 4):
        text = (
            f"client-output-buffer-limit pubsub is {hard} {soft} {seconds}: a burst of events disconnects the receiver."
        )
        return Finding("bursts", "bad", text, PUBSUB_FIX)
    return Finding("bursts", "good", "client-output-buffer-limit pubsub is large enough.")


def _visibility(facts: BrokerFacts, record: RecordFacts | None) -> Finding:
    given = [
        options.get("visibility_timeout")
        for conf in facts.conf.values()
        if isinstance(options := conf.get("broker_transport_options"), dict)
    ]
    timeout = min((float(each) for each in given if isinstance(each, int | float)), default=VISIBILITY_SECONDS)
    longest = max(record.longest_run or 0.0, record.longest_eta or 0.0) if record else 0.0
    if longest > timeout:
        text = f"{timeout:.0f} s, but tasks run or wait for their ETA up to {longest:.0f} s: Redis delivers them "
        fix = f"broker_transport_options = {{'visibility_timeout': {int(longest * 2)}}}, the same everywhere"
        return Finding("visibility_timeout", "bad", f"{text}a second time.", fix)
    seen = "longer than any run or ETA seen" if longest else "no long run or ETA seen"
    return Finding("visibility_timeout", "good", f"{timeout:.0f} s; {seen}.")


def _event_queues(facts: BrokerFacts) -> Iterator[Finding]:
    if facts.queues is None:
        return
    abandoned = [queue for queue in facts.queues if not queue.consumers]
    for queue in abandoned:
        fix = f"Delete it if it is unused: rabbitmqctl delete_queue {queue.name}"
        if queue.name == facts.own_queue:
            fix = "Start the receiver, or delete the queue."
        text = f"{queue.name} has {counted(queue.messages, 'message')} and no consumer."
        yield Finding("event queues", "bad", text, fix)
    if not abandoned:
        yield Finding("event queues", "good", "All have a consumer.")


# The application under -A, and results


def judge_application(application: Application, workers_answered: bool) -> Iterator[Finding]:
    """Checks of the application's configuration."""
    title = application.title
    for name, why in sorted(application.unusable.items()):
        text = f"{name} of {title} cannot be used here: {why}."
        yield Finding("application", "plain", text, "Use plain values, or set it with an option.")
    for why in application.problems.values():
        yield Finding(
            "application", "bad", f"{title}: {why}.", "Start it in the same directory and environment as the workers."
        )
    for each in application.unread:
        text = f"The entry {each.name!r} of beat_schedule cannot be read: {each.reason}."
        yield Finding("schedule", "bad", text, "Beat cannot read it either; fix the entry.")
    if not application.unusable and not application.problems:
        yield Finding("application", "good", f"The configuration of {title} is used.")
    accepted = application.setting("accept_content")
    if accepted and not {"json", "application/json"} & set(accepted):
        kinds = ", ".join(sorted(map(str, accepted)))
        text = f"Workers accept {kinds} but not json: they refuse tasks retried or run from here."
        yield Finding("content", "bad", text, "Add json to accept_content.")
    if not workers_answered and application.setting("task_send_sent_event") is False:
        text = f"task_send_sent_event is off in {title}: tasks are not seen until a worker receives them."
        yield Finding("sent events", "bad", text, SENT_EVENTS_FIX)


def judge_results(facts: ResultFacts | None) -> Finding:
    """Whether results can be read, which provide arguments and missed ends of tasks."""
    if facts is None:
        text = "Not configured: missed ends of tasks, and arguments truncated in events, stay unknown."
        return Finding("result backend", "plain", text, "Set --result-backend, or start with -A.")
    if facts.reason is not None:
        fix = "Missed ends of tasks stay unknown; results can be read from Redis or an SQL database."
        return Finding("result backend", "plain", f"{facts.address} cannot be read: {facts.reason}.", fix)
    if facts.refusal is not None:
        return Finding("result backend", "bad", facts.refusal, "Check its address and that it is running.")
    return Finding("result backend", "good", f"Results in {facts.address} can be read.")
