"""Commands for rules of alerts and for channels. They belong to the dashboard: no cluster, no broker."""

import re
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

from msgspec import Meta, structs

from celery_monitor.addresses import check_http
from celery_monitor.control.commands import NO_NUL, Command, Performed
from celery_monitor.core.alerts.judging import MOST_SECONDS, checked, checked_channel
from celery_monitor.core.alerts.kinds import KINDS
from celery_monitor.core.filters.parser import LONGEST_TEXT
from celery_monitor.errors import InvalidInput, MonitorError
from celery_monitor.records.alert import Channel, NotificationState, Rule, Severity
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings
from celery_monitor.store.alerts.rules import (
    add_channel,
    change_channel,
    delete_channel,
    delete_rule,
    read_channel,
    read_rule,
    save_rule,
)
from celery_monitor.store.alerts.states import add_test, read_messages
from celery_monitor.store.engine import Store

ANSWER_SECONDS = 10.0  # for a test message
LOOK_SECONDS = 0.2
RuleName = Annotated[str, Meta(min_length=1, max_length=80, pattern=NO_NUL, extra={"strip": True})]
KindName = Annotated[
    str, Meta(pattern=NO_NUL, extra_json_schema={"enum": list(KINDS)}, description="See docs/alerts.md")
]
Scope = Annotated[str, Meta(max_length=LONGEST_TEXT, pattern=NO_NUL, description="Filter", extra={"strip": True})]
Number = Annotated[float, Meta(ge=0, le=1e12)]
Duration = Annotated[float, Meta(ge=0, le=MOST_SECONDS, description="Seconds", extra={"unit": " seconds"})]
SeverityName = Literal["info", "warning", "critical"]
ChannelName = Annotated[str, Meta(min_length=1, max_length=80, pattern=NO_NUL, extra={"strip": True})]
Url = Annotated[str, Meta(max_length=2000, pattern=NO_NUL, description="Never shown again", extra={"strip": True})]
Secret = Annotated[str, Meta(max_length=500, pattern=NO_NUL, description="Signs what is sent; never shown again")]
QuietHours = Annotated[str, Meta(max_length=80, pattern=NO_NUL, description="Such as 22:00-07:00 Europe/Berlin")]
_apprise = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


class AlertCommand(Command, frozen=True, kw_only=True):
    """Something about rules or channels."""

    note = "for everybody, on all clusters; a read-only dashboard refuses it"

    def prepare(self, store: Store, _: Settings, __: str) -> Callable[[], Performed]:
        return partial(self.change, store)

    def change(self, store: Store) -> Performed:
        """Raises InvalidInput, NotFound and Conflict."""
        raise NotImplementedError


class RuleCommand(AlertCommand, frozen=True, kw_only=True):
    """Something about the rule of this name."""

    role = Role.OPERATOR
    subject = "{0.name}"
    name: RuleName


class ChannelCommand(AlertCommand, frozen=True, kw_only=True):
    """Something about the channel of this number."""

    role = Role.ADMIN
    subject = "channel {0.channel}"
    address = ("cluster", "channel")
    channel: int


class SaveRule(RuleCommand, frozen=True, kw_only=True):
    """Add a rule, or change the rule of that name.

    What is left out has its default: see docs/alerts.md.
    """

    action = "rule.save"
    route = "rules"
    body = "RuleBody"
    kind: KindName
    bound: Number | None = None
    window: Duration | None = None
    scope: Scope = ""
    for_seconds: Duration = 0.0
    severity: SeverityName = "warning"
    cooldown: Duration = 1800.0
    resolve: bool = True
    enabled: bool = True

    def change(self, store: Store) -> Performed:
        rule = save_rule(store, self.rule)
        return Performed(outcome="done", message=f"Saved the rule {rule.name!r}.", details={"kind": rule.kind})

    @property
    def rule(self) -> Rule:
        """The rule, checked. Raises InvalidInput."""
        names = set(self.__struct_fields__) & set(Rule.__struct_fields__)
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        return checked(Rule(**{**given, "severity": Severity(self.severity)}))


class MuteRule(RuleCommand, frozen=True, kw_only=True):
    """Mute a rule for some seconds, or end that with 0; a muted rule sends nothing.

    The rule, and for how long it is muted.
    """

    action = "rule.mute"
    route = "rules/mute"
    body = "MuteRuleBody"
    seconds: Duration

    def change(self, store: Store) -> Performed:
        until = time.time() + self.seconds if self.seconds else None
        rule = save_rule(store, structs.replace(read_rule(store, self.name), muted_until=until))
        message = f"Muted {rule.name!r} for {self.seconds:.0f} s." if until else f"{rule.name!r} is not muted."
        return Performed(outcome="done", message=message, details={"seconds": self.seconds})


