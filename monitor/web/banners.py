"""What every page must say before anything else: that the record has holes, is late, or hears nothing."""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import Literal
from typing import NamedTuple

from monitor.gaps import in_words
from monitor.health_sentence import age_words
from monitor.health_sentence import counted
from monitor.records import Gap
from monitor.records import ReceiverHealth
from monitor.records import Worker
from monitor.records import WorkerStatus
from monitor.shard_health import silent_parts
from monitor.web.receivers import RECEIVER
from monitor.workers import RENAME
from monitor.workers import SKEW_SECONDS
from monitor.workers import doubled_words
from monitor.workers import is_skewed

LAG_SECONDS = 2.0
QUIET_RECEIVER_SECONDS = 3.0  # it writes its health every second
SILENT_RECEIVER_SECONDS = 15.0  # after which it is not only busy
GAP_SHOWN_SECONDS = 3600.0  # how long a gap that is over stays in the banner; charts show it for ever
NAMED_WORKERS = 3
MOST_ERROR = 300
SINCE = "Failing since"
MEANINGS = {  # of the names in receiver/helpers.py
    "sampler": "Queues, pools and statistics of workers are out of date, and task events are not turned on.",
    "queue sampler": "Queue depths are out of date.",
    "schedules": "The schedule is out of date, and overdue entries are not noticed.",
    "reconciler": "Workers that die and tasks that are lost are not noticed.",
    "retention": "Old tasks are not deleted, and the database grows.",
    "socket process": "A thread reads the broker until the receiver is restarted; a large burst may be cut off.",
}

Kind = Literal[
    "receiver",
    "helper",
    "record",
    "broker",
    "gap",
    "refused",
    "malformed",
    "no-workers",
    "events-off",
    "skew",
    "lag",
    "duplicates",
]


class Banner(NamedTuple):
    """One message. ``then`` says what to do; ``since`` is a moment to show, and ``mark`` what happened then."""

    kind: Kind
    tone: Literal["bad", "warning"]
    text: str
    then: str = ""
    since: float | None = None
    mark: str = "Last heard"
    link: str | None = None
    enable: str | None = None  # cluster whose workers the button turns events on at


def gaps_shown_since(now: float) -> float:
    """How far back gaps must be read for ``banners``."""
    return now - GAP_SHOWN_SECONDS


def banners(
    health: Sequence[ReceiverHealth], workers: Sequence[Worker], gaps: Sequence[Gap], now: float
) -> tuple[Banner, ...]:
    """All that is wrong with what the pages know, the worst first; one banner per kind and cluster."""
    if not health:
        return (_no_receiver(),)
    found: list[Banner] = []
    for receiver in health:
        own = [worker for worker in workers if worker.cluster == receiver.cluster]
        named = f" of {receiver.cluster}" if len(health) > 1 else ""
        found += _helpers(receiver, named, now)
        if receiver.updated_at is None:
            continue  # its process ends before it can say anything
        found += _receiver(receiver, named, now)
        found += _gaps([gap for gap in gaps if gap.cluster == receiver.cluster], named, now)
        found += _refused(receiver, named)
        found += _malformed(receiver, named, now)
        found += _workers(receiver, own, named)
    return tuple(sorted(found, key=lambda banner: banner.tone != "bad"))


def _no_receiver() -> Banner:
    return Banner(
        "receiver",
        "warning",
        "No receiver has run on this record yet.",
        "Start one: celery-monitor serve --broker redis://localhost:6379/0",
    )


def _receiver(health: ReceiverHealth, named: str, now: float) -> Iterable[Banner]:
    if health.unwritten is not None:
        text = f"The record{named} is not being written: {health.unwritten}."
        then = "Events wait where there is room. These pages show what was known when it was last written."
        yield Banner("record", "bad", text, then, health.last_event_at, "Last event")
    silent = silent_parts(health, now - SILENT_RECEIVER_SECONDS)
    if silent and len(silent) < len(health.parts):
        which = ", ".join(f"{part.shard}/{len(health.parts)}" for part in silent)
        text = f"Of the receivers{named} that share its tasks, {which} {'is' if len(silent) == 1 else 'are'} silent."
        since = max((part.updated_at for part in silent if part.updated_at is not None), default=None)
        then = f"Tasks of that share are not recorded. Start celery-monitor receive --shard {which.partition(',')[0]}."
        yield Banner("receiver", "bad", text, then, since)
    elif health.updated_at is not None and now - health.updated_at > SILENT_RECEIVER_SECONDS and not health.unwritten:
        text = f"The receiver{named} does not run. These pages show what was known when it last wrote."
        yield Banner("receiver", "bad", text, "Start celery-monitor serve or receive.", health.updated_at)
    elif _quiet(health, now):
        text = f"The receiver{named} has said nothing for some seconds."
        yield Banner("lag", "warning", text, "These pages show what was true then; it may be busy.", health.updated_at)
    elif not health.connected:
        because = f": {health.error}" if health.error else "."
        text = f"The broker{named} cannot be reached{because}"
        yield Banner("broker", "bad", text, "Events may be missed; it is tried again by itself.", health.last_event_at)
    elif health.lag_seconds is not None and health.lag_seconds > LAG_SECONDS:
        text = f"The receiver{named} is {age_words(health.lag_seconds)} behind."
        yield Banner("lag", "warning", text, "These pages show what was true then.")


