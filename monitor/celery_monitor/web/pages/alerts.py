"""Alerts: firing now, history, rules with an editor that shows when a rule would have fired, channels."""

from collections.abc import Mapping
from typing import TypeVar

from celery_monitor.control.alerts import (
    AddChannel,
    AlertCommand,
    ChangeChannel,
    DeleteChannel,
    DeleteRule,
    MuteRule,
    SaveRule,
    SendTest,
)
from celery_monitor.core.alerts.judging import fields_of, quiet_hours, shown_url
from celery_monitor.core.alerts.kinds import KINDS
from celery_monitor.core.words import age_words
from celery_monitor.errors import InvalidInput, MonitorError, NotFound
from celery_monitor.records.alert import Alert, AlertState, NotificationState, Rule, Severity
from celery_monitor.store.alerts.history import would_have_fired
from celery_monitor.store.alerts.rules import read_channels, read_rule, read_rules
from celery_monitor.store.alerts.states import count_firing, read_alerts, read_messages
from celery_monitor.web.pages import (
    TONES,
    Act,
    Context,
    Form,
    FormRequest,
    Page,
    Result,
    View,
    command_of,
    fields,
    whole,
)

PATH = "/alerts"
MOST_FIRING = 200
MOST_ENDED = 50
UNSENT = (NotificationState.WAITING, NotificationState.SENDING, NotificationState.UNCONFIRMED, NotificationState.FAILED)
CommandT = TypeVar("CommandT", bound=AlertCommand)


def context(view: View) -> Context:
    before = view.query.get("before")
    ended = read_alerts(
        view.store,
        cluster=view.cluster,
        states=(AlertState.RESOLVED,),
        before=int(before) if before and before.isdigit() and len(before) < 10 else None,
        limit=MOST_ENDED,
    )
    channels = read_channels(view.store)
    return {
        "firing": _by_severity(read_alerts(view.store, cluster=view.cluster, limit=MOST_FIRING)),
        "firing_total": count_firing(view.store, view.cluster),
        "ended": ended,
        "older": ended[-1].id if len(ended) == MOST_ENDED else None,
        "rules": read_rules(view.store),
        "threshold": threshold,
        "age": age_words,
        "kinds": KINDS,
        "severities": tuple(Severity),
        "channels": channels,
        "channel_names": {channel.id: channel.name for channel in channels},
        "shown_url": shown_url,
        "held": {each.id for each in channels if (hours := quiet_hours(each.quiet_hours)) and hours.hold(view.now)},
        "unsent": read_messages(view.store, states=UNSENT, limit=MOST_ENDED),
        "may_change_rules": view.may(SaveRule.action),
        "may_change_channels": view.may(AddChannel.action),
        "may_test": view.may(SendTest.action),
        **_editor(view),
    }


def threshold(rule: Rule) -> str:
    """The bound and the window of a rule in words: ``10 % of runs in 15 min``; empty where its kind has neither."""
    kind = KINDS[rule.kind]
    bound = rule.bound if rule.bound is not None else kind.bound_default
    window = rule.window if rule.window is not None else kind.window_default
    words = _bound(bound, kind.bound.partition(";")[0]) if kind.bound else ""
    return f"{words} in {age_words(window or 0.0)}".lstrip() if kind.window else words


def _bound(bound: float | None, unit: str) -> str:
    if bound is None:
        return "twice the usual"
    if unit == "seconds":
        return age_words(bound)
    return f"{bound:.0%} of runs".replace("%", " %") if unit.startswith("share") else f"{bound:g} {unit}"


def _by_severity(alerts: list[Alert]) -> list[Alert]:
    return sorted(alerts, key=lambda each: (-each.severity.rank, -each.id))


# The editor


def _editor(view: View) -> Context:
    """The rule that is edited, and, once its fields are given, when it would have fired."""
    rule, error = _edited(view)
    if rule is None:
        return {"edited": None}
    kind = KINDS[rule.kind]
    found: Context = {
        "edited": rule,
        "edited_kind": kind,
        "edited_fields": fields_of(kind),
        "edited_error": error,
        "preview": None,
    }
    if "for_seconds" in view.query and error is None and kind.history:
        clusters = [view.cluster] if view.cluster else view.settings.clusters
        past = [alert for cluster in clusters for alert in would_have_fired(view.store, cluster, rule, view.now)]
        found["preview"] = past
    return found | {"given": "for_seconds" in view.query}


def _edited(view: View) -> tuple[Rule | None, str | None]:
    """The rule of the query, and what is wrong with it."""
    query: Form = {name: value for name, value in view.query.items() if name != "cluster"}
    if "edit" in query:
        try:
            return read_rule(view.store, query["edit"]), None
        except NotFound as error:
            return None, error.message
    if query.get("kind") not in KINDS:
        return None, None
    if "for_seconds" not in query:
        kind = KINDS[query["kind"]]
        return Rule(
            name=kind.name.capitalize(), kind=kind.name, bound=kind.bound_default, window=kind.window_default
        ), None
    blank = Rule(name=query.get("name", ""), kind=query["kind"], scope=query.get("scope", ""))
    try:
        command = command_of(SaveRule, query)
        command.check()
        rule = command.rule
    except InvalidInput as error:
        return blank, error.message
    return rule, None


# Forms


def _act(command: type[CommandT], *numbers: str) -> Act:
    def act(view: View, request: FormRequest) -> Result:
        form = fields(request.form)
        query = {"cluster": view.cluster}
        try:
            address = {name: whole(form, name) for name in numbers}
            performed = request.controller.perform(request.actor, command_of(command, form, **address))
        except MonitorError as error:
            return Result(PATH, query, error.message, "bad")
        return Result(PATH, query, performed.message, TONES[performed.outcome])

    return act


ACTIONS: Mapping[str, Act] = {
    "save-rule": _act(SaveRule),
    "mute-rule": _act(MuteRule),
    "delete-rule": _act(DeleteRule),
    "add-channel": _act(AddChannel),
    "change-channel": _act(ChangeChannel, "channel"),
    "delete-channel": _act(DeleteChannel, "channel"),
    "test-channel": _act(SendTest, "channel"),
}

PAGE = Page(
    PATH,
    "alerts.html",
    context,
    title="Alerts",
    nav="Alerts",
    regions=("firing", "ended", "messages"),
    actions=ACTIONS,
    script="alerts.js",
)
