import re
import threading
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import msgspec
import pytest

from celery_monitor.alerts.sender import AlertSender
from celery_monitor.control import alerts as commands
from celery_monitor.receiver.helper_failures import HelperFailures
from celery_monitor.records.alert import Alert, AlertState, Change, Measured, Rule, Severity
from celery_monitor.records.queue import Queue
from celery_monitor.settings import Settings
from celery_monitor.store.alerts.rules import read_channels, read_rule, save_file_rules
from celery_monitor.store.alerts.states import read_alerts, save_changes
from celery_monitor.store.queues import save_queues
from celery_monitor.web.pages.alerts import threshold
from tests.alerts.listener import listening
from tests.core.alerts.test_judging import make_alert, make_rule
from tests.web.pages.house import HOSTILE, House, open_house
from tests.workers import wait_for

URL = "slack://TokenA/TokenB/TokenC"
WEBHOOK = "https://ada:hunter2@hooks.example.com/services/T0KEN"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with open_house(tmp_path) as opened:
        opened.write()
        yield opened


def fire(house: House, subject: str = "payments", **fields: object) -> Alert:
    measured = Measured(subject=subject, text=f"{subject} has 31 messages.", path="/queues/payments")
    given = {
        "measured": measured,
        "fired_at": house.now - 60,
        "since": house.now - 90,
        "judged_at": house.now,
        **fields,
    }
    (alert,) = save_changes(house.store, "shop", [Change(alert=make_alert(**given), transition="fired")], [])
    return alert


def post(house: House, action: str, **data: str) -> str:
    """The page after a form, as its words."""
    token = re.search(r'data-token="([^"]+)"', house.html("/alerts"))
    assert token
    fields = {"csrf_token": unescape(token[1]), **data}
    response = house.client.post(f"/alerts/{action}", data=fields, headers={"Sec-Fetch-Site": "same-origin"})
    assert response.status_code == 200
    return response.text


def add_channel(house: House, **fields: str) -> str:
    given = {"name": "team", "kind": "apprise", "url": URL, "severity": "warning", **fields}
    return post(house, "add-channel", **given)


def test_firing_alerts_come_first_by_severity_and_lead_to_their_page(house: House) -> None:
    fire(house, "mail")
    fire(house, "payments", severity=Severity.CRITICAL, detail="Traceback\nTimeoutError")
    text, page = house.text("/alerts"), house.html("/alerts")
    assert re.search(r"critical payments has 31 messages\. Traceback Traceback TimeoutError Deep .* warning mail", text)
    assert 'href="/queues/payments?cluster=shop">payments has 31' in page


def test_navigation_counts_what_fires_and_the_browser_knows_it(house: House) -> None:
    assert 'data-firing-count="0"' in house.html("/")
    alert = fire(house)

    def counted() -> str | None:  # pages of the same moment share the count
        page = house.html("/")
        return page if 'data-firing-count="1"' in page else None

    page: str = wait_for(counted, 10, "the count")
    assert re.search(r'href="/alerts".*?<span class="count alarm" title="alerts that fire now"[^>]*>1<', page)
    found = re.search(r'data-firing="(.*?)"', page)
    assert found
    shown = msgspec.json.decode(unescape(found[1]))
    assert shown == [{"id": alert.id, "title": "Deep", "text": "payments has 31 messages."}]


def test_history_has_what_is_over(house: House) -> None:
    alert = fire(house)
    ended = msgspec.structs.replace(alert, state=AlertState.RESOLVED, resolved_at=house.now + 60)
    save_changes(house.store, "shop", [Change(alert=ended)], [])
    assert "No alerts firing" in house.text("/alerts")
    assert re.search(r"History .* payments has 31 messages\. Deep 2 m 0 s", house.text("/alerts"))
    assert "has 31 messages" not in house.text(f"/alerts?before={alert.id}")


