"""Alerts: rules, what they have found, channels, and the messages that are sent."""

from enum import StrEnum
from typing import Literal

import msgspec


class Severity(StrEnum):
    """How urgent an alert is."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """Higher is more urgent."""
        return list(Severity).index(self)


class AlertState(StrEnum):
    """``pending``: the bound is exceeded, but not for long enough yet."""

    PENDING = "pending"
    FIRING = "firing"
    RESOLVED = "resolved"


RuleSource = Literal["default", "page", "file"]  # where a rule is written; a later one replaces one of the same name


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What to alert about. ``bound`` and ``window`` mean what the kind says (core/alerts/kinds.py)."""

    name: str
    kind: str
    bound: float | None = None
    window: float | None = None  # seconds
    scope: str = ""  # filter of what it applies to
    for_seconds: float = 0.0  # how long the bound has to be exceeded without a break
    severity: Severity = Severity.WARNING
    cooldown: float = 1800.0  # seconds after it fired, in which it does not fire again for the same subject
    muted_until: float | None = None
    resolve: bool = True  # also send a message when it is over
    enabled: bool = True
    source: RuleSource = "page"


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One subject that exceeds the bound of a rule now."""

    subject: str  # a queue, a worker, a task name, the number of a failure group ...; unique within rule and cluster
    text: str  # a sentence with the numbers
    value: float | None = None
    path: str = "/"  # of the page that shows it
    query: dict[str, str] = {}
    about: dict[str, str] = {}  # for scopes: filter fields and their values


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One subject of one rule, from its first excess to its end."""

    id: int = 0
    rule: str
    kind: str
    cluster: str
    severity: Severity
    state: AlertState
    measured: Measured  # the latest
    since: float  # the bound is exceeded since then, without a break
    judged_at: float
    fired_at: float | None = None
    resolved_at: float | None = None
    detail: str = ""  # first lines of a traceback
    stored_at: float = 0.0


Transition = Literal["fired", "resolved"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """What one judgement makes of an alert. ``transition``: a message is due."""

    alert: Alert
    transition: Transition | None = None
    removed: bool = False  # it was only pending


ChannelKind = Literal["apprise", "webhook", "alertmanager"]


class Channel(msgspec.Struct, frozen=True, kw_only=True):
    """Where messages go. ``url`` and ``secret`` are never shown."""

    id: int = 0
    name: str
    kind: ChannelKind
    url: str
    secret: str | None = None  # signs what goes to a webhook
    severity: Severity = Severity.WARNING  # the least that it gets
    scope: str = ""
    quiet_hours: str = ""  # ``22:00-07:00 Europe/Berlin``
    enabled: bool = True
    error: str | None = None  # of the last message that was not accepted
    sent_at: float | None = None
    digest_at: float | None = None


class NotificationState(StrEnum):
    """The fate of a message. ``unconfirmed``: it may have arrived or not, and is never sent again."""

    WAITING = "waiting"
    SENDING = "sending"
    SENT = "sent"
    UNCONFIRMED = "unconfirmed"
    FAILED = "failed"


class Notification(msgspec.Struct, frozen=True, kw_only=True):
    """One transition of an alert for one channel; or a test, without an alert."""

    id: int
    channel: int
    alert: Alert | None
    transition: Literal["fired", "resolved", "test"]
    state: NotificationState
    created_at: float
    due_at: float
    attempts: int = 0
    sent_at: float | None = None
    error: str | None = None


class AlertMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What a channel sends: of one alert, of several as a digest, or a test."""

    id: str
    title: str
    body: str
    severity: Severity
    link: str | None
    notifications: tuple[Notification, ...]