def _helpers(health: ReceiverHealth, named: str, now: float) -> Iterable[Banner]:
    """What keeps failing. Without the broker nearly all does, and that is said already."""
    speaks = health.updated_at is not None and now - health.updated_at <= SILENT_RECEIVER_SECONDS
    for helper in health.helpers:
        if helper.name == RECEIVER:
            text = f"The receiver{named} ended {helper.failures} times in a row: {shortened(helper.error)}"
            then = "Each time it is started again; events may be missed meanwhile."
            yield Banner("helper", "bad", text, then, helper.since, SINCE)
        elif speaks and health.connected:
            text = f"The {helper.name}{named} keeps failing: {shortened(helper.error)}"
            yield Banner("helper", "warning", text, MEANINGS.get(helper.name, ""), helper.since, SINCE)


def shortened(error: str) -> str:
    """As a sentence."""
    text = error if len(error) <= MOST_ERROR else f"{error[:MOST_ERROR]}…"
    return text if text.endswith((".", "…")) else f"{text}."


def _quiet(health: ReceiverHealth, now: float) -> bool:
    return health.updated_at is not None and now - health.updated_at > QUIET_RECEIVER_SECONDS and not health.unwritten


def _gaps(gaps: Sequence[Gap], named: str, now: float) -> Iterable[Banner]:
    recent = [gap for gap in gaps if gap.ended is None or gap.ended > gaps_shown_since(now)]
    if not recent:
        return
    last = max(recent, key=lambda gap: gap.began)
    more = f" and {counted(len(recent) - 1, 'more gap')} in this hour" if len(recent) > 1 else ""
    dropped = f", {counted(last.dropped, 'event')} known to be missing" if last.dropped else ""
    cause = last.cause.rstrip(".")
    if last.ended is None:
        span = f"Events{named} are being missed: {cause}{dropped}{more}."
    else:
        length = age_words(max(1.0, last.ended - last.began))
        span = f"Events{named} of {length} may be missing: {cause}{dropped}{more}."
    yield Banner("gap", "warning", span, _after(last), last.began, "Began")


def _after(gap: Gap) -> str:
    """How far its tasks are reconciled."""
    found = gap.reconciliation
    if found is None:
        return "Charts hatch that time; states may be old."
    until = "Reconciled" if found.ended is not None else "Being reconciled"
    return f"Charts hatch that time. {until}: {in_words(found)}."


def _refused(health: ReceiverHealth, named: str) -> Iterable[Banner]:
    if health.refused:
        names = sorted({each.hostname for each in health.refused if each.hostname}) or [f"a sender{named}"]
        kinds = ", ".join(sorted({each.content_type for each in health.refused}))
        text = f"Events of {_names(names)} are not read: they are {kinds}, which is refused."
        then = 'Tasks there are not seen. Set event_serializer = "json" there and restart.'
        yield Banner("refused", "bad", text, then)


def _malformed(health: ReceiverHealth, named: str, now: float) -> Iterable[Banner]:
    if health.malformed_at is not None and now - health.malformed_at < GAP_SHOWN_SECONDS:
        came = counted(health.malformed_total, "message")
        text = f"{came}{named} {'was no event' if health.malformed_total == 1 else 'were no events'}."
        yield Banner("malformed", "warning", text, "They are not stored.", health.malformed_at, "The last came")


def _workers(health: ReceiverHealth, workers: Sequence[Worker], named: str) -> Iterable[Banner]:
    alive = [worker for worker in workers if worker.status is not WorkerStatus.OFFLINE]
    if not alive and health.connected:
        told = f"No worker{named} is up." if workers else f"No worker{named} has been seen."
        yield Banner("no-workers", "bad" if workers else "warning", told, "Tasks wait until one starts.")
    silent = [worker.hostname for worker in alive if worker.events_enabled is False]
    if silent:
        text = (
            f"{_names(silent)} {'sends' if len(silent) == 1 else 'send'} no task events, so tasks there are not seen."
        )
        yield Banner("events-off", "warning", text, link="/workers", enable=health.cluster)
    doubled = [words for worker in alive if (words := doubled_words(worker))]
    if doubled:
        text = f"{_names(doubled)}. Remote control reaches all of them, and only one answers for the name."
        yield Banner("duplicates", "warning", text[0].upper() + text[1:], RENAME, link="/workers")
    skewed = [worker for worker in alive if is_skewed(worker)]
    if skewed:
        yield _skew(skewed)
    jumped = [worker for worker in alive if abs(worker.jump) > SKEW_SECONDS]
    if jumped:
        yield _jump(jumped)


def _skew(workers: Sequence[Worker]) -> Banner:
    worst = max(abs(worker.skew or 0.0) for worker in workers)
    clocks = "clock is" if len(workers) == 1 else "clocks are"
    text = f"{_names([worker.hostname for worker in workers])}: {clocks} off by up to {worst:.1f} s."
    return Banner(
        "skew", "warning", text, "Its ETAs are met, and its times shown, by that clock; set it (NTP).", link="/workers"
    )


def _jump(workers: Sequence[Worker]) -> Banner:
    largest = max(abs(worker.jump) for worker in workers)
    clocks = "clock was" if len(workers) == 1 else "clocks were"
    text = (
        f"{_names([worker.hostname for worker in workers])}: {clocks} set by up to {age_words(largest)} while it ran."
    )
    then = "Times go on as if it had not been, until it starts anew; they are uncertain by the delay of that moment."
    return Banner("skew", "warning", text, then, link="/workers")


def _names(hostnames: Sequence[str]) -> str:
    if len(hostnames) <= NAMED_WORKERS:
        return ", ".join(hostnames)
    return f"{', '.join(hostnames[:NAMED_WORKERS])} and {len(hostnames) - NAMED_WORKERS} more"
