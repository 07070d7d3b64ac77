"""A request that comes twice, by a double click or a network that tries again, is done once."""

import re
from collections.abc import Iterator
from html import unescape

import pytest
import redis

from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_event, make_message
from tests.web.pages.conftest import Browser
from tests.web.shop import BASE, PROBABLE, TRUNCATED, fill, serving

RETRY = f"/api/v1/tasks/{PROBABLE}/retry"
ALL = {"action": "retry", "q": "state:failed"}
OWN = {"Origin": BASE, "Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def browser(redis_url: str, sqlite_url: str) -> Iterator[Browser]:
    settings = Settings(broker=(Broker("shop", redis_url),), port=5757)
    with serving(settings, sqlite_url) as app:
        fill(app.state.store)
        yield Browser(app, base_url=BASE, client=("127.0.0.1", 50123))


def waiting(url: str) -> int:
    with redis.Redis.from_url(url) as broker:
        return sum(int(broker.llen(key)) for key in broker.keys("payments*"))


@pytest.mark.parametrize("by_header", [True, False])
def test_a_repeated_retry_sends_once(browser: Browser, redis_url: str, by_header: bool) -> None:
    body = {"confirm": True} if by_header else {"confirm": True, "request_id": "press 7"}
    headers = {"Idempotency-Key": "press 7"} if by_header else {}
    first = browser.post(RETRY, json=body, headers=headers).json()
    second = browser.post(RETRY, json=body, headers=headers).json()
    assert first["id"] == second["id"]
    assert "Nothing was sent twice" in second["message"]
    assert waiting(redis_url) == 1
    third = browser.post(RETRY, json={"confirm": True, "request_id": "press 8"}).json()
    assert third["id"] != first["id"]
    assert waiting(redis_url) == 2


def test_one_request_on_two_tasks_is_two_retries(browser: Browser, redis_url: str) -> None:
    same = {"request_id": "press 7", "confirm": True}
    browser.post(RETRY, json=same)
    typed = {**same, "args": [31], "kwargs": {}}
    assert browser.post(f"/api/v1/tasks/{TRUNCATED}/retry", json=typed).status_code == 200
    assert waiting(redis_url) == 2


def test_two_names_for_one_request_are_refused(browser: Browser, redis_url: str) -> None:
    body = {"confirm": True, "request_id": "press 7"}
    answer = browser.post(RETRY, json=body, headers={"Idempotency-Key": "press 8"})
    assert (answer.status_code, waiting(redis_url)) == (400, 0)
    assert browser.post(RETRY, json={"confirm": True}, headers={"Idempotency-Key": "x" * 201}).status_code == 400


def test_a_repeated_bulk_request_is_one_job(browser: Browser) -> None:
    first = browser.post("/api/v1/bulk", json={**ALL, "request_id": "night 3", "rate": 0.05}).json()
    second = browser.post("/api/v1/bulk", json={**ALL, "request_id": "night 3", "rate": 0.05}).json()
    by_header = browser.post("/api/v1/bulk", json=ALL, headers={"Idempotency-Key": "night 3"}).json()
    assert first["id"] == second["id"] == by_header["id"]
    assert len(browser.get("/api/v1/jobs").json()["items"]) == 1
    other = browser.post("/api/v1/bulk", json={"action": "retry", "q": "name:shop.*", "request_id": "night 3"})
    assert other.status_code == 409
    assert "is used by job" in other.json()["error"]["message"]


def test_a_double_click_on_the_selection_sends_once(browser: Browser, redis_url: str) -> None:
    """Nothing is asked where messages are exact, so the first form has to carry the request."""
    store = browser.app.state.store  # type: ignore[attr-defined]
    settings = browser.app.state.settings  # type: ignore[attr-defined]
    texts = {"argsrepr": "(31, 'EUR')", "kwargsrepr": "{}"}  # as the events of the task have them
    message = make_message(PROBABLE, headers=texts, body=b'[[31, "EUR"], {}, {}]')
    event = make_event("capture-message", uuid=PROBABLE, message=message)
    Writer(store, "shop", settings).write([Delivery(events=[event], arrived=NOW)])
    page = browser.get("/tasks").text
    form = page.partition('id="selection"')[2].partition("</form>")[0]
    fields = {name: unescape(value) for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form)}
    assert set(fields) == {"csrf_token", "request_id"}
    for _ in range(2):
        browser.post("/tasks/retry", data={**fields, "task": f"shop {PROBABLE}"}, headers=OWN)
    assert waiting(redis_url) == 1
