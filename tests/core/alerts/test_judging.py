"""Alerts: each begins and ends once, nothing is accused without evidence, a storm becomes a digest."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_monitor.core.alerts.judging import (
    DIGEST_SECONDS,
    QUIET_SECONDS,
    SETTLE_SECONDS,
    SINGLE_MESSAGES,
    STALE_SECONDS,
    Standing,
    advance,
    applies,
    batches,
    checked,
    gets,
    is_suspended,
    quiet_hours,
    scope_of,
)
from celery_monitor.core.alerts.kinds import KINDS, AlertFacts
from celery_monitor.core.health.judgement import HealthFacts
from celery_monitor.errors import InvalidInput
from celery_monitor.records.alert import (
    Alert,
    AlertState,
    Change,
    Channel,
    Measured,
    Notification,
    NotificationState,
    Rule,
    Severity,
)
from celery_monitor.records.receiver import Gap, ReceiverHealth
from tests.factories import NOW

STEP = 5.0
Step = tuple[frozenset[str], bool]  # what exceeds the bound, and whether judgement is suspended
steps = st.lists(st.tuples(st.frozensets(st.sampled_from("abc")), st.booleans()), max_size=60)


def make_rule(**fields: object) -> Rule:
    given: dict[str, object] = {"name": "Deep", "kind": "queue depth", "bound": 7.0, "cooldown": 0.0, **fields}
    return Rule(**given)  # type: ignore[arg-type]


def make_alert(**fields: object) -> Alert:
    given: dict[str, object] = {
        "rule": "Deep",
        "kind": "queue depth",
        "cluster": "shop",
        "severity": Severity.WARNING,
        "state": AlertState.FIRING,
        "measured": Measured(subject="payments", text="payments has 31 messages.", about={"queue": "payments"}),
        "since": NOW,
        "judged_at": NOW,
        **fields,
    }
    return Alert(**given)  # type: ignore[arg-type]


class Replay:
    """Judges step by step, as the store keeps it."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.standing: dict[str, Alert] = {}
        self.fired: dict[str, float] = {}
        self.changes: list[tuple[float, Change]] = []

    def step(self, subjects: frozenset[str] | None, now: float) -> list[Change]:
        found = None if subjects is None else [Measured(subject=each, text=each) for each in sorted(subjects)]
        changes = advance(self.rule, "shop", Standing(self.standing, self.fired), found, now)
        for change in changes:
            subject = change.alert.measured.subject
            if change.removed or change.alert.state is AlertState.RESOLVED:
                self.standing.pop(subject)
            else:
                self.standing[subject] = change.alert
            if change.transition == "fired":
                self.fired[subject] = now
        self.changes += [(now, change) for change in changes]
        return changes

    def run(self, history: Sequence[Step]) -> None:
        for number, (subjects, suspended) in enumerate(history):
            self.step(None if suspended else subjects, NOW + number * STEP)

    def transitions(self, subject: str) -> list[str]:
        return [
            each.transition for _, each in self.changes if each.transition and each.alert.measured.subject == subject
        ]


