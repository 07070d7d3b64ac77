"""What channels are sent, over real HTTP: form, signature, retries, dead letters, digests, secrets."""

import hashlib
import hmac
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event

import pytest
from msgspec import structs

from celery_monitor.alerts import channels
from celery_monitor.alerts.pings import PINGED, Pings
from celery_monitor.alerts.sender import MOST_ATTEMPTS, REFRESH_SECONDS, AlertSender
from celery_monitor.receiver.helper_failures import HelperFailures
from celery_monitor.records.alert import AlertState, Change, Channel, Measured, NotificationState, Severity
from celery_monitor.records.schedule import ScheduleEntry
from celery_monitor.settings import Settings
from celery_monitor.settings.values import NamedUrl
from celery_monitor.store.alerts.rules import read_channel
from celery_monitor.store.alerts.states import add_test, read_alerts, read_messages, save_changes
from celery_monitor.store.receivers import open_gap
from celery_monitor.store.schedule import save_schedule
from tests.alerts.listener import Listener, listening
from tests.alerts.scene import CLUSTER, Scene, scene
from tests.core.alerts.test_judging import make_alert
from tests.factories import NOW, make_event, make_id

SECRET = "an-hmac-secret-of-the-team"


@pytest.fixture
def shop(sqlite_url: str) -> Iterator[Scene]:
    with scene(sqlite_url) as opened:
        yield opened


@pytest.fixture
def there() -> Iterator[Listener]:
    with listening() as opened:
        yield opened


def fire(shop: Scene, channel: Channel, *subjects: str, **fields: object) -> None:
    def change(subject: str) -> Change:
        path = f"/queues/{subject}"
        measured = Measured(subject=subject, text=f"{subject} has 31 messages.", value=31, path=path)
        return Change(alert=make_alert(**{"measured": measured, "fired_at": NOW, **fields}), transition="fired")

    save_changes(shop.store, CLUSTER, [change(each) for each in subjects], [read_channel(shop.store, channel.id)])


def end_all(shop: Scene, channel: Channel) -> None:
    over = {"state": AlertState.RESOLVED, "resolved_at": NOW + 9, "judged_at": NOW + 9}
    ended = [structs.replace(each, **over) for each in read_alerts(shop.store)]
    save_changes(shop.store, CLUSTER, [Change(alert=each, transition="resolved") for each in ended], [channel])


def deliver(shop: Scene, now: float = NOW + 10, **settings: object) -> AlertSender:
    """One round of the sender, with all that it begins."""
    given = Settings(**{"public_url": "https://monitor.example.com/celery/", **settings})  # type: ignore[arg-type]
    sender = AlertSender(shop.store, CLUSTER, given, HelperFailures())
    with ThreadPoolExecutor() as pool:
        wait(sender.deliver(pool, now))
        sender.deliver(pool, 0.0)  # raises what sending has raised
    return sender


def states(shop: Scene) -> list[NotificationState]:
    return [each.state for each in read_messages(shop.store)]


def test_webhook_gets_a_signed_document_with_the_exact_page(shop: Scene, there: Listener) -> None:
    channel = shop.channel(url=f"{there.address}/hook?team=7", secret=SECRET)
    fire(shop, channel, "payments", detail="Traceback\n  password='hunter2-of-ada'\nTimeoutError")
    deliver(shop)
    (request,) = there.requests
    assert (request.method, request.path) == ("POST", "/hook?team=7")
    timestamp = request.headers["x-celery-monitor-timestamp"]
    signed = hmac.new(SECRET.encode(), timestamp.encode() + b"." + request.body, hashlib.sha256).hexdigest()
    assert request.headers["x-celery-monitor-signature"] == f"v1={signed}"
    document = request.json
    assert request.headers["x-celery-monitor-id"] == document["id"]
    assert (document["type"], document["severity"]) == ("alert", "warning")
    assert document["title"] == "[warning] shop: payments has 31 messages."
    link = "https://monitor.example.com/celery/queues/payments?cluster=shop"
    (alert,) = document["alerts"]
    assert (alert["state"], alert["rule"], alert["value"], alert["link"]) == ("firing", "Deep", 31, link)
    assert link in document["body"]
    assert "TimeoutError" in document["body"]
    assert "hunter2-of-ada" not in request.body.decode()
    assert states(shop) == [NotificationState.SENT]


def test_message_is_sent_once_and_its_end_as_well(shop: Scene, there: Listener) -> None:
    channel = shop.channel(url=there.address)
    fire(shop, channel, "payments")
    deliver(shop)
    deliver(shop)
    end_all(shop, channel)
    deliver(shop)
    deliver(shop)
    assert [each.json["title"].partition("]")[0] for each in there.requests] == ["[warning", "[resolved"]
    assert "x-celery-monitor-signature" not in there.requests[0].headers


