"""How alerts begin and end, and what is sent when. No I/O, no clock.

A rule whose facts are not certain (a gap, a receiver that is behind, a new record) is *suspended*: nothing begins and
nothing ends, since silence would then be taken for evidence.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, time
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import structs

from celery_monitor.core.alerts.kinds import KINDS, AlertFacts, RuleKind
from celery_monitor.core.filters.parser import parse
from celery_monitor.core.filters.terms import FIELDS, All, Any, Expression, Match, Not, Unknown, Word, leaves
from celery_monitor.core.filters.terms import Kind as FieldKind
from celery_monitor.errors import FilterError, InvalidInput
from celery_monitor.records.alert import (
    Alert,
    AlertState,
    Change,
    Channel,
    Measured,
    Notification,
    Rule,
    Severity,
)
from celery_monitor.records.receiver import SILENT_RECEIVER_SECONDS

QUIET_SECONDS = 600.0  # of a new record: everything in it is new
SETTLE_SECONDS = 60.0  # after a gap: heartbeats and samples have to arrive again
STALE_SECONDS = 60.0  # without a judgement, after which an excess is no longer without a break
MOST_ALERTS = 1000  # of one rule and cluster at a time
CHANNEL_FIELDS = ("name", "queue", "worker", "exception", "cluster")
SCOPED_COUNT = "tasks lost"  # the kind whose scope is part of what is counted
LONGEST_NAME = 80
SINGLE_MESSAGES = 3  # in DIGEST_SECONDS; more become one digest
DIGEST_SECONDS = 60.0
LEAST_NUMBERS = {"for_seconds": 0.0, "cooldown": 0.0, "window": 60.0, "bound": 0.0}
MOST_SECONDS = 31 * 86400.0


# Rules and scopes


@lru_cache(1024)  # each rule's scope is asked for in every round
def scope_of(text: str, fields: tuple[str, ...]) -> Expression:
    """The filter of a scope. Raises FilterError for an invalid one, InvalidInput for a field that does not apply."""
    expression = parse(text, 0.0).expression
    for leaf in leaves(expression):
        if not isinstance(leaf, Word) and (leaf.field not in fields or not isinstance(leaf, Match | Unknown)):
            known = ", ".join(fields) or "none: it has no scope"
            raise InvalidInput(f"{leaf.field}: does not apply here; use one of {known}", field="scope")
    return expression


def applies(expression: Expression, about: Mapping[str, str]) -> bool:
    """Whether a subject is in a scope. A field that the subject does not have is unknown."""
    if isinstance(expression, Not):
        return not applies(expression.term, about)
    if isinstance(expression, All):
        return all(applies(each, about) for each in expression.terms)
    if isinstance(expression, Any):
        return any(applies(each, about) for each in expression.terms)
    if isinstance(expression, Word):
        return any(_contains(expression.pattern.pieces, text) for text in about.values())
    value = about.get(str(expression.field), "")
    if isinstance(expression, Match):
        if FIELDS[expression.field].kind is FieldKind.TEXT:
            return _contains(expression.pattern.pieces, value)
        return bool(value) and expression.pattern.matches(value)
    return not value


def _contains(pieces: Sequence[str], text: str) -> bool:
    return re.search(".*".join(map(re.escape, pieces)), text, re.IGNORECASE | re.DOTALL) is not None


def fields_of(kind: RuleKind) -> tuple[str, ...]:
    """The fields that the scope of a rule may have."""
    return (*kind.fields, "cluster")


def checked(rule: Rule) -> Rule:
    """The rule, if it is valid. Raises InvalidInput with the ``field`` that is wrong."""
    kind = KINDS.get(rule.kind)
    if kind is None:
        raise InvalidInput(f"{rule.kind!r} is not a kind of rule; use one of {', '.join(KINDS)}", field="kind")
    if not 0 < len(rule.name.strip()) <= LONGEST_NAME:
        raise InvalidInput(f"a rule has a name of 1 to {LONGEST_NAME} characters", field="name")
    for name in ("bound", "window"):
        if getattr(rule, name) is not None and not getattr(kind, name):
            raise InvalidInput(f"{rule.kind!r} has no {name}; leave it out", field=name)
    for name, least in LEAST_NUMBERS.items():
        value = getattr(rule, name)
        if value is not None and not (least <= value and (name == "bound" or value <= MOST_SECONDS)):
            raise InvalidInput(
                f"{name} must be {least:g} or more{'' if name == 'bound' else ', a month at most'}", field=name
            )
    _checked_scope(rule.scope, fields_of(kind))
    if kind.needs_scope and not rule.scope.strip():
        raise InvalidInput(f"{rule.kind!r} needs a scope, such as name:shop.report.daily", field="scope")
    return rule


def _checked_scope(text: str, fields: tuple[str, ...]) -> None:
    try:
        scope_of(text, fields)
    except FilterError as error:
        raise InvalidInput(f"scope: {error.message} (column {error.column})", field="scope") from None


def checked_channel(channel: Channel) -> Channel:
    """The channel, if its name, scope and quiet hours are valid. Raises InvalidInput."""
    if not 0 < len(channel.name.strip()) <= LONGEST_NAME:
        raise InvalidInput(f"a channel has a name of 1 to {LONGEST_NAME} characters", field="name")
    _checked_scope(channel.scope, CHANNEL_FIELDS)
    quiet_hours(channel.quiet_hours)
    return channel


# Alerts


def is_suspended(kind: RuleKind, facts: AlertFacts, began: float | None) -> bool:
    """Whether the record is too new, or too incomplete, to accuse anybody by a rule of this kind."""
    if began is None or facts.now - began < QUIET_SECONDS:
        return True
    if kind.of_record:
        return False
    caught_up = [each.is_caught_up(facts.now, SILENT_RECEIVER_SECONDS) for each in facts.health.receivers]
    unsettled = [gap for gap in facts.health.gaps if gap.ended is None or gap.ended > facts.now - SETTLE_SECONDS]
    return not caught_up or not all(caught_up) or bool(unsettled)


class JudgingRound:
    """The rules of one judgement. Those that differ by their scopes alone are measured once."""

    def __init__(self, facts: AlertFacts) -> None:
        self._facts = facts
        self._known: dict[tuple[object, ...], list[Measured]] = {}

    def measure(self, rule: Rule) -> list[Measured]:
        """The subjects within the rule's scope that exceed its bound."""
        alike = (rule.kind, rule.bound, rule.window, rule.scope if rule.kind == SCOPED_COUNT else None)
        if alike not in self._known:
            self._known[alike] = list(KINDS[rule.kind].measure(self._facts, rule))
        return _within(rule, self._known[alike], self._facts)


