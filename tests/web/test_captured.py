"""A task whose message was captured, on its page and in the API: exact, its secrets masked, no question asked."""

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from typing import Any

import pytest
import redis
from starlette.testclient import TestClient

from celery_monitor.records.event import Message
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.actions import read_actions
from celery_monitor.store.engine import open_store
from celery_monitor.store.writer import Writer
from celery_monitor.web.app import create_app
from tests.factories import NOW, make_event, make_id, make_message
from tests.web.pages.conftest import Browser
from tests.web.shop import BASE, events_of, user

PLAIN, SECRET, PICKLED, CHORD = (make_id(number) for number in (111, 112, 113, 114))
SECRET_BODY = b'[[31], {"api_key": "k3y"}, {"callbacks": [{"task": "shop.mail"}]}]'
MESSAGES: dict[str, Message] = {
    PLAIN: make_message(PLAIN, headers={"shadow": "Pay", "stamps": {"tenant": "acme"}}, chain=2),
    SECRET: make_message(SECRET, body=SECRET_BODY, callbacks=1, headers={"kwargsrepr": "{'api_key': 'k3y'}"}),
    PICKLED: make_message(PICKLED, body=b"\x80\x04<Order>", content_type="application/x-python-serialize"),
    CHORD: make_message(CHORD, headers={"group": "g7", "group_index": 1}, chord="shop.sum"),
}


@pytest.fixture
def settings(sqlite_url: str, redis_url: str) -> Settings:
    settings = Settings(broker=(Broker("shop", redis_url),), database=sqlite_url, port=5757)
    store = open_store(settings.database)
    events = []
    for task_id, message in MESSAGES.items():
        events += events_of(
            task_id, NOW, "failed", args="(31,)", kwargs=message.kwargs, exception="E('x')", traceback="T"
        )
        events.append(make_event("capture-message", uuid=task_id, message=message))
    Writer(store, "shop", settings).write([Delivery(events=events, arrived=NOW)])
    store.close()
    return settings


@pytest.fixture
def browser(settings: Settings) -> Iterator[Browser]:
    app = create_app(settings)
    with Browser(app, base_url=BASE, client=("127.0.0.1", 50123)) as browser:
        yield browser
    app.state.store.close()


def waiting(settings: Settings) -> list[dict[str, Any]]:
    with redis.Redis.from_url(settings.broker[0].url) as broker:
        keys = [key for key in broker.keys("payments*") if broker.type(key) == b"list"]
        return [json.loads(raw) for key in keys for raw in broker.lrange(key, 0, -1)]


def test_the_page_says_exact_and_what_events_leave_out(browser: Browser) -> None:
    page = unescape(browser.get(f"/tasks/{PLAIN}").text)
    assert '<span class="fidelity exact"' in page
    assert "Original message, captured by the worker" in page
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", page))
    assert facts["Real name"] == "shop.pay.charge"
    assert (facts["Priority"], facts["Stamps"]) == ("4", "tenant=acme")
    assert facts["Chain"] == "2 more"


def test_retry_from_the_page_sends_the_message(browser: Browser, settings: Settings) -> None:
    asked = browser.get(f"/tasks/{PLAIN}?panel=retry").text
    assert "Retry this task?" in asked
    page = browser.submit(f"/tasks/{PLAIN}", f"/tasks/{PLAIN}/retry")
    assert "Retried as" in page
    (message,) = waiting(settings)
    assert b64decode(message["body"]) == MESSAGES[PLAIN].body
    assert (message["properties"]["priority"], message["headers"]["stamps"]) == (4, {"tenant": "acme"})


def test_the_api_sends_it_without_confirmation(browser: Browser, settings: Settings) -> None:
    known = browser.get(f"/api/v1/tasks/{PLAIN}").json()
    assert known["arguments"]["fidelity"] == "exact"
    assert (known["arguments"]["args"], known["arguments"]["source"]) == ([31], "capture")
    assert (known["message"]["name"], known["message"]["chain"]) == ("shop.pay.charge", 2)
    headers = {"X-CSRF-Token": browser.token("/tasks"), "Origin": BASE}
    answer = browser.post(f"/api/v1/tasks/{PLAIN}/retry", json={}, headers=headers).json()
    assert answer["fidelity"] == "exact"
    assert [each["headers"]["id"] for each in waiting(settings)] == [answer["id"]]


def test_a_pickled_body_is_sent_and_never_shown(browser: Browser, settings: Settings) -> None:
    page = browser.get(f"/tasks/{PICKLED}?panel=retry").text
    assert "which is not opened here" in page
    assert "&lt;Order" not in page
    browser.submit(f"/tasks/{PICKLED}", f"/tasks/{PICKLED}/retry")
    (message,) = waiting(settings)
    assert b64decode(message["body"]) == MESSAGES[PICKLED].body
    assert "callbacks, chain, group, priority and headers" in browser.get(f"/tasks/{PICKLED}?panel=edit").text


def test_a_secret_is_masked_on_the_page_and_in_the_api_and_sent_as_it_is(browser: Browser, settings: Settings) -> None:
    assert "k3y" not in browser.get(f"/tasks/{SECRET}?panel=retry").text
    known = browser.get(f"/api/v1/tasks/{SECRET}").json()
    assert known["arguments"]["kwargs"] == {"api_key": "***"}
    browser.submit(f"/tasks/{SECRET}", f"/tasks/{SECRET}/retry")
    (message,) = waiting(settings)
    assert b64decode(message["body"]) == SECRET_BODY


def test_only_who_may_read_messages_edits_a_secret(settings: Settings) -> None:
    users = (user("olga", "operator", "o"), user("root", "admin", "r"))
    app = create_app(replace(settings, basic_auth=users))
    shown = {}
    for name, password in (("olga", "o"), ("root", "r")):
        with TestClient(app, base_url=BASE, client=("127.0.0.1", 50123)) as client:
            page = client.get(f"/tasks/{SECRET}?panel=edit", auth=(name, password)).text
            shown[name] = [unescape(text) for text in re.findall(r"<textarea[^>]*>([^<]*)</textarea>", page)]
            client.get(f"/tasks/{SECRET}", auth=(name, password))  # masked, so it is no reading
            client.get(f"/tasks/{PLAIN}?panel=edit", auth=(name, password))  # no secret in it
    read = [(each.actor, each.action, each.cluster, each.target) for each in read_actions(app.state.store).items]
    app.state.store.close()
    assert shown == {"olga": ["", ""], "root": ["[31]", '{"api_key": "k3y"}']}
    assert read == [("root", "message.read", "shop", SECRET)]


def test_a_member_of_a_chord_warns_that_its_body_stays_failed(browser: Browser) -> None:
    assert "the chord body shop.sum stays failed" in unescape(browser.get(f"/tasks/{CHORD}?panel=retry").text)
    headers = {"X-CSRF-Token": browser.token("/tasks"), "Origin": BASE}
    answer = browser.post(f"/api/v1/tasks/{CHORD}/retry", json={}, headers=headers)
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "confirmation_required"
    assert browser.post(f"/api/v1/tasks/{CHORD}/retry", json={"confirm": True}, headers=headers).status_code == 200