def test_storm_is_one_digest(shop: Scene, there: Listener) -> None:
    channel = shop.channel(url=there.address)
    fire(shop, channel, *(f"queue {number}" for number in range(500)))
    fire(shop, channel, "worst", severity=Severity.CRITICAL)
    deliver(shop)
    deliver(shop)
    (request,) = there.requests
    document = request.json
    assert (document["type"], document["title"], len(document["alerts"])) == ("digest", "501 alerts (1 critical)", 501)
    assert document["body"].splitlines()[0] == "[critical] shop: worst has 31 messages."
    assert "and 481 more" in document["body"]
    assert document["link"] == "https://monitor.example.com/celery/alerts"


def test_refused_message_is_tried_again_later_and_then_dead(shop: Scene, there: Listener) -> None:
    channel = shop.channel(url=there.address)
    there.answers = [503] * MOST_ATTEMPTS
    fire(shop, channel, "payments")
    now = NOW + 10
    deliver(shop, now)
    (waiting,) = read_messages(shop.store)
    assert (waiting.state, waiting.error) == (NotificationState.WAITING, "the answer is 503")
    assert waiting.due_at > waiting.created_at
    for _ in range(MOST_ATTEMPTS + 2):
        now = max(now, read_messages(shop.store)[0].due_at) + 1
        deliver(shop, now)
    assert len(there.requests) == MOST_ATTEMPTS
    assert states(shop) == [NotificationState.FAILED]
    assert read_channel(shop.store, channel.id).error == "the answer is 503"


def test_final_refusal_is_not_tried_again_and_a_redirect_not_followed(shop: Scene, there: Listener) -> None:
    channel = shop.channel(url=there.address)
    there.answers = [404, 302]
    fire(shop, channel, "payments", "mail")
    deliver(shop)
    deliver(shop, NOW + 1e6)
    assert [each.path for each in there.requests] == ["/", "/"]
    assert states(shop) == [NotificationState.FAILED] * 2


def test_server_that_is_away_gets_the_message_when_it_is_back(shop: Scene, there: Listener) -> None:
    with listening() as gone:
        channel = shop.channel(url=gone.address)
    fire(shop, channel, "payments")
    deliver(shop)
    (message,) = read_messages(shop.store)
    assert message.state is NotificationState.WAITING
    assert "cannot connect" in str(message.error)


def test_message_without_an_answer_is_unconfirmed(
    shop: Scene, there: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "TIMEOUT_SECONDS", 0.3)
    there.hold = Event()
    fire(shop, shop.channel(url=there.address), "payments")
    deliver(shop)
    deliver(shop, NOW + 1e6)
    assert len(there.requests) == 1
    assert states(shop) == [NotificationState.UNCONFIRMED]


def test_slow_channel_holds_up_no_other(shop: Scene, there: Listener) -> None:
    with listening() as slow:
        slow.hold = Event()
        first = shop.channel(name="a slow one", url=slow.address)
        second = shop.channel(name="b", url=there.address)
        fire(shop, first, "payments")
        fire(shop, second, "mail")
        sender = AlertSender(shop.store, CLUSTER, Settings(), HelperFailures())
        with ThreadPoolExecutor() as pool:
            futures = sender.deliver(pool, NOW + 10)
            wait(futures, 20, "FIRST_COMPLETED")
            assert len(there.requests) == 1
            slow.hold.set()


def test_alertmanager_gets_what_fires_again_and_again_until_it_ends(shop: Scene, there: Listener) -> None:
    channel = shop.channel(kind="alertmanager", url=f"{there.address}/am/")
    fire(shop, channel, *(f"queue {number}" for number in range(7)))
    sender = deliver(shop)
    assert {each.path for each in there.requests} == {"/am/api/v2/alerts"}
    first, again = (each.json for each in there.requests)
    assert len(first) == 7
    assert len(again) == 7
    labels = {
        "alertname": "Deep",
        "cluster": "shop",
        "severity": "warning",
        "kind": "queue depth",
        "subject": "queue 0",
    }
    alert = first[0]
    assert alert["labels"] == {**labels, "kind": "queue depth", "subject": "queue 0"}
    assert alert["annotations"]["summary"] == "queue 0 has 31 messages."
    assert alert["startsAt"] == "2026-05-28T20:26:40.000+00:00"
    assert alert["generatorURL"] == "https://monitor.example.com/celery/queues/queue 0?cluster=shop"
    assert alert["endsAt"] > alert["startsAt"]
    end_all(shop, channel)
    with ThreadPoolExecutor() as pool:
        wait(sender.deliver(pool, NOW + 11 + REFRESH_SECONDS))
    assert there.requests[-1].json[0]["endsAt"] == "2026-05-28T20:26:49.000+00:00"


