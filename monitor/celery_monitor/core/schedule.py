"""When schedule entries were due, and whether beat sent them. No I/O, no clock.

Beat does not report its runs: they are inferred from tasks with the entry's name and arguments, and from the sender if
there are task-sent events.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import median
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from celery_monitor.records.receiver import Gap
from celery_monitor.records.schedule import ScheduledRun, ScheduleEntry

LATE_SECONDS = 5.0  # beat wakes up at least this often
SOON_SECONDS = 2.5  # after which an unseen entry is shown as due
LATE_SHARE = 0.1  # of an interval
FIRST_SECONDS = 330.0  # a sleeping beat notices a new entry within five minutes
SYNC_SECONDS = 200.0  # after which django-celery-beat has saved its runs
LONGEST_SEARCH_DAYS = 4 * 366 + 1  # the 29th of February
MOST_DUE = 2000
_WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")


def may_wait_in(entry: ScheduleEntry, last: ScheduledRun | None, waiting: Mapping[str, int | None]) -> str | None:
    """The queue in which an unseen run may wait, as sending is only reported with ``task_send_sent_event``.

    ``waiting`` is the number of messages by queue; if the entry's queue is unknown, it may be any of them.
    """
    if last is not None and last.client is not None:
        return None
    queue = entry.queue or (last.queue if last is not None else None)
    filled = [(ready, name) for name, ready in waiting.items() if ready and queue in (None, name)]
    return max(filled)[1] if filled else None


class EntryState(NamedTuple):
    """The state of an entry. Times are epoch seconds, ``None`` is unknown; counts are from ``since`` on."""

    last: ScheduledRun | None
    last_at: float | None  # of ``last``, or from beat's own storage if that is newer
    next: float | None
    overdue: float | None  # since when it should have been sent again
    drift: float | None  # median delay of sending, in seconds
    missed: tuple[float, ...] | None  # when it was due and nothing was sent; ``None``: unknown
    late: int | None
    runs: tuple[ScheduledRun, ...]  # the newest first
    sure: bool  # by its sender, not just by name and arguments
    since: float
    may_wait_in: str | None = None  # a queue with messages among which the overdue one may be
    by_receipt: bool = False  # some runs have no time of sending: ``missed`` is a guess
    shared_with: tuple[str, ...] = ()  # entries with indistinguishable runs: ``runs`` are of all of them

    @property
    def surely_overdue(self) -> bool:
        """It was certainly not sent, rather than waiting in a queue."""
        return self.overdue is not None and self.may_wait_in is None


def own_runs(
    runs: Mapping[str, Sequence[ScheduledRun]], alike: Mapping[str, Sequence[str]]
) -> dict[str, tuple[tuple[ScheduledRun, ...], bool]]:
    """The runs of each entry that beat sent, and whether that is certain: beat is one sender for all its entries.

    A sender of several entries is beat; other senders sent the task for other reasons. ``alike``, from
    ``entries_alike``: one run that may be of two entries does not make its sender a sender of both.
    """
    entries: dict[str, set[str]] = defaultdict(set)
    for name, found in runs.items():
        for run in found:
            if run.client is not None:
                entries[run.client].add(name)
    beats = {client for client, names in entries.items() if any(names - {each, *alike[each]} for each in names)}
    result = {}
    for name, found in runs.items():
        own = tuple(run for run in found if run.client in beats)
        result[name] = (own, True) if own else (tuple(found), False)
    return result


def entries_alike(
    entries: Sequence[ScheduleEntry], runs: Mapping[str, Sequence[ScheduledRun]]
) -> dict[str, tuple[str, ...]]:
    """For each entry, the others of its cluster with indistinguishable runs.

    Events have a task's name and arguments but not its entry. So two entries that send the same are alike, unless
    each names its own queue; and so are entries that share a run with unknown arguments.
    """
    alike: dict[str, set[str]] = defaultdict(set)
    of_run: dict[str, list[str]] = defaultdict(list)
    of_call: dict[tuple[str, str, str], list[ScheduleEntry]] = defaultdict(list)
    for entry in entries:
        of_call[entry.task, entry.args, entry.kwargs].append(entry)
        for run in runs.get(entry.name, ()):
            of_run[run.id].append(entry.name)
    for some in of_call.values():
        for entry in some:
            alike[entry.name] |= {each.name for each in some if not _have_own_queues(entry, each)}
    for names in of_run.values():
        for name in names:
            alike[name] |= set(names)
    return {entry.name: tuple(sorted(alike[entry.name] - {entry.name})) for entry in entries}


def in_own_queue(
    entry: ScheduleEntry, entries: Sequence[ScheduleEntry], runs: Sequence[ScheduledRun]
) -> list[ScheduledRun]:
    """The runs of an entry, without those in the queue of another entry that sends the same."""
    same = (entry.task, entry.args, entry.kwargs)
    others = [each for each in entries if each is not entry and (each.task, each.args, each.kwargs) == same]
    theirs = {each.queue for each in others if _have_own_queues(entry, each)}
    return [run for run in runs if run.queue is None or run.queue not in theirs]


def _have_own_queues(one: ScheduleEntry, other: ScheduleEntry) -> bool:
    return one.queue is not None and other.queue is not None and one.queue != other.queue


def judge_alike(
    entry: ScheduleEntry,
    runs: Sequence[ScheduledRun],
    gaps: Sequence[Gap],
    since: float,
    now: float,
    *,
    shared_with: tuple[str, ...],
) -> EntryState:
    """``judge`` for an entry that shares its runs with others: only beat's own storage counts.

    It is still certainly overdue if none of them was sent in time. Missed runs and the last run are unknown.
    """
    seen = runs[0].at if runs else None
    newest = max((at for at in (seen, entry.beat_last_at) if at is not None), default=None)
    by_receipt = any(run.by_receipt for run in runs)
    overdue, upcoming = _due(entry, seen, newest, gaps, now) if entry.enabled else (None, None)
    if entry.every is not None and entry.beat_next_at is None and entry.beat_last_at is None:
        upcoming = None  # it would be counted from a run of another entry
    return EntryState(
        last=None,
        last_at=entry.beat_last_at,
        next=upcoming,
        overdue=overdue,
        drift=None,
        missed=None,
        late=None,
        runs=tuple(runs),
        sure=False,
        since=since,
        by_receipt=by_receipt,
        shared_with=shared_with,
    )


def judge(
    entry: ScheduleEntry, runs: Sequence[ScheduledRun], gaps: Sequence[Gap], since: float, now: float, *, sure: bool
) -> EntryState:
    """The state of an entry by its recorded runs. Times with missing events count neither as missed nor late.

    A run that was first seen when a worker received it may have waited, so its delay is unknown.
    """
    by_receipt = any(run.by_receipt for run in runs)
    last = runs[0] if runs else None
    seen = last.at if last else None
    last_at = max((at for at in (seen, entry.beat_last_at) if at is not None), default=None)
    missed: tuple[float, ...] | None = None
    late: int | None = None
    drift: float | None = None
    if entry.every is not None:
        missed, late, drift = _by_spacing(entry.every, runs, gaps, _grace(entry))
    elif entry.minutes is not None and _zone(entry) is not None:
        missed, late, drift = _by_calendar(entry, runs, gaps, since, now)
    if not entry.enabled:  # since when is unknown, so nothing counts as missed
        return EntryState(last, last_at, None, None, drift, None, late, tuple(runs), sure, since, None, by_receipt)
    overdue, upcoming = _due(entry, seen, last_at, gaps, now)
    return EntryState(last, last_at, upcoming, overdue, drift, missed, late, tuple(runs), sure, since, None, by_receipt)


def _due(
    entry: ScheduleEntry, seen: float | None, last_at: float | None, gaps: Sequence[Gap], now: float
) -> tuple[float | None, float | None]:
    """Overdue since, and due next."""
    if entry.starts is not None and entry.starts > now:
        return None, max(entry.starts, _next(entry, entry.starts, now) or 0.0) if entry.minutes else entry.starts
    after = entry.beat_next_at if entry.beat_next_at is not None else _next(entry, last_at, now)
    if after is None or after + _patience(entry, seen, last_at) >= now:
        return None, after
    # What beat itself reports as due is reliable even where events are missing.
    overdue = after if entry.beat_next_at is not None or not _in_gap(gaps, after, now) else None
    return overdue, None if entry.every is not None else _next(entry, now, now)


def _patience(entry: ScheduleEntry, seen: float | None, last_at: float | None) -> float:
    """Seconds after its time before an entry counts as overdue."""
    if entry.source == "django" and last_at is not None and (seen is None or last_at - seen > LATE_SECONDS):
        return _grace(entry) + SYNC_SECONDS
    if entry.source == "redbeat" and last_at is None:
        return FIRST_SECONDS
    return SOON_SECONDS if entry.beat_next_at is None else _grace(entry)  # a scheduler's own storage is seconds old


def next_overdue(states: Sequence[EntryState], now: float) -> float:
    """When the next entry would become overdue if it is not sent; infinite if none is due."""
    times = (each.next + SOON_SECONDS + 0.01 for each in states if each.next is not None)
    return min((each for each in times if each > now), default=float("inf"))


def due_times(entry: ScheduleEntry, since: float, until: float) -> Iterator[float]:
    """When a crontab is due after ``since``, in order. Nothing if it or its time zone is unknown."""
    zone = _zone(entry)
    if zone is None or None in (entry.minutes, entry.hours, entry.weekdays, entry.days, entry.months):
        return
    day = datetime.fromtimestamp(since, zone).replace(hour=0, minute=0, second=0, microsecond=0)
    for _ in range(LONGEST_SEARCH_DAYS):
        if day.timestamp() > until:
            return
        right_day = day.isoweekday() % 7 in (entry.weekdays or ()) and day.day in (entry.days or ())
        if right_day and day.month in (entry.months or ()):
            for hour in entry.hours or ():
                for minute in entry.minutes or ():
                    at = day.replace(hour=hour, minute=minute).timestamp()
                    if since < at <= until:
                        yield at
        day = (day + timedelta(days=1)).replace(hour=0, minute=0)


def in_words(entry: ScheduleEntry) -> str | None:
    """``every 10 s``, ``every 2 minutes``, ``at 07:30 on Monday``; ``None`` for an unknown kind of schedule."""
    if entry.once_at is not None:
        return f"once, at {datetime.fromtimestamp(entry.once_at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if entry.every is not None:
        return f"every {_interval_words(entry.every)}"
    if entry.minutes is None or entry.hours is None:
        return None
    return " ".join(each for each in (_time_words(entry.minutes, entry.hours), _day_words(entry)) if each)


def _next(entry: ScheduleEntry, last: float | None, now: float) -> float | None:
    if entry.once_at is not None:
        return entry.once_at if last is None or last < entry.once_at else None
    if entry.every is not None:
        return None if last is None else last + entry.every
    after = now if last is None else last
    return next(due_times(entry, after, after + LONGEST_SEARCH_DAYS * 86400.0), None)


def _grace(entry: ScheduleEntry) -> float:
    return max(LATE_SECONDS, LATE_SHARE * entry.every) if entry.every is not None else 60.0


def _by_spacing(
    every: float, runs: Sequence[ScheduledRun], gaps: Sequence[Gap], grace: float
) -> tuple[tuple[float, ...] | None, int | None, float | None]:
    if not runs:
        return None, None, None
    missed: list[float] = []
    late = 0
    drifts = []
    for newer, older in pairwise(runs):
        between = newer.at - older.at
        if _in_gap(gaps, older.at, newer.at):
            continue
        if between >= 1.5 * every + LATE_SECONDS:
            count = min(MOST_DUE, max(1, round(between / every) - 1))
            missed += [older.at + every * (number + 1) for number in range(count)]
        elif between > 0.5 * every and not (newer.by_receipt or older.by_receipt):
            drifts.append(between - every)
            late += between > every + grace
    return tuple(sorted(missed)[-MOST_DUE:]), _late_or_unknown(late, drifts, runs), median(drifts) if drifts else None


def _late_or_unknown(late: int, judged: Sequence[float], runs: Sequence[ScheduledRun]) -> int | None:
    """``None`` if no run could be judged, because their times of sending are unknown."""
    return None if not judged and any(run.by_receipt for run in runs) else late


def _by_calendar(
    entry: ScheduleEntry, runs: Sequence[ScheduledRun], gaps: Sequence[Gap], since: float, now: float
) -> tuple[tuple[float, ...] | None, int | None, float | None]:
    if not runs:
        return None, None, None
    begin = max(since, runs[-1].at - 60.0)  # it is unknown whether the entry existed before its first run
    due = [at for at, _ in zip(due_times(entry, begin, now - 60.0), range(MOST_DUE), strict=False)]
    times = sorted((run.at, run.by_receipt) for run in runs)
    missed = []
    lateness = []
    at = 0
    for moment, following in pairwise([*due, now]):
        while at < len(times) and times[at][0] < moment - 1.0:
            at += 1
        if at < len(times) and times[at][0] < following - 1.0:
            lateness += [] if times[at][1] else [times[at][0] - moment]
        elif not _in_gap(gaps, moment - 1.0, min(following, moment + 120.0)):
            missed.append(moment)
    late = sum(each > LATE_SECONDS for each in lateness)
    return tuple(missed), _late_or_unknown(late, lateness, runs), median(lateness) if lateness else None


def _in_gap(gaps: Sequence[Gap], began: float, ended: float) -> bool:
    return any(gap.began < ended and (gap.ended is None or gap.ended > began) for gap in gaps)


def _zone(entry: ScheduleEntry) -> ZoneInfo | None:
    if entry.timezone is None:
        return None
    try:
        return ZoneInfo(entry.timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _interval_words(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size and seconds % size == 0:
            number = int(seconds // size)
            return unit if number == 1 else f"{number} {unit}s"
    return f"{seconds:g} s"


def _time_words(minutes: Sequence[int], hours: Sequence[int]) -> str:
    step = _step(minutes, 60)
    if len(hours) == 24 and step is not None:
        return "every minute" if step == 1 else f"every {step} minutes"
    if len(minutes) * len(hours) <= 6:
        return "at " + ", ".join(f"{hour:02}:{minute:02}" for hour in hours for minute in minutes)
    minute = (
        f"at minute {_listed(minutes)}" if step is None else "every minute" if step == 1 else f"every {step} minutes"
    )
    return minute if len(hours) == 24 else f"{minute} of the hours {_listed(hours)}"


def _day_words(entry: ScheduleEntry) -> str:
    words = []
    if entry.weekdays is not None and len(entry.weekdays) < 7:
        words.append("on " + ", ".join(_WEEKDAYS[day] for day in entry.weekdays))
    if entry.days is not None and len(entry.days) < 31:
        words.append(f"on day {_listed(entry.days)} of the month")
    if entry.months is not None and len(entry.months) < 12:
        words.append(f"in month {_listed(entry.months)}")
    return " ".join(words)


def _step(values: Sequence[int], of: int) -> int | None:
    """The step of ``*/n``."""
    step = of if len(values) == 1 else values[1] - values[0]
    return step if len(values) > 1 and tuple(values) == tuple(range(0, of, step)) else None


def _listed(values: Sequence[int]) -> str:
    """``8–17`` or ``1, 5, 9``."""
    if len(values) > 2 and tuple(values) == tuple(range(values[0], values[-1] + 1)):
        return f"{values[0]}–{values[-1]}"
    return ", ".join(map(str, values))