def measure(rule: Rule, facts: AlertFacts) -> list[Measured]:
    """What one rule alone measures."""
    return JudgingRound(facts).measure(rule)


def _within(rule: Rule, found: list[Measured], facts: AlertFacts) -> list[Measured]:
    kind = KINDS[rule.kind]
    if rule.scope and rule.kind != SCOPED_COUNT:
        scope = scope_of(rule.scope, fields_of(kind))
        found = [each for each in found if applies(scope, {**each.about, "cluster": facts.cluster})]
    return found[:MOST_ALERTS]


class Standing(NamedTuple):
    """The alerts of one rule in one cluster: pending or firing ones, and when each subject last fired."""

    alerts: Mapping[str, Alert] = {}
    fired: Mapping[str, float] = {}


def advance(
    rule: Rule, cluster: str, standing: Standing, measured: Sequence[Measured] | None, now: float
) -> list[Change]:
    """What changes at ``now``. ``measured``: what exceeds the bound; ``None``: suspended."""
    if not rule.enabled:
        return [_ended(each, now, silent=True) for each in standing.alerts.values()]
    if measured is None:
        pending = [each for each in standing.alerts.values() if each.state is AlertState.PENDING]
        return [Change(alert=each, removed=True) for each in pending]
    muted = rule.muted_until is not None and now < rule.muted_until
    found = {each.subject: each for each in measured}
    changes = [
        _ended(alert, now, silent=muted or not rule.resolve)
        for subject, alert in standing.alerts.items()
        if subject not in found
    ]
    room = MOST_ALERTS - sum(subject in found for subject in standing.alerts)
    for subject, each in found.items():
        alert = standing.alerts.get(subject)
        if alert is None:
            room -= 1
            if room < 0:
                continue
        changes.append(_exceeded(rule, cluster, alert, each, now, standing.fired.get(subject), muted=muted))
    return changes