def test_editor_previews_the_last_day_and_then_saves(house: House) -> None:
    for minutes in (300, 299, 298, 20, 19):
        queue = Queue(cluster="shop", name="payments", ready=800, sampled_at=house.now - minutes * 60)
        save_queues(house.store, "shop", [queue], house.now - minutes * 60)
    with house.store.begin() as connection:
        connection.exec_driver_sql("INSERT INTO meta VALUES ('alerts_began:shop', '0.0')")
    address = "/alerts?kind=queue+depth&name=Mine&scope=queue:pay*&bound=700&for_seconds=60&cooldown=0"
    text = house.text(f"{address}&severity=critical&resolve=0&enabled=1")
    assert "It would have fired 2 times in the last 24 h." in text
    assert "payments has 800 waiting messages." in text
    assert "It would not have fired" in house.text(address.replace("700", "900"))
    form = house.html(f"{address}&resolve=0").partition("alert-preview")[2].partition("</form>")[0]
    post(house, "save-rule", **dict(re.findall(r'name="(\w+)" value="(.*?)"', form.partition("csrf_token")[2])))
    rule = read_rule(house.store, "Mine")
    assert (rule.bound, rule.scope, rule.for_seconds, rule.resolve) == (700.0, "queue:pay*", 60.0, False)
    assert "Mine" in house.text("/alerts")


def test_editor_says_what_is_wrong_and_offers_no_saving(house: House) -> None:
    text = house.text("/alerts?kind=queue+depth&name=Mine&scope=worker:a&for_seconds=60")
    assert "worker: does not apply here; use one of queue, cluster" in text
    assert "Save rule" not in text
    assert "must be a number" in house.text("/alerts?kind=queue+depth&name=Mine&for_seconds=soon")
    assert "keeps no sizes of the disk" in house.text("/alerts?kind=disk&name=Mine&for_seconds=0")
    assert "Preview" in house.text("/alerts?edit=Deep+queue")


def test_rule_is_muted_and_deleted_and_one_of_the_file_is_not(house: House) -> None:
    post(house, "mute-rule", name="Deep queue", seconds="3600")
    muted = read_rule(house.store, "Deep queue").muted_until or 0.0
    assert muted == pytest.approx(time.time() + 3600, abs=60)
    assert "Unmute" in post(house, "mute-rule", name="Gap in the record", seconds="60")
    post(house, "mute-rule", name="Deep queue", seconds="0")
    assert read_rule(house.store, "Deep queue").muted_until is None
    assert "Deleted the rule" in post(house, "delete-rule", name="Deep queue")
    save_file_rules(house.store, [make_rule(name="Deep queue")])
    assert "is in the rules file; change it there" in unescape(post(house, "delete-rule", name="Deep queue"))


def test_channel_never_shows_its_secrets(house: House) -> None:
    pages = [add_channel(house), add_channel(house, name="hook", kind="webhook", url=WEBHOOK, secret="s3cret-of-ada")]
    pages += [post(house, "change-channel", channel="2", scope="queue:payments", quiet_hours="22:00-07:00")]
    api = house.client.get("/api/v1/channels")
    actions = house.html("/actions") + house.client.get("/api/v1/actions").text
    for text in (*pages, house.html("/alerts"), api.text, actions):
        for secret in ("Token", "hunter2", "T0KEN", "s3cret-of-ada"):
            assert secret not in text
    assert [each["address"] for each in api.json()["items"]] == ["https://hooks.example.com/…", "slack://…"]
    hook = read_channels(house.store)[0]
    assert (hook.url, hook.secret, hook.scope) == (WEBHOOK, "s3cret-of-ada", "queue:payments")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"url": "TokenA/TokenB"}, "url: not a URL of Apprise"),
        ({"kind": "webhook", "url": "file:///etc/TokenA"}, "url: not an http:// or https:// URL"),
        ({"scope": "state:failed"}, "state: does not apply here"),
        ({"quiet_hours": "late"}, "are not quiet hours"),
        ({"severity": "dire"}, "is not one of critical, info, warning"),
        ({"name": ""}, "name"),
    ],
)
def test_invalid_channel_is_refused_without_its_secret(house: House, fields: dict[str, str], says: str) -> None:
    page = unescape(add_channel(house, **fields))
    assert says in page
    assert "TokenA" not in page
    assert read_channels(house.store) == []


