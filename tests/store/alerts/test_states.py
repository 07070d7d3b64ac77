"""Alerts in the record: each transition once, each message claimed once, on SQLite and PostgreSQL."""

from collections.abc import Sequence
from threading import Barrier, Thread

import pytest
from msgspec import structs

from celery_monitor.core.alerts.kinds import DEFAULT_RULES
from celery_monitor.errors import Conflict, NotFound
from celery_monitor.records.alert import (
    Alert,
    AlertState,
    Change,
    Channel,
    Measured,
    NotificationState,
    Rule,
    Severity,
)
from celery_monitor.store.alerts.rules import (
    add_channel,
    change_channel,
    delete_channel,
    delete_rule,
    read_channel,
    read_channels,
    read_rule,
    read_rules,
    save_file_rules,
    save_rule,
)
from celery_monitor.store.alerts.states import (
    CLAIM_SECONDS,
    KEEP_SECONDS,
    add_test,
    claim,
    count_firing,
    delete_old_alerts,
    end_batch,
    read_alerts,
    read_messages,
    read_standing,
    read_waiting,
    recent_batches,
    save_changes,
    settle_claims,
)
from celery_monitor.store.engine import Store
from tests.core.alerts.test_judging import make_alert, make_channel, make_rule
from tests.factories import NOW


def fired(subject: str, **fields: object) -> Change:
    measured = Measured(subject=subject, text=f"{subject} has 31 messages.", about={"queue": subject})
    alert = make_alert(measured=measured, fired_at=NOW, **fields)
    return Change(alert=alert, transition="fired")


def over(alert: Alert, at: float) -> Change:
    return Change(
        alert=structs.replace(alert, state=AlertState.RESOLVED, resolved_at=at, judged_at=at), transition="resolved"
    )


def team(store: Store, **fields: object) -> Channel:
    return add_channel(store, make_channel(id=0, **fields))


def waiting(store: Store, channel: Channel, now: float = NOW) -> list[tuple[str, str]]:
    found = read_waiting(store, now).get(channel.id, [])
    return [(each.alert.measured.subject if each.alert else "", each.transition) for each in found]


def test_alert_begins_fires_and_ends_once(store: Store) -> None:
    channel = team(store)
    (alert,) = save_changes(store, "shop", [fired("payments")], [channel])
    assert alert.id > 0
    assert save_changes(store, "shop", [fired("payments")], [channel]) == []
    assert waiting(store, channel) == [("payments", "fired")]
    assert count_firing(store) == 1
    assert count_firing(store, "eu") == 0
    standing = read_standing(store, "shop", NOW - 60)["Deep"]
    assert (standing.alerts["payments"].id, standing.fired) == (alert.id, {"payments": NOW})
    assert [each.id for each in save_changes(store, "shop", [over(alert, NOW + 9)], [channel])] == [alert.id]
    assert save_changes(store, "shop", [over(alert, NOW + 9)], [channel]) == []
    assert waiting(store, channel, NOW + 9) == [("payments", "fired"), ("payments", "resolved")]
    assert read_standing(store, "shop", NOW - 60)["Deep"].alerts == {}
    (ended,) = read_alerts(store, states=[AlertState.RESOLVED])
    assert (ended.id, ended.resolved_at) == (alert.id, NOW + 9)


def test_pending_alert_sends_nothing_and_leaves_nothing(store: Store) -> None:
    pending = Change(alert=make_alert(state=AlertState.PENDING))
    save_changes(store, "shop", [pending], [team(store)])
    (alert,) = read_standing(store, "shop", NOW)["Deep"].alerts.values()
    later = structs.replace(alert, judged_at=NOW + 5, since=NOW + 3)
    save_changes(store, "shop", [Change(alert=later)], [])
    assert read_standing(store, "shop", NOW)["Deep"].alerts["payments"].since == NOW  # not stored every five seconds
    save_changes(store, "shop", [Change(alert=alert, removed=True)], [])
    assert read_standing(store, "shop", NOW) == {}


def test_resolved_message_goes_to_the_channels_that_get_the_first(store: Store) -> None:
    first, other = team(store, name="first"), team(store, name="other", severity=Severity.CRITICAL)
    (alert,) = save_changes(store, "shop", [fired("payments")], [first, other])
    change_channel(store, other.id, severity=Severity.INFO)
    save_changes(store, "shop", [over(alert, NOW + 9)], read_channels(store))
    assert len(waiting(store, first, NOW + 9)) == 2
    assert waiting(store, other, NOW + 9) == []


def in_threads(count: int, run: Sequence[object]) -> None:
    threads = [Thread(target=each) for each in run]  # type: ignore[arg-type]
    assert len(threads) == count
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_several_receivers_store_a_transition_and_claim_a_message_once(store: Store) -> None:
    channel, together = team(store), Barrier(4)
    stored: list[Alert] = []
    claimed: list[int] = []

    def judge() -> None:
        together.wait()
        stored.extend(save_changes(store, "shop", [fired(f"queue {number}") for number in range(30)], [channel]))

    in_threads(4, [judge] * 4)
    assert len(stored) == 30
    numbers = [each.id for each in read_waiting(store, NOW)[channel.id]]
    assert len(numbers) == 30

    def send() -> None:
        together.wait()
        claimed.extend(claim(store, numbers, "batch", NOW))

    in_threads(4, [send] * 4)
    assert sorted(claimed) == numbers


