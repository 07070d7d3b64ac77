"""Reads beat's schedule from application, workers, RedBeat and Django, and finds entries that are overdue."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from celery_monitor.addresses import transport_of
from celery_monitor.brokers.beat import (
    TRANSPORTS,
    ReadEntries,
    RedBeatContext,
    arguments_of_json,
    entries_of_app,
    entries_of_conf,
    read_redbeat,
    schedule_of_django,
    timezone_of,
)
from celery_monitor.brokers.connection import application_of, applies_to
from celery_monitor.brokers.remote import Remote
from celery_monitor.core.sanitize import Redactor
from celery_monitor.core.schedule import next_overdue
from celery_monitor.core.untrusted import plain_value
from celery_monitor.errors import MonitorError
from celery_monitor.receiver.pace import Pace
from celery_monitor.records.application import Application, Unread
from celery_monitor.records.schedule import BeatHealth, BeatSource, OverdueEntry, ScheduleEntry, UnreadEntry
from celery_monitor.records.worker import Worker
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store
from celery_monitor.store.foreign import PeriodicTask, read_periodic_tasks
from celery_monitor.store.receivers import is_caught_up
from celery_monitor.store.schedule import (
    Scheduled,
    all_overdue,
    read_beat_health,
    read_entries,
    read_schedule,
    save_beat_health,
    save_schedule,
)

ANSWER_SECONDS = 1.0
CONF_SECONDS = 300.0  # how often the application or the workers are asked
READ_SECONDS = 2.0  # how often RedBeat and django-celery-beat are read
JUDGE_SECONDS = 0.9  # at most, between two checks for overdue entries
LEAST_REST, LEAST_IDLE = 3.0, 20.0  # until the next check: times the duration of the last, and times its CPU time
AGAIN_SECONDS = 30.0  # after RedBeat or django-celery-beat could not be read
RENEWED_SECONDS = 30.0  # between two writes of what is only renewed
RUNS = 100  # of each entry that are read to judge it

log = logging.getLogger(__name__)


class Schedules:
    """The schedule of one cluster, for the thread that samples it."""

    def __init__(self, store: Store, broker: Broker, settings: Settings, pace: Pace | None = None) -> None:
        self._pace = pace or Pace()
        self._store = store
        self._cluster = broker.cluster
        self._settings = settings
        self._redactor = Redactor(settings.redact)
        self._application = _application(broker, settings)
        self._redbeat = settings.address_of("redbeat", broker.cluster) or self._own_redbeat() or broker
        self._django = self._own_django()
        if (given := settings.address_of("beat_database", broker.cluster)) is not None:
            self._django = given.url, "UTC"
        self._asked: set[tuple[str, int | None]] = set()  # processes that were asked for their configuration
        self._asked_at = 0.0
        self._read_at: dict[str, float] = {}  # when a source is to be read again
        self._found: dict[str, list[ScheduleEntry]] = {}  # by source; a later source has precedence
        self._unread: dict[str, str] = self._missing_django()  # sources that cannot be read, with the reason
        self._unread_entries: dict[str, tuple[UnreadEntry, ...]] = {}  # by source; "" are those that cannot be stored
        self._timezone: str | None = None
        self._pings = False  # whether beat may reply
        self._saved: list[ScheduleEntry] | None = None
        self._stored: BeatHealth | None = None
        self._health = BeatHealth(cluster=broker.cluster)
        self._judge_at = 0.0

    def step(self, workers: Sequence[Worker], remote: Remote | None, now: float) -> float:
        """One round; returns the seconds until the next check.

        The page shows what cannot be read, and its last entries stay. Raises StoreUnavailable.
        """
        if self._stored is None:
            self._restore()
        self._configuration(workers, remote, now)
        if transport_of(self._redbeat.url) in TRANSPORTS:
            self._read("RedBeat", self._read_redbeat, now)
        if self._django is not None:
            self._read("django-celery-beat", self._read_django, now)
        self._save(now)
        if now >= self._judge_at:
            self._judge_at = self._judge(now)
        return self._judge_at - now

    def _missing_django(self) -> dict[str, str]:
        """The reason why the database of the application's django-celery-beat is unknown, if it is."""
        problem = self._application.problems.get("beat database") if self._application is not None else None
        return {"django-celery-beat": f"django-celery-beat: {problem}"} if problem and self._django is None else {}

    def _own_redbeat(self) -> Broker | None:
        """The Redis of RedBeat from the application's configuration."""
        url = self._application.setting("redbeat_redis_url") if self._application is not None else None
        return Broker(self._cluster, url) if isinstance(url, str) and "://" in url else None

    def _own_django(self) -> tuple[str, str] | None:
        """The database of the application's django-celery-beat, and the time zone of its times."""
        database = self._application.databases.get("beat") if self._application is not None else None
        return (database.url, database.timezone) if database is not None else None

    def _restore(self) -> None:
        """Reads what an earlier process has stored."""
        self._stored = self._health = read_beat_health(self._store, self._cluster)
        stored = [entry for entry in read_entries(self._store, self._cluster) if entry.source in {"workers", "app"}]
        if stored:
            self._found["configuration"] = stored

    # The application's own

    def _configuration(self, workers: Sequence[Worker], remote: Remote | None, now: float) -> None:
        processes = {(worker.hostname, worker.pid) for worker in workers}
        if processes <= self._asked and now - self._asked_at < CONF_SECONDS:
            return
        self._asked, self._asked_at = processes, now
        if self._application is not None:
            read = entries_of_app(self._application, self._cluster, self._redactor, now)
            self._use_configuration([self._application.configuration], [read], "app")
        elif remote is not None and workers:
            names = [worker.hostname for worker in workers]
            replies = remote.ask("conf", timeout=ANSWER_SECONDS, expected=names)
            confs = [reply.ok for _, reply in sorted(replies.items()) if isinstance(reply.ok, dict)]
            if confs:  # else the entries of earlier replies stay
                found = [entries_of_conf(conf, self._cluster, self._redactor, now) for conf in confs]
                self._use_configuration(confs, found, "workers")
        if self._pings and remote is not None:
            self._ping(remote, now)

    def _use_configuration(
        self, confs: Sequence[Mapping[str, Any]], found: Sequence[ReadEntries], source: BeatSource
    ) -> None:
        self._found["configuration"] = [entry for read in found for entry in read.entries]
        unread = {each.name: each for read in found for each in read.unread}
        self._keep_unread("configuration", source, unread.values())
        self._timezone = timezone_of(confs[0].get)
        self._pings = any(conf.get("beat_enable_remote_control") for conf in confs)

    def _keep_unread(self, name: str, source: BeatSource, unread: Iterable[Unread]) -> None:
        """Notes which entries of a source could not be read."""
        self._unread_entries[name] = tuple(
            UnreadEntry(
                source=source,
                name=plain_value(self._redactor.text(each.name)),
                reason=plain_value(self._redactor.text(each.reason)),
            )
            for each in unread
        )

    def _ping(self, remote: Remote, now: float) -> None:
        replies = remote.ask("ping", timeout=ANSWER_SECONDS)
        beats = tuple(sorted(name for name in replies if name.startswith("celerybeat@")))
        if beats:
            self._health = replace(self._health, answered=beats, answered_at=now)

    # RedBeat and django-celery-beat

    def _read(self, name: str, read: Callable[[float], None], now: float) -> None:
        if now < self._read_at.get(name, 0.0):
            return
        try:
            read(now)
        except MonitorError as error:
            if name not in self._unread:
                log.warning("%s: %s", name, error)
            self._unread[name] = f"{name}: {error.message}"
            self._read_at[name] = now + AGAIN_SECONDS
        else:
            self._unread.pop(name, None)
            self._read_at[name] = now + self._pace.pause(READ_SECONDS)

    def _read_redbeat(self, now: float) -> None:
        found = read_redbeat(
            self._redbeat, self._settings, RedBeatContext(self._cluster, self._redactor, self._timezone, now)
        )
        self._found["redbeat"] = found.entries
        self._keep_unread("redbeat", "redbeat", found.unread)
        if found.lock_seconds is not None:
            self._health = replace(self._health, lock_until=now + found.lock_seconds, lock_free_since=None)
        elif self._health.lock_until is not None:
            self._health = replace(self._health, lock_until=None, lock_free_since=now)

    def _read_django(self, now: float) -> None:
        if self._django is None:
            return
        entries, unread = [], []
        for row in read_periodic_tasks(*self._django):
            try:
                entries.append(self._of_django(row, now))
            except (TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
                unread.append(Unread(name=str(row.name), reason=f"a value that the model does not allow: {error}"))
        self._found["django"] = entries
        self._keep_unread("django", "django", unread)

    def _of_django(self, row: PeriodicTask, now: float) -> ScheduleEntry:
        return ScheduleEntry(
            cluster=self._cluster,
            name=row.name,
            task=row.task,
            queue=row.queue or None,
            source="django",
            reported_at=now,
            enabled=row.enabled,
            starts=row.start_time,
            beat_last_at=row.last_run_at,
            total=row.total_run_count,
            **arguments_of_json(row.args, row.kwargs, self._redactor),
            **schedule_of_django(row.kind, row.when),
        )

    # Storing and judging

    def _save(self, now: float) -> None:
        if not self._found:
            return
        # RedBeat and django-celery-beat copy the configuration when they start, and have more of each entry.
        sources = (self._found.get(name, ()) for name in ("configuration", "redbeat", "django"))
        entries = list({entry.name: entry for source in sources for entry in source}.values())
        timeless = [replace(entry, reported_at=0.0) for entry in entries]
        if timeless != self._saved and (entries or self._saved or "configuration" in self._found):
            stored, refused = _fitting(entries)
            save_schedule(self._store, self._cluster, stored, now)
            self._unread_entries[""] = tuple(refused)
            self._saved = timeless

    def _judge(self, now: float) -> float:
        """Stores what is overdue; returns when to check again: when the next entry would be overdue."""
        began, worked = time.perf_counter(), time.thread_time()
        entries = tuple(entry for unread in self._unread_entries.values() for entry in unread)
        judged = replace(self._health, unread=tuple(self._unread.values()), unread_entries=entries)
        soonest = now + self._pace.pause(JUDGE_SECONDS)
        if is_caught_up(self._store, self._cluster, now):  # else what was sent is not stored yet
            rows = read_schedule(self._store, self._cluster, now, {}, RUNS)
            judged = replace(judged, overdue=_overdue(rows), stopped=all_overdue(rows))
            soonest = min(soonest, next_overdue([row.standing for row in rows], now))
        if self._stored is None or _differs(judged, self._stored):
            self._stored = replace(judged, at=now)
            save_beat_health(self._store, self._stored)
        self._health = judged
        # Elapsed time alone would delay the next check too much on a busy machine.
        spent, took = time.thread_time() - worked, time.perf_counter() - began
        return max(soonest, now + LEAST_REST * took, now + LEAST_IDLE * spent)


def _application(broker: Broker, settings: Settings) -> Application | None:
    application = application_of(settings)
    return application if application is not None and applies_to(application, broker, settings) else None


def _fitting(entries: Sequence[ScheduleEntry]) -> tuple[list[ScheduleEntry], list[UnreadEntry]]:
    """The entries that can be stored and read again, and the others, of which one would make all unreadable."""
    stored, refused = [], []
    for entry in entries:
        try:
            msgspec.msgpack.decode(msgspec.msgpack.encode(entry), type=ScheduleEntry)
        except (UnicodeEncodeError, OverflowError, TypeError, msgspec.ValidationError) as error:
            surrogate = isinstance(error, UnicodeEncodeError)
            reason = "its text has a lone surrogate (half a character)" if surrogate else str(error)
            refused.append(
                UnreadEntry(source=entry.source, name=plain_value(str(entry.name)), reason=plain_value(reason))
            )
        else:
            stored.append(entry)
    return stored, refused


def _overdue(rows: Sequence[Scheduled]) -> tuple[OverdueEntry, ...]:
    late = (
        OverdueEntry(name=row.entry.name, since=standing.overdue, may_wait_in=standing.may_wait_in)
        for row in rows
        if (standing := row.standing).overdue is not None
    )
    return tuple(sorted(late, key=lambda each: (each.since, each.name)))


def _differs(health: BeatHealth, stored: BeatHealth) -> bool:
    """Whether to write it: a lock or a reply that was only renewed is written every RENEWED_SECONDS."""
    timeless = {"at": 0.0, "lock_until": None, "answered_at": None}
    if replace(health, **timeless) != replace(stored, **timeless):
        return True
    renewed = ((health.lock_until, stored.lock_until), (health.answered_at, stored.answered_at))
    return any(new is not old and abs((new or 0.0) - (old or 0.0)) > RENEWED_SECONDS for new, old in renewed)
