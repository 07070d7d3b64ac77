"""Requests of Flower's API that need no worker: who may send them, and what is answered where something is missing."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from celery_monitor.core.sanitize import Redactor
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.actions import read_actions
from celery_monitor.store.writer import Writer
from tests.factories import make_event, make_id
from tests.servers import free_port
from tests.web.shop import BASE, RUNNING, SUCCEEDED, fill, serving, user

WORKER = "worker1@shop"
BROWSER = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
USERS = (user("vera", "viewer", "v"), user("olga", "operator", "o"))
NOWHERE = Settings(broker=(Broker("shop", f"redis://127.0.0.1:{free_port()}/0"),))


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Starlette]:
    """A broker that is down."""
    with serving(NOWHERE, sqlite_url) as app:
        fill(app.state.store)
        yield app


@pytest.fixture
def client(app: Starlette) -> TestClient:
    return TestClient(app, base_url=BASE)


def actions(app: Starlette) -> list[tuple[str, str]]:
    return [(each.action, each.outcome) for each in read_actions(app.state.store, limit=50).items]


def test_a_script_needs_no_token_and_a_browser_does(client: TestClient, app: Starlette) -> None:
    path = f"/api/worker/pool/grow/{WORKER}"
    assert client.post(path, data={"n": "2"}).status_code == 503
    assert client.post(path, data={"n": "2"}, headers=BROWSER).status_code == 403
    assert client.post(path, data={"n": "2"}, headers={"Origin": "http://elsewhere.example"}).status_code == 403
    assert actions(app) == [("worker.pool_grow", "failed")]  # the broker is down; the others came to nothing


def test_broker_that_is_down_is_said_in_flowers_words(client: TestClient) -> None:
    for path, form in (
        (f"/api/worker/queue/add-consumer/{WORKER}", {"queue": "payments"}),
        (f"/api/task/revoke/{RUNNING}", {}),
        ("/api/task/rate-limit/shop.pay.charge", {"workername": WORKER, "ratelimit": "5/m"}),
    ):
        answer = client.post(path, data=form)
        assert (answer.status_code, answer.text) == (503, "Broker or result backend unavailable")
        assert answer.headers["content-type"] == "text/plain; charset=UTF-8"
    assert client.post("/api/task/send-task/shop.count", json={}).status_code == 503


def test_read_only_comes_before_every_other_error(sqlite_url: str) -> None:
    with serving(replace(NOWHERE, read_only=True), sqlite_url) as app:
        fill(app.state.store)
        client = TestClient(app, base_url=BASE)
        for path in (f"/api/worker/shutdown/{WORKER}", "/api/worker/shutdown/nobody", "/api/task/apply/x"):
            answer = client.post(path)
            assert (answer.status_code, answer.text) == (403, "Read only mode is enabled"), path
        assert actions(app) == [("worker.shutdown", "denied")]


def test_users_have_their_roles(sqlite_url: str) -> None:
    with serving(replace(NOWHERE, basic_auth=USERS), sqlite_url) as app:
        fill(app.state.store)
        client = TestClient(app, base_url=BASE)
        assert client.get("/api/tasks").status_code == 401
        assert client.get("/api/tasks", auth=("vera", "v")).status_code == 200
        assert client.post(f"/api/task/revoke/{RUNNING}", auth=("vera", "v")).status_code == 403
        assert client.post(f"/api/task/revoke/{RUNNING}", auth=("olga", "o")).status_code == 503


def test_api_is_below_the_prefix(sqlite_url: str) -> None:
    with serving(replace(NOWHERE, url_prefix="/flower"), sqlite_url) as app:
        fill(app.state.store)
        client = TestClient(app, base_url=BASE)
        assert client.get(f"/flower/api/task/info/{SUCCEEDED}").json()["uuid"] == SUCCEEDED
        assert client.get("/api/tasks").status_code == 404
        assert client.post("/flower/api/worker/shutdown/nobody").text == "Unknown worker 'nobody'"


def test_without_an_application_only_send_task_knows_a_task(client: TestClient) -> None:
    for verb in ("apply", "async-apply"):
        answer = client.post(f"/api/task/{verb}/shop.pay.charge", json={"args": []})
        assert (answer.status_code, answer.text) == (404, "Unknown task 'shop.pay.charge'")


def test_without_a_result_backend_there_is_no_result(client: TestClient) -> None:
    assert client.get(f"/api/task/result/{SUCCEEDED}").status_code == 503
    assert client.post(f"/api/task/abort/{RUNNING}").status_code == 503


def test_time_of_an_earlier_retry_stays(client: TestClient, app: Starlette) -> None:
    at, known = time.time() - 60, {"uuid": make_id(900), "name": "shop.count"}
    events = [
        make_event("task-received", timestamp=at, **known, retries=0),
        make_event("task-started", timestamp=at + 1, uuid=make_id(900)),
        make_event("task-retried", timestamp=at + 2, uuid=make_id(900), exception="OSError('busy')"),
        make_event("task-received", timestamp=at + 3, **known, retries=1),
        make_event("task-started", timestamp=at + 4, uuid=make_id(900)),
        make_event("task-succeeded", timestamp=at + 5, uuid=make_id(900), runtime=1.0, result="7"),
    ]
    Writer(app.state.store, "shop", Settings()).write([Delivery(events=events, arrived=time.time())])
    task = client.get(f"/api/task/info/{make_id(900)}").json()
    assert (task["state"], task["retries"], task["exception"]) == ("SUCCESS", 1, None)
    assert (task["retried"], task["succeeded"]) == (pytest.approx(at + 2), pytest.approx(at + 5))


def test_secrets_are_masked_in_results_and_configurations() -> None:
    redactor = Redactor(Settings().redact)
    given = {"password": "hunter2", "url": "redis://:secret@host/0", "plain": [1, {"token": {"a": 1}}]}
    assert redactor.plain(given) == {"password": "***", "url": "redis://:***@host/0", "plain": [1, {"token": "***"}]}


def test_a_list_without_limit_is_streamed_beside_other_requests(client: TestClient, app: Starlette) -> None:
    at, known = time.time() - 1000, {"name": "shop.count", "args": repr("x" * 500)}
    events = [make_event("task-received", timestamp=at + n / 100, uuid=make_id(5000 + n), **known) for n in range(4000)]
    Writer(app.state.store, "shop", Settings()).write([Delivery(events=events, arrived=time.time())])
    assert client.head("/api/tasks").content == b""
    with client.stream("GET", "/api/tasks") as answer:
        assert "etag" not in answer.headers
        assert "content-length" not in answer.headers
        parts = list(answer.iter_bytes())
    found = json.loads(b"".join(parts))
    assert len(found) == 4005
    assert list(found)[:2] != list(found)[-2:]
    assert len(client.get("/api/tasks?limit=4005").json()) == 4005