@given(steps, st.sampled_from([0.0, 5.0, 17.0]), st.sampled_from([0.0, 30.0]))
def test_messages_of_a_subject_alternate(history: list[Step], for_seconds: float, cooldown: float) -> None:
    replay = Replay(make_rule(for_seconds=for_seconds, cooldown=cooldown))
    replay.run(history)
    for subject in "abc":
        found = replay.transitions(subject)
        assert found == ["fired", "resolved"] * (len(found) // 2) + ["fired"] * (len(found) % 2)


@given(steps, st.sampled_from([0.0, 5.0, 17.0]))
def test_alert_fires_only_after_an_excess_without_a_break(history: list[Step], for_seconds: float) -> None:
    replay = Replay(make_rule(for_seconds=for_seconds))
    replay.run(history)
    for at, change in replay.changes:
        if change.transition == "fired":
            last = round((at - NOW) / STEP)
            first = last - int(-(-for_seconds // STEP))
            subject = change.alert.measured.subject
            assert first >= 0
            assert all(subject in found and not suspended for found, suspended in history[first : last + 1])


@given(steps)
def test_nothing_begins_or_ends_while_suspended(history: list[Step]) -> None:
    replay = Replay(make_rule(for_seconds=7.0))
    replay.run(history)
    for at, change in replay.changes:
        if history[round((at - NOW) / STEP)][1]:
            assert change.transition is None
            assert change.alert.state is AlertState.PENDING


@given(steps, st.integers(1, 60))
def test_muted_rule_sends_nothing(history: list[Step], until: int) -> None:
    muted_until = NOW + until * STEP
    replay = Replay(make_rule(muted_until=muted_until))
    replay.run(history)
    assert [at for at, change in replay.changes if change.transition and at < muted_until] == []


@given(steps, st.sampled_from([30.0, 120.0]))
def test_subject_does_not_fire_again_within_the_cooldown(history: list[Step], cooldown: float) -> None:
    replay = Replay(make_rule(cooldown=cooldown))
    replay.run(history)
    for subject in "abc":
        fired = [
            at for at, each in replay.changes if each.transition == "fired" and each.alert.measured.subject == subject
        ]
        assert all(later - earlier >= cooldown for earlier, later in pairwise(fired))


def test_alert_that_still_exceeds_fires_when_the_mute_ends() -> None:
    replay = Replay(make_rule(muted_until=NOW + 60))
    assert [each.transition for each in replay.step(frozenset("a"), NOW)] == [None]
    assert [each.transition for each in replay.step(frozenset("a"), NOW + 60)] == ["fired"]


def test_excess_begins_anew_after_nobody_judged() -> None:
    replay = Replay(make_rule(for_seconds=40.0))
    replay.step(frozenset("a"), NOW)
    (change,) = replay.step(frozenset("a"), NOW + STALE_SECONDS + 1)
    assert (change.alert.since, change.transition) == (NOW + STALE_SECONDS + 1, None)


def test_rule_without_a_resolve_message_and_a_disabled_rule_end_silently() -> None:
    standing = Standing({"payments": make_alert()})
    (ended,) = advance(make_rule(resolve=False), "shop", standing, [], NOW + 9)
    assert (ended.alert.state, ended.alert.resolved_at, ended.transition) == (AlertState.RESOLVED, NOW + 9, None)
    excess = [make_alert().measured]
    (ended,) = advance(make_rule(enabled=False), "shop", standing, excess, NOW + 9)
    assert (ended.alert.state, ended.transition) == (AlertState.RESOLVED, None)


def facts(kind: str = "queue depth", *, gaps: Sequence[Gap] = (), began: float = NOW - 7200, **health: object) -> bool:
    given = {"connected": True, "updated_at": NOW, "lag_seconds": 0.3, **health}
    receiver = ReceiverHealth(cluster="shop", **given)  # type: ignore[arg-type]
    read = AlertFacts(now=NOW, cluster="shop", health=HealthFacts(now=NOW, receivers=[receiver], gaps=gaps))
    return is_suspended(KINDS[kind], read, began)


def test_nobody_is_accused_while_the_record_is_new_or_incomplete() -> None:
    def gap(ended: float | None) -> list[Gap]:
        return [Gap(cluster="shop", began=NOW - 300, ended=ended, cause="no connection")]

    assert not facts()
    assert facts(began=NOW - QUIET_SECONDS + 1)
    assert facts("gap", began=NOW - QUIET_SECONDS + 1)
    assert facts(lag_seconds=9.0)
    assert facts(connected=False)
    assert facts(updated_at=NOW - 30)
    assert facts(gaps=gap(None))
    assert facts(gaps=gap(NOW - SETTLE_SECONDS + 1))
    assert not facts(gaps=gap(NOW - SETTLE_SECONDS - 1))
    assert not facts("receiver behind", lag_seconds=90.0)
    assert not facts("gap", gaps=gap(None))


@pytest.mark.parametrize(
    ("scope", "inside"),
    [
        ("queue:payments", True),
        ("queue:pay*", True),
        ("queue:mail", False),
        ("-queue:mail", True),
        ("queue:mail OR cluster:shop", True),
        ("(queue:mail OR queue:slow) cluster:shop", False),
        ("PAYM", True),
        ("exception:time*out", True),
        ("exception:refused", False),
        ('name:""', True),
        ('queue:""', False),
        ("name:shop.*", False),
        ("", True),
    ],
)
def test_scope_decides_by_what_a_subject_is_about(scope: str, inside: bool) -> None:
    fields = ("name", "queue", "exception", "cluster")
    about = {"queue": "payments", "cluster": "shop", "exception": "TimeoutError: read timed OUT"}
    assert applies(scope_of(scope, fields), about) is inside


@pytest.mark.parametrize(
    ("fields", "wrong", "says"),
    [
        ({"kind": "nonsense"}, "kind", "use one of new failure"),
        ({"name": " "}, "name", "1 to 80"),
        ({"kind": "no worker", "bound": 3.0}, "bound", "has no bound"),
        ({"window": 900.0}, "window", "has no window"),
        ({"scope": "worker:a"}, "scope", "use one of queue, cluster"),
        ({"scope": "state:failed"}, "scope", "does not apply"),
        ({"scope": "queue:(("}, "scope", "column"),
        ({"kind": "no success", "bound": None}, "scope", "needs a scope"),
        ({"for_seconds": -1.0}, "for_seconds", "0 or more"),
        ({"cooldown": float("nan")}, "cooldown", "0 or more"),
        ({"for_seconds": 1e9}, "for_seconds", "a month"),
    ],
)
def test_invalid_rule_is_refused_by_the_field_that_is_wrong(fields: dict[str, object], wrong: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as caught:
        checked(make_rule(**fields))
    assert caught.value.detail["field"] == wrong


def test_default_rules_are_valid_and_have_one_name_each() -> None:
    defaults = [kind.default for kind in KINDS.values() if kind.default is not None]
    assert len({checked(each).name for each in defaults}) == len(defaults)
    assert {kind.name for kind in KINDS.values() if kind.default is None} == {"no success"}


def make_channel(**fields: object) -> Channel:
    given: dict[str, object] = {"id": 4, "name": "team", "kind": "webhook", "url": "http://127.0.0.1:1/", **fields}
    return Channel(**given)  # type: ignore[arg-type]


def waiting(number: int, **fields: object) -> list[Notification]:
    given: dict[str, object] = {
        "channel": 4,
        "alert": make_alert(),
        "transition": "fired",
        "state": NotificationState.WAITING,
        "created_at": NOW,
        "due_at": NOW,
        **fields,
    }
    return [Notification(id=each + 1, **given) for each in range(number)]  # type: ignore[arg-type]


def test_channel_gets_what_is_severe_enough_and_in_its_scope() -> None:
    assert gets(make_channel(), make_alert())
    assert not gets(make_channel(severity=Severity.CRITICAL), make_alert())
    assert not gets(make_channel(scope="queue:mail"), make_alert())
    assert gets(make_channel(scope="cluster:shop", severity=Severity.INFO), make_alert())
    assert not gets(make_channel(enabled=False), make_alert())


@given(st.lists(st.integers(0, 40), max_size=60))
def test_storm_is_a_few_messages_a_minute(arrivals: list[int]) -> None:
    """A step is five seconds; whatever arrives, each alert is in exactly one message."""
    channel, sent, left = make_channel(), list[tuple[float, int]](), list[Notification]()
    for number, arriving in enumerate([*arrivals, *[0] * 30]):
        now = NOW + number * STEP
        left += waiting(arriving)
        recent = sum(at > now - DIGEST_SECONDS for at, _ in sent)
        for batch in list(batches(channel, left, recent, now)):
            sent.append((now, len(batch)))
            left = left[len(batch) :]
            if len(batch) > 1:
                channel = make_channel(digest_at=now)
    assert sum(size for _, size in sent) == sum(arrivals)
    for begin, _ in sent:
        assert sum(begin <= at < begin + DIGEST_SECONDS for at, _ in sent) <= SINGLE_MESSAGES + 2


def test_quiet_hours_hold_back_all_but_critical_alerts_and_tests() -> None:
    at = 1_780_012_800.0  # 2026-05-29 00:00 UTC
    channel = make_channel(quiet_hours="22:00-07:00")
    night = [
        *waiting(1),
        *waiting(1, alert=make_alert(severity=Severity.CRITICAL)),
        *waiting(1, alert=None, transition="test"),
    ]
    sent = [each for batch in batches(channel, night, 0, at) for each in batch]
    assert sent == [night[2], night[1]]
    assert len(list(batches(channel, night, 0, at + 8 * 3600))) == 3


def test_quiet_hours_are_of_a_time_zone() -> None:
    berlin, utc = quiet_hours("08:30-09:00 Europe/Berlin"), quiet_hours("08:30-09:00")
    assert berlin is not None
    assert utc is not None
    at = 1_780_012_800.0 + 6 * 3600 + 40 * 60  # 06:40 UTC is 08:40 in Berlin
    assert (berlin.hold(at), utc.hold(at)) == (True, False)
    assert quiet_hours(" ") is None
    for wrong in ("22-7", "25:00-07:00", "22:00-07:00 Atlantis/City"):
        with pytest.raises(InvalidInput, match="quiet hours"):
            quiet_hours(wrong)