class DeleteRule(RuleCommand, frozen=True, kw_only=True):
    """Delete a rule; a default rule of that name applies again.

    The rule to delete.
    """

    action = "rule.delete"
    route = "rules/delete"
    body = "DeleteRuleBody"

    def change(self, store: Store) -> Performed:
        rule = delete_rule(store, self.name)
        return Performed(outcome="done", message=f"Deleted the rule {rule.name!r}.", details={"kind": rule.kind})


class AddChannel(AlertCommand, frozen=True, kw_only=True):
    """Add a channel for messages of alerts.

    ``url`` is of Apprise, of a webhook or of an Alertmanager; ``secret`` is for a webhook.
    """

    action = "channel.add"
    role = Role.ADMIN
    subject = "{0.name}"
    route = "channels"
    body = "ChannelBody"
    name: ChannelName
    kind: Literal["apprise", "webhook", "alertmanager"]
    url: Url
    secret: Secret = ""
    severity: SeverityName = "warning"
    scope: Scope = ""
    quiet_hours: QuietHours = ""

    def change(self, store: Store) -> Performed:
        _check_url(self.kind, self.url)
        channel = Channel(
            name=self.name,
            kind=self.kind,
            url=self.url,
            secret=self.secret or None,
            severity=Severity(self.severity),
            scope=self.scope,
            quiet_hours=self.quiet_hours,
        )
        added = add_channel(store, checked_channel(channel))
        return _performed(added, f"Added the channel {added.name!r}. Send a test to see whether it works.")


class ChangeChannel(ChannelCommand, frozen=True, kw_only=True):
    """Change a channel.

    An empty ``url`` or ``secret`` leaves the present one.
    """

    action = "channel.change"
    route = "channels/{id:int}/change"
    body = "ChannelChangeBody"
    url: Url = ""
    secret: Secret = ""
    severity: SeverityName = "warning"
    scope: Scope = ""
    quiet_hours: QuietHours = ""
    enabled: bool = True

    def change(self, store: Store) -> Performed:
        before = read_channel(store, self.channel)
        if self.url:
            _check_url(before.kind, self.url)
        changes: dict[str, Any] = {
            "url": self.url or before.url,
            "secret": self.secret or before.secret,
            "severity": Severity(self.severity),
            "scope": self.scope,
            "quiet_hours": self.quiet_hours,
            "enabled": self.enabled,
        }
        checked_channel(structs.replace(before, **changes))
        return _performed(change_channel(store, self.channel, **changes), f"Changed the channel {before.name!r}.")


class DeleteChannel(ChannelCommand, frozen=True, kw_only=True):
    """Delete a channel with the messages that wait for it.

    Why the channel is deleted.
    """

    action = "channel.delete"
    route = "channels/{id:int}/delete"
    body = "DeleteChannelBody"

    def change(self, store: Store) -> Performed:
        channel = delete_channel(store, self.channel)
        return _performed(channel, f"Deleted the channel {channel.name!r}.")


class SendTest(ChannelCommand, frozen=True, kw_only=True):
    """Send a test message to a channel, as the receiver sends all others.

    Why it is tested.
    """

    action = "channel.test"
    role = Role.OPERATOR
    route = "channels/{id:int}/test"
    body = "SendTestBody"

    def change(self, store: Store) -> Performed:
        """Waits for the answer for ANSWER_SECONDS. Raises NotFound."""
        channel = read_channel(store, self.channel)
        number = add_test(store, channel.id, time.time())
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            for message in read_messages(store, number=number):
                if message.state is NotificationState.SENT:
                    return _performed(channel, f"The test was accepted by {channel.name!r}.")
                if message.error is not None:
                    return Performed(outcome="failed", message=f"The test failed: {message.error}.")
        late = "The test is not sent yet: no receiver is running, or the channel is slow. It stays in the list."
        return Performed(outcome="unconfirmed", message=late, details={"name": channel.name})


ALERT_COMMANDS: tuple[type[AlertCommand], ...] = (
    SaveRule, MuteRule, DeleteRule, AddChannel, ChangeChannel, DeleteChannel, SendTest,
)  # fmt: skip


def _performed(channel: Channel, message: str) -> Performed:
    return Performed(outcome="done", message=message, details={"channel": channel.id, "name": channel.name})


def _check_url(kind: str, url: str) -> None:
    """Raises InvalidInput, without the URL: it may hold a secret."""
    try:
        if kind != "apprise":
            check_http(url)
        elif not _apprise.fullmatch(url):
            raise InvalidInput("not a URL of Apprise; for example mailto://user:password@example.com")
    except MonitorError as error:
        raise InvalidInput(f"url: {error.message}", field="url") from None