def _ended(alert: Alert, now: float, *, silent: bool) -> Change:
    if alert.state is AlertState.PENDING:
        return Change(alert=alert, removed=True)
    ended = structs.replace(alert, state=AlertState.RESOLVED, resolved_at=now, judged_at=now)
    return Change(alert=ended, transition=None if silent else "resolved")


def _exceeded(
    rule: Rule, cluster: str, alert: Alert | None, each: Measured, now: float, fired: float | None, *, muted: bool
) -> Change:
    if alert is None:
        alert = Alert(
            rule=rule.name,
            kind=rule.kind,
            cluster=cluster,
            severity=rule.severity,
            state=AlertState.PENDING,
            measured=each,
            since=now,
            judged_at=now,
        )
    broken = alert.state is AlertState.PENDING and now - alert.judged_at > STALE_SECONDS
    since = now if broken else alert.since
    alert = structs.replace(alert, measured=each, since=since, judged_at=now, severity=rule.severity)
    cooled = fired is None or now - fired >= rule.cooldown
    if alert.state is AlertState.FIRING or muted or not cooled or now - since < rule.for_seconds:
        return Change(alert=alert)
    return Change(alert=structs.replace(alert, state=AlertState.FIRING, fired_at=now), transition="fired")


# Routes and messages


def shown_url(channel: Channel) -> str:
    """The address without what may be a secret: of Apprise the scheme alone, else also the host."""
    parts = urlsplit(channel.url)
    host = "" if channel.kind == "apprise" else parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{'/' if host else ''}…"


class QuietHours(NamedTuple):
    """A part of each day; it may go over midnight."""

    begin: time
    end: time
    zone: ZoneInfo | None

    def hold(self, now: float) -> bool:
        at = datetime.fromtimestamp(now, self.zone or UTC).time().replace(tzinfo=None)
        if self.begin <= self.end:
            return self.begin <= at < self.end
        return at >= self.begin or at < self.end


def quiet_hours(text: str) -> QuietHours | None:
    """``22:00-07:00`` in UTC, or ``22:00-07:00 Europe/Berlin``; ``None`` for empty text. Raises InvalidInput."""
    if not text.strip():
        return None
    found = re.fullmatch(r"(\d\d:\d\d)-(\d\d:\d\d)(?: ([\w/+-]+))?", text.strip())
    wrong = InvalidInput(f"{text!r} are not quiet hours; for example 22:00-07:00 Europe/Berlin", field="quiet_hours")
    if found is None:
        raise wrong
    try:
        zone = ZoneInfo(found[3]) if found[3] else None
        return QuietHours(time.fromisoformat(found[1]), time.fromisoformat(found[2]), zone)
    except (ValueError, ZoneInfoNotFoundError, OSError):
        raise wrong from None


def gets(channel: Channel, alert: Alert) -> bool:
    """Whether an alert is routed to a channel."""
    about = {**alert.measured.about, "cluster": alert.cluster}
    urgent = alert.severity.rank >= channel.severity.rank
    return channel.enabled and urgent and applies(scope_of(channel.scope, CHANNEL_FIELDS), about)


def batches(
    channel: Channel, waiting: Iterable[Notification], recent: int, now: float
) -> Iterator[tuple[Notification, ...]]:
    """What to send to a channel now: single messages, or a digest where there are too many.

    ``recent``: messages of the last DIGEST_SECONDS, in which at most SINGLE_MESSAGES and one digest are sent. A test is
    always sent, alone. In quiet hours only what is critical is sent. Alertmanager groups for itself.
    """
    due = [each for each in waiting if each.due_at <= now]
    yield from ((each,) for each in due if each.transition == "test")
    alerts = [each for each in due if each.alert is not None]
    hours = quiet_hours(channel.quiet_hours)
    if hours is not None and hours.hold(now):
        alerts = [each for each in alerts if each.alert is not None and each.alert.severity is Severity.CRITICAL]
    if channel.kind == "alertmanager":
        yield from (tuple(alerts),) if alerts else ()
    elif len(alerts) <= SINGLE_MESSAGES - recent:
        yield from ((each,) for each in alerts)
    elif channel.digest_at is None or now - channel.digest_at >= DIGEST_SECONDS:
        yield tuple(alerts)