def test_message_of_a_process_that_died_is_unconfirmed_and_never_sent_again(store: Store) -> None:
    channel = team(store)
    save_changes(store, "shop", [fired("payments")], [channel])
    (number,) = [each.id for each in read_waiting(store, NOW)[channel.id]]
    assert claim(store, [number], "batch", NOW) == {number}
    assert settle_claims(store, NOW + CLAIM_SECONDS) == 0
    assert settle_claims(store, NOW + CLAIM_SECONDS + 1) == 1
    (message,) = read_messages(store, states=[NotificationState.UNCONFIRMED])
    assert "may have arrived" in str(message.error)
    assert read_waiting(store, NOW + 1e6) == {}
    assert claim(store, [number], "other", NOW) == set()


def test_refused_message_waits_and_is_counted(store: Store) -> None:
    channel = team(store)
    save_changes(store, "shop", [fired("payments"), fired("mail")], [channel])
    numbers = [each.id for each in read_waiting(store, NOW)[channel.id]]
    claim(store, numbers, "batch", NOW)
    assert recent_batches(store, NOW) == {channel.id: 1}
    end_batch(store, channel.id, "batch", NotificationState.WAITING, NOW, error="the answer is 503", due_at=NOW + 10)
    assert read_waiting(store, NOW + 9) == {}
    assert [each.attempts for each in read_waiting(store, NOW + 10)[channel.id]] == [1, 1]
    assert read_channel(store, channel.id).error == "the answer is 503"
    claim(store, numbers, "again", NOW + 10)
    end_batch(store, channel.id, "again", NotificationState.SENT, NOW + 11, digest=True)
    stored = read_channel(store, channel.id)
    assert (stored.error, stored.sent_at, stored.digest_at) == (None, NOW + 11, NOW + 11)
    assert {each.state for each in read_messages(store)} == {NotificationState.SENT}


def test_old_alerts_leave_with_their_messages(store: Store) -> None:
    channel = team(store)
    old, firing = save_changes(store, "shop", [fired("old"), fired("firing")], [channel])
    save_changes(store, "shop", [over(old, NOW + 9)], [channel])
    delete_old_alerts(store, NOW + 9 + KEEP_SECONDS)
    assert len(read_messages(store)) == 3
    delete_old_alerts(store, NOW + 10 + KEEP_SECONDS)
    assert [each.alert.id for each in read_messages(store) if each.alert] == [firing.id]
    assert [each.id for each in read_alerts(store, states=[*AlertState])] == [firing.id]


def test_test_message_waits_like_any_other(store: Store) -> None:
    channel = team(store)
    number = add_test(store, channel.id, NOW)
    add_test(store, channel.id, NOW)
    assert waiting(store, channel) == [("", "test")] * 2
    (found,) = read_messages(store, number=number)
    assert (found.transition, found.alert) == ("test", None)


def test_rule_of_the_file_precedes_that_of_the_page_and_the_default(store: Store) -> None:
    assert {rule.name: rule for rule in read_rules(store)} == dict(sorted(DEFAULT_RULES.items()))
    save_rule(store, make_rule(name="Deep queue", bound=8.0))
    assert (read_rule(store, "Deep queue").bound, read_rule(store, "Deep queue").source) == (8.0, "page")
    save_file_rules(store, [make_rule(name="Deep queue", bound=9.0), make_rule(name="Other")])
    assert (read_rule(store, "Deep queue").bound, read_rule(store, "Deep queue").source) == (9.0, "file")
    with pytest.raises(Conflict, match="rules file"):
        save_rule(store, make_rule(name="Other"))
    with pytest.raises(Conflict, match="rules file"):
        delete_rule(store, "Deep queue")
    save_file_rules(store, [])
    assert delete_rule(store, "Deep queue").bound == 8.0
    assert read_rule(store, "Deep queue").source == "default"
    with pytest.raises(Conflict, match="disable it"):
        delete_rule(store, "Deep queue")
    with pytest.raises(NotFound):
        delete_rule(store, "Other")


def test_rule_of_an_unknown_kind_from_a_newer_version_is_left_alone(store: Store) -> None:
    save_rule(store, Rule(name="Newer", kind="tomorrow"))
    assert "Newer" not in {rule.name for rule in read_rules(store)}


def test_channel_is_added_changed_and_deleted_with_its_messages(store: Store) -> None:
    channel = team(store, secret="s3cret-of-the-team", quiet_hours="22:00-07:00")
    with pytest.raises(Conflict, match="another name"):
        team(store)
    assert change_channel(store, channel.id, enabled=False).secret == "s3cret-of-the-team"
    assert read_channel(store, channel.id).enabled is False
    add_test(store, channel.id, NOW)
    assert delete_channel(store, channel.id).name == "team"
    assert (read_channels(store), read_messages(store)) == ([], [])
    with pytest.raises(NotFound):
        read_channel(store, channel.id)