def test_test_message_goes_the_way_of_all_others(house: House) -> None:
    with listening() as there:
        add_channel(house, kind="webhook", url=f"{there.address}/hook")
        stop = threading.Event()
        run = AlertSender(house.store, "shop", Settings(), HelperFailures()).run
        sender = threading.Thread(target=run, args=(stop,))
        sender.start()
        try:
            assert "The test was accepted by" in unescape(post(house, "test-channel", channel="1"))
            there.answers = [404]
            assert "The test failed: the answer is 404." in unescape(post(house, "test-channel", channel="1"))
        finally:
            stop.set()
            sender.join()
        assert [each.json["type"] for each in there.requests] == ["test", "test"]
    assert "the answer is 404" in house.text("/alerts")


def test_test_without_a_receiver_is_unconfirmed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "ANSWER_SECONDS", 0.3)
    add_channel(house)
    assert "not sent yet: no receiver is running" in post(house, "test-channel", channel="1")
    assert "waiting team test" in house.text("/alerts")


def test_api_lists_alerts_and_rules_and_changes_them(house: House) -> None:
    first, second = fire(house, "mail"), fire(house, "payments")
    (item,) = house.client.get("/api/v1/alerts?limit=1").json()["items"]
    assert (item["id"], item["rule"], item["text"]) == (second.id, "Deep", "payments has 31 messages.")
    assert item["path"] == "/queues/payments"
    assert [each["id"] for each in house.client.get(f"/api/v1/alerts?before={second.id}").json()["items"]] == [first.id]
    assert house.client.get("/api/v1/alerts?state=resolved").json() == {"items": [], "next": None}
    body = {"name": "Mine", "kind": "queue depth", "bound": 7, "severity": "critical"}
    assert house.client.post("/api/v1/rules", json=body).json()["outcome"] == "done"
    rules = {each["name"]: each for each in house.client.get("/api/v1/rules").json()["items"]}
    assert (rules["Mine"]["bound"], rules["Mine"]["source"], rules["Deep queue"]["source"]) == (7.0, "page", "default")
    refused = house.client.post("/api/v1/rules", json={**body, "kind": "nonsense"})
    assert (refused.status_code, refused.json()["error"]["detail"]["field"]) == (400, "kind")
    assert house.client.post("/api/v1/rules/delete", json={"name": "Mine"}).status_code == 200
    assert house.client.post("/api/v1/rules/mute", json={"name": "Mine", "seconds": 5}).status_code == 404


def test_hostile_texts_are_shown_as_text(house: House) -> None:
    fire(house, HOSTILE, rule=HOSTILE, detail=HOSTILE)
    save_file_rules(house.store, [make_rule(name=HOSTILE[:60])])
    for path in ("/alerts", "/", "/alerts?kind=queue+depth&for_seconds=1"):
        page = house.html(path)
        assert "<img src=x" not in page
        assert "\u202e" not in page
    assert read_alerts(house.store)[0].rule == HOSTILE


@pytest.mark.parametrize(
    ("kind", "changed", "words"),
    [
        ("failure share", {}, "10 % of runs in 15 min"),
        ("slow run", {}, "twice the usual in 15 min"),
        ("slow run", {"bound": 90.0}, "1 min in 15 min"),
        ("queue depth", {"bound": 250.0}, "250 messages"),
        ("new failure", {}, ""),
    ],
)
def test_a_threshold_is_in_words(kind: str, changed: dict[str, float], words: str) -> None:
    assert threshold(Rule(name="Mine", kind=kind, **changed)) == words  # type: ignore[arg-type]
