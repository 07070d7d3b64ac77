"""Alerts, rules and channels."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from celery_monitor.control.alerts import (
    AddChannel,
    ChangeChannel,
    DeleteChannel,
    DeleteRule,
    MuteRule,
    SaveRule,
    SendTest,
)
from celery_monitor.control.commands import Performed
from celery_monitor.core.alerts.judging import shown_url
from celery_monitor.records.alert import Alert, AlertState, Channel, RuleSource, Severity
from celery_monitor.store.alerts.rules import read_channels, read_rules
from celery_monitor.store.alerts.states import read_alerts
from celery_monitor.web.api.operation import (
    CHANGE_ERRORS,
    Call,
    InCluster,
    NoParameters,
    Operation,
    operation,
    outcome,
    shape,
    shapes,
)
from celery_monitor.web.render import link
from celery_monitor.web.security.reach import Access

MOST_ALERTS = 1000


class AlertListing(InCluster, frozen=True, kw_only=True):
    """Which alerts; ``before`` is ``next`` of the page before."""

    state: Annotated[Literal["firing", "resolved", "all"], Meta(description="State")] = "firing"
    limit: Annotated[int, Meta(ge=1, le=MOST_ALERTS, description="Maximum number of items")] = 100
    before: Annotated[int, Meta(ge=1, lt=2**31, description="Only alerts with a lower number")] = 2**31 - 1


class AlertItem(Struct, frozen=True, kw_only=True):
    """One alert; ``path`` is the page that shows its subject, below the dashboard's prefix."""

    id: int
    rule: str
    kind: str
    cluster: str
    severity: Severity
    state: AlertState
    subject: str
    text: str
    value: float | None
    path: str
    since: float
    fired_at: float | None
    resolved_at: float | None
    detail: str


class AlertList(Struct, frozen=True):
    """Alerts, the latest first."""

    items: list[AlertItem]
    next: int | None


class RuleItem(Struct, frozen=True, kw_only=True):
    """A rule; ``source`` is where it is written."""

    name: str
    kind: str
    bound: float | None
    window: float | None
    scope: str
    for_seconds: float
    severity: Severity
    cooldown: float
    muted_until: float | None
    resolve: bool
    enabled: bool
    source: RuleSource


class RuleList(Struct, frozen=True):
    """Rules by name."""

    items: list[RuleItem]


class ChannelItem(Struct, frozen=True, kw_only=True):
    """A channel; of its address only what is no secret."""

    id: int
    name: str
    kind: Literal["apprise", "webhook", "alertmanager"]
    address: str
    signed: bool
    severity: Severity
    scope: str
    quiet_hours: str
    enabled: bool
    sent_at: float | None
    error: str | None


class ChannelList(Struct, frozen=True):
    """Channels by name."""

    items: list[ChannelItem]


class AlertChange(Struct, frozen=True, kw_only=True):
    """What came of it."""

    outcome: Literal["done", "unconfirmed"]
    message: str


class ChannelAddress(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One channel."""

    id: Annotated[int, Meta(ge=1, lt=2**31, description="Number of a channel")]


STATES = {
    "firing": (AlertState.FIRING,),
    "resolved": (AlertState.RESOLVED,),
    "all": (AlertState.FIRING, AlertState.RESOLVED),
}


def list_alerts(call: Call, given: AlertListing) -> AlertList:
    states = STATES[given.state]
    found = read_alerts(call.store, cluster=given.cluster, states=states, before=given.before, limit=given.limit)
    return AlertList([_alert(each) for each in found], found[-1].id if len(found) == given.limit else None)


def _alert(alert: Alert) -> AlertItem:
    measured = alert.measured
    path = link("", measured.path, measured.query)
    return shape(AlertItem, alert, subject=measured.subject, text=measured.text, value=measured.value, path=path)


def list_rules(call: Call, _: NoParameters) -> RuleList:
    return RuleList(shapes(RuleItem, read_rules(call.store)))


def list_channels(call: Call, _: NoParameters) -> ChannelList:
    return ChannelList([_channel(each) for each in read_channels(call.store)])


def _channel(channel: Channel) -> ChannelItem:
    return shape(ChannelItem, channel, address=shown_url(channel), signed=channel.secret is not None)


def _nowhere(_: Call, __: NoParameters) -> dict[str, Any]:
    return {}


def _address(_: Call, given: ChannelAddress) -> dict[str, Any]:
    return {"channel": given.id}


def _changed(performed: Performed) -> AlertChange:
    return AlertChange(outcome=outcome(performed), message=performed.message)


OPERATIONS = (
    Operation(
        method="GET",
        path="/api/v1/alerts",
        handle=list_alerts,
        summary="List alerts, the latest first",
        answer=AlertList,
        parameters=AlertListing,
    ),
    Operation(
        method="GET", path="/api/v1/rules", handle=list_rules, summary="List the rules of alerts", answer=RuleList
    ),
    Operation(
        method="GET",
        path="/api/v1/channels",
        handle=list_channels,
        summary="List the channels of alerts, without their secrets",
        answer=ChannelList,
    ),
    *(
        operation(command, NoParameters, _nowhere, AlertChange, _changed, CHANGE_ERRORS, Access())
        for command in (SaveRule, MuteRule, DeleteRule, AddChannel)
    ),
    *(
        operation(command, ChannelAddress, _address, AlertChange, _changed, CHANGE_ERRORS, Access())
        for command in (ChangeChannel, DeleteChannel, SendTest)
    ),
)