def test_apprise_sends_to_its_urls(shop: Scene, there: Listener) -> None:
    channel = shop.channel(kind="apprise", url=there.address.replace("http://", "json://user:s3cret@") + "/notify")
    fire(shop, channel, "payments", severity=Severity.CRITICAL)
    deliver(shop)
    (request,) = there.requests
    assert request.path.rstrip("/") == "/notify"
    assert (request.json["title"], request.json["type"]) == ("[critical] shop: payments has 31 messages.", "failure")


def test_apprise_that_fails_says_why_without_the_secret(shop: Scene, there: Listener) -> None:
    there.answers = [500]
    url = there.address.replace("http://", "json://user:s3cret@")
    fire(shop, shop.channel(kind="apprise", url=url), "payments")
    deliver(shop)
    (message,) = read_messages(shop.store)
    assert message.state is NotificationState.WAITING
    assert message.error
    assert "s3cret" not in message.error


def test_test_message_says_so(shop: Scene, there: Listener) -> None:
    channel = shop.channel(url=there.address, quiet_hours="00:00-23:59")
    add_test(shop.store, channel.id, NOW)
    deliver(shop)
    (request,) = there.requests
    assert (request.json["type"], request.json["title"], request.json["alerts"]) == ("test", "Test message", [])


def ping(shop: Scene, there: Listener, now: float) -> int:
    """How many pings have come after this one."""
    Pings(shop.store, CLUSTER, Settings(ping_url=f"{there.address}/well")).ping(now)
    return len(there.requests)


def test_pings_stop_while_a_critical_alert_fires_or_the_record_is_incomplete(shop: Scene, there: Listener) -> None:
    assert ping(shop, there, NOW + 1) == 1
    assert (there.requests[0].method, there.requests[0].path) == ("GET", "/well")
    channel = shop.channel(url=there.address)
    fire(shop, channel, "payments")
    assert ping(shop, there, NOW + 2) == 2
    fire(shop, channel, "mail", severity=Severity.CRITICAL)
    assert ping(shop, there, NOW + 3) == 2
    end_all(shop, channel)
    assert ping(shop, there, NOW + 3) == 3
    assert ping(shop, there, NOW + 60) == 3  # the receiver has not reported
    open_gap(shop.store, CLUSTER, NOW, "the broker was away")
    assert ping(shop, there, NOW + 3) == 3


def test_pings_come_once_a_minute(shop: Scene, there: Listener) -> None:
    pings = Pings(shop.store, CLUSTER, Settings(ping_url=there.address))
    for seconds in (0, 20, 59, 61, 119):
        shop.write(at=NOW + seconds)
        pings.ping(NOW + seconds)
    assert len(there.requests) == 2


def test_schedule_entry_is_reported_once_for_each_success(shop: Scene, there: Listener) -> None:
    entry = ScheduleEntry(cluster=CLUSTER, name="nightly = all", task="shop.nightly", schedule="60.0", args="()")
    save_schedule(shop.store, CLUSTER, [entry], NOW)
    pinged = NamedUrl("nightly = all", f"{there.address}/nightly"), NamedUrl("no", there.address)

    def run(number: int, end: str, at: float) -> int:
        known: dict[str, object] = {"uuid": make_id(number), "hostname": "worker1@shop"}
        shop.write(
            make_event("task-sent", timestamp=at - 3, name="shop.nightly", args="()", kwargs="{}", **known), at=at
        )
        shop.write(make_event(f"task-{end}", timestamp=at, runtime=1.0, result="1", exception="E()", **known), at=at)
        for _ in range(2):
            Pings(shop.store, CLUSTER, Settings(ping_entry=pinged)).ping(at + 1)
        return len(there.requests)

    assert run(1, "failed", NOW) == 0
    assert run(2, "succeeded", NOW + 10) == 1
    assert run(3, "failed", NOW + 20) == 1
    assert run(4, "succeeded", NOW + 30) == 2
    assert {each.path for each in there.requests} == {"/nightly"}
    with shop.store.read() as connection:
        (key,) = connection.exec_driver_sql(f"SELECT key FROM meta WHERE key LIKE '{PINGED}%'").scalars()
    assert key == "pinged:shop:nightly = all"


def test_receiver_without_a_channel_of_apprise_does_not_load_it() -> None:
    program = "import sys, celery_monitor.receiver.process; sys.exit('apprise' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
