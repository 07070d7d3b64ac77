"""The JSON API on real databases, with a real broker behind the actions."""

import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest
import redis
from starlette.testclient import TestClient

from celery_monitor.records.queue import Queue
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.queues import save_queues
from celery_monitor.store.tasks.detail import link_retry
from celery_monitor.store.writer import Writer
from tests.factories import make_event, make_id
from tests.web.shop import BASE, ODD, PROBABLE, RUNNING, SUCCEEDED, TRACEBACK, TRUNCATED, fill, serving, user

TASK_KEYS = [
    "id",
    "cluster",
    "name",
    "state",
    "queue",
    "worker",
    "args",
    "kwargs",
    "result",
    "exception",
    "traceback",
    "retries",
    "eta",
    "expires",
    "sent",
    "received",
    "started",
    "finished",
    "runtime",
    "runtime_estimated",
    "wait",
    "wait_since",
    "root_id",
    "parent_id",
    "failure_group",
    "retried",
]
USERS = (user("vera", "viewer", "v"), user("olga", "operator", "o"), user("root", "admin", "r"))


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = open_store(database_url)
    fill(store)
    yield store
    store.close()


@pytest.fixture
def client(store: Store, database_url: str) -> Iterator[TestClient]:
    """Reads only: the broker does not exist."""
    settings = Settings(broker=(Broker("shop", "redis://127.0.0.1:1/0"), Broker("mail", "redis://127.0.0.1:1/1")))
    with serving(settings, database_url) as app:
        yield TestClient(app, base_url=BASE, raise_server_exceptions=False)


@pytest.fixture
def acting(store: Store, database_url: str, redis_url: str) -> Iterator[TestClient]:
    settings = Settings(broker=(Broker("shop", redis_url),), basic_auth=USERS)
    with serving(settings, database_url) as app:
        client = TestClient(app, base_url=BASE)
        client.auth = ("olga", "o")
        yield client


def error_of(response: object, status: int) -> dict[str, object]:
    assert response.status_code == status, response.text  # type: ignore[attr-defined]
    body = response.json()  # type: ignore[attr-defined]
    assert list(body) == ["error"]
    assert list(body["error"]) == ["code", "message", "detail"]
    found: dict[str, object] = body["error"]
    return found


def test_healthcheck(client: TestClient) -> None:
    assert client.get("/healthcheck").text == "OK"


# --- tasks


def test_tasks_are_listed_newest_first_with_every_key(client: TestClient) -> None:
    body = client.get("/api/v1/tasks").json()
    assert [item["id"] for item in body["items"]] == [ODD, RUNNING, SUCCEEDED, TRUNCATED, PROBABLE]
    assert body["count"] == {"value": 5, "exact": True}
    assert body["next"] is None
    assert all(set(item) == set(TASK_KEYS) for item in body["items"])


def test_task_in_a_list_has_its_values(client: TestClient) -> None:
    (item,) = client.get("/api/v1/tasks", params={"q": f"id:{SUCCEEDED}"}).json()["items"]
    assert (item["cluster"], item["name"], item["state"]) == ("shop", "shop.pay.charge", "SUCCESS")
    assert (item["queue"], item["worker"]) == ("payments", "worker1@shop")
    assert (item["args"], item["kwargs"], item["result"]) == ("(31, 'EUR')", "{}", "'paid'")
    assert (item["runtime"], item["runtime_estimated"]) == (1.75, False)
    assert item["wait"] == pytest.approx(1.5)
    assert item["wait_since"] == "sent"
    assert item["finished"] - item["sent"] == pytest.approx(3.5)
    assert item["exception"] is item["eta"] is item["parent_id"] is item["failure_group"] is None


@pytest.mark.parametrize("sort", ["-received", "name"])
def test_task_in_a_list_says_nothing_else_than_by_itself(client: TestClient, sort: str) -> None:
    items = client.get("/api/v1/tasks", params={"sort": sort}).json()["items"]
    alone = [client.get(f"/api/v1/tasks/{quote(item['id'], safe='')}").json() for item in items]
    assert items == [{key: task[key] for key in TASK_KEYS} for task in alone]
    assert [item["traceback"] for item in items if item["state"] == "FAILURE"] == [TRACEBACK] * 2


def test_filter_narrows_and_counts(client: TestClient) -> None:
    body = client.get("/api/v1/tasks", params={"q": "state:failed"}).json()
    assert [item["id"] for item in body["items"]] == [TRUNCATED, PROBABLE]
    assert body["count"] == {"value": 2, "exact": True}


def test_cursor_goes_on_where_the_page_ended(client: TestClient) -> None:
    seen: list[str] = []
    cursor: dict[str, str] = {}
    for _ in range(3):
        body = client.get("/api/v1/tasks", params={"limit": "2", **cursor}).json()
        seen += [item["id"] for item in body["items"]]
        cursor = {"cursor": body["next"]}
    assert seen == [ODD, RUNNING, SUCCEEDED, TRUNCATED, PROBABLE]
    assert body["next"] is None


def test_bad_filter_names_the_column_and_matches_nothing(client: TestClient) -> None:
    error = error_of(client.get("/api/v1/tasks", params={"q": "state:failed colour:red"}), 400)
    assert error["code"] == "filter"
    assert error["detail"]["column"] == 14  # type: ignore[index]
    assert "queue" in error["detail"]["known"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=many", "limit"),
        ("limit=-1", "limit"),
        ("Q=state:failed", "'Q'"),
        ("q=state:failed&q=x", "'q'"),
        ("id=7", "'id'"),
        ("cursor=x", "cursor"),
        ("sort=colour", "colour"),
        ("q=%00", "q"),
    ],
)
def test_wrong_or_unknown_parameter_is_refused_never_ignored(client: TestClient, query: str, says: str) -> None:
    error = error_of(client.get(f"/api/v1/tasks?{query}"), 400)
    assert says in f"{error['message']} {error['detail']}"


# --- one task


def test_task_has_runs_arguments_and_lineage(client: TestClient, store: Store) -> None:
    link_retry(store, "shop", PROBABLE, SUCCEEDED, "probable", 1_780_000_007.0)
    task = client.get(f"/api/v1/tasks/{PROBABLE}").json()
    assert set(task) == {
        *TASK_KEYS,
        "runs",
        "arguments",
        "message",
        "retry_of",
        "retried_as",
        "learnt",
        "worker_state",
        "message_place",
    }
    assert task["traceback"] == TRACEBACK
    assert isinstance(task["failure_group"], int)
    (run,) = task["runs"]
    assert (run["worker"], run["pid"], run["outcome"], run["retries"]) == ("worker1@shop", 4711, "failed", 0)
    assert task["arguments"]["args"] == [31, "EUR"]
    assert task["arguments"]["kwargs"] == {}
    assert task["arguments"]["fidelity"] == "probable"
    assert task["arguments"]["source"]
    assert (task["retry_of"], task["retried_as"]) == (None, [SUCCEEDED])
    assert task["retried"] == {"id": SUCCEEDED, "state": "SUCCESS"}
    (listed,) = client.get(f"/api/v1/tasks?q=retried:succeeded id:{PROBABLE}").json()["items"]
    assert listed["retried"] == {"id": SUCCEEDED, "state": "SUCCESS"}
    assert client.get(f"/api/v1/tasks/{SUCCEEDED}").json()["retry_of"] == PROBABLE


def test_arguments_that_were_cut_are_unknown_never_empty(client: TestClient) -> None:
    arguments = client.get(f"/api/v1/tasks/{TRUNCATED}").json()["arguments"]
    assert (arguments["args"], arguments["kwargs"], arguments["fidelity"]) == (None, None, "unknown")
    assert arguments["reason"]


def test_any_string_is_an_id(client: TestClient) -> None:
    assert client.get(f"/api/v1/tasks/{quote(ODD, safe='')}").json()["id"] == ODD


@pytest.mark.parametrize("task_id", [make_id(999), "x/retry", quote("../tasks", safe=""), "%20"])
def test_unknown_task_is_not_found(client: TestClient, task_id: str) -> None:
    assert error_of(client.get(f"/api/v1/tasks/{task_id}"), 404)["code"] == "not_found"


def test_task_of_another_cluster_is_not_found(client: TestClient) -> None:
    assert client.get(f"/api/v1/tasks/{PROBABLE}?cluster=shop").status_code == 200
    error_of(client.get(f"/api/v1/tasks/{PROBABLE}?cluster=mail"), 404)


# --- actions


def test_retry_asks_for_a_confirmation_then_sends_and_links(acting: TestClient, redis_url: str) -> None:
    path = f"/api/v1/tasks/{PROBABLE}/retry"
    assert error_of(acting.post(path, json={}), 409)["code"] == "confirmation_required"
    answer = acting.post(path, json={"confirm": True, "reason": "card is back"})
    assert answer.status_code == 200, answer.text
    new = answer.json()
    assert new["id"] != PROBABLE
    assert new["fidelity"] == "probable"
    with redis.Redis.from_url(redis_url) as broker:
        assert broker.llen("payments") == 1
    assert acting.get(f"/api/v1/tasks/{PROBABLE}").json()["retried_as"] == [new["id"]]
    (action,) = [item for item in acting.get("/api/v1/actions").json()["items"] if item["outcome"] == "done"]
    assert (action["actor"], action["action"], action["target"]) == ("olga", "task.retry", PROBABLE)
    assert action["reason"] == "card is back"


def test_unknown_arguments_are_refused_and_given_ones_are_sent(acting: TestClient, redis_url: str) -> None:
    path = f"/api/v1/tasks/{TRUNCATED}/retry"
    assert error_of(acting.post(path, json={"confirm": True}), 409)["code"] == "arguments_unknown"
    with redis.Redis.from_url(redis_url) as broker:
        assert broker.llen("payments") == 0
    body = '{"args": [12345678901234567890123, "b"], "kwargs": {"k": [1, 2.50]}, "confirm": true}'
    answer = acting.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    with redis.Redis.from_url(redis_url) as broker:
        assert broker.llen("payments") == 1


def test_revoke_is_sent_and_recorded(acting: TestClient) -> None:
    answer = acting.post(f"/api/v1/tasks/{RUNNING}/revoke", json={"terminate": True, "signal": "SIGKILL"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outcome"] in {"done", "unconfirmed"}
    assert answer.json()["message"]
    assert acting.get("/api/v1/actions").json()["items"][0]["action"] == "task.revoke"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("[]", "object"),
        ('{"confirmed": true}', "confirmed"),
        ('{"confirm": "yes"}', "bool"),
        ('{"confirm": 1}', "bool"),
        ('{"args": {}, "kwargs": {}}', "args"),
        ('{"args": [], "kwargs": []}', "kwargs"),
        ('{"countdown": -1}', "countdown"),
        ('{"countdown": 1e300}', "countdown"),
        ('{"queue": ""}', "queue"),
        ('{"args": [NaN]}', ""),
        ('{"reason": "\\u0000"}', "reason"),
        ("\xff", "JSON"),
    ],
)
def test_bad_body_is_refused(acting: TestClient, body: str, says: str) -> None:
    path = f"/api/v1/tasks/{PROBABLE}/retry"
    headers = {"Content-Type": "application/json"}
    error = error_of(acting.post(path, content=body.encode("latin-1"), headers=headers), 400)
    assert says in f"{error['message']} {error['detail']}"


@pytest.mark.parametrize("headers", [{}, {"Content-Type": ""}, {"Content-Type": "text/plain"}])
def test_body_without_the_type_of_json_is_refused(acting: TestClient, headers: dict[str, str]) -> None:
    response = acting.post(f"/api/v1/tasks/{PROBABLE}/retry", content='{"confirm": true}', headers=headers)
    assert error_of(response, 415)["code"] == "unsupported_type"


def test_viewer_may_not_act_and_the_attempt_is_recorded(acting: TestClient) -> None:
    for what in ("retry", "revoke"):
        response = acting.post(f"/api/v1/tasks/{PROBABLE}/{what}", json={}, auth=("vera", "v"))
        assert error_of(response, 403)["code"] == "forbidden"
    actions = acting.get("/api/v1/actions").json()["items"]
    assert [(item["actor"], item["outcome"]) for item in actions] == [("vera", "denied")] * 2


def test_broker_that_is_away_is_said(client: TestClient) -> None:
    error = error_of(client.post(f"/api/v1/tasks/{PROBABLE}/retry", json={"confirm": True}), 503)
    assert "broker" in str(error["message"]).lower()


# --- the rest


def test_workers(client: TestClient) -> None:
    (worker,) = client.get("/api/v1/workers").json()["items"]
    assert (worker["hostname"], worker["status"], worker["cluster"]) == ("worker1@shop", "online", "shop")
    assert worker["sw_ver"] == "5.7.0"
    assert worker["queues"] is None
    assert client.get("/api/v1/workers?cluster=mail").json()["items"] == []


def test_queues_say_null_for_what_is_not_known(client: TestClient) -> None:
    (queue,) = client.get("/api/v1/queues").json()["items"]
    assert (queue["name"], queue["ready"], queue["unacked"]) == ("payments", 12, None)


def test_queues_tell_how_long_tasks_waited_lately(client: TestClient, store: Store) -> None:
    now = time.time()
    for number, waited in enumerate((1.0, 1.0, 40.0, 40.0, 40.0)):
        known = {"uuid": make_id(700 + number), "hostname": "worker1@shop"}
        sent = make_event("task-sent", timestamp=now - 90, name="shop.pay.charge", queue="payments", **known)
        received = make_event("task-received", timestamp=now - 90, name="shop.pay.charge", **known)
        started = make_event("task-started", timestamp=now - 90 + waited, **known)
        ended = make_event("task-succeeded", timestamp=now - 45, runtime=1.5, result="1", **known)
        Writer(store, "shop", Settings()).write([Delivery(events=[sent, received, started, ended], arrived=now)])
    (queue,) = client.get("/api/v1/queues").json()["items"]
    assert list(queue["wait"]) == ["p50", "p95", "p99", "since_receipt"]
    assert queue["wait"]["p95"] == pytest.approx(40.0, rel=0.05)
    assert queue["wait"]["since_receipt"] == 0.0


@pytest.mark.parametrize("exact", [True, False])
def test_age_of_the_oldest_message_says_whether_it_is_a_bound(client: TestClient, store: Store, exact: bool) -> None:
    now = time.time()
    (queue,) = client.get("/api/v1/queues").json()["items"]
    assert (queue["oldest"], queue["oldest_age"], queue["oldest_exact"]) == (None, None, False)
    measured = Queue(cluster="shop", name="payments", ready=4, oldest=now - 26, oldest_exact=exact)
    save_queues(store, "shop", [measured], now)
    (queue,) = client.get("/api/v1/queues").json()["items"]
    assert queue["oldest_age"] == pytest.approx(26, abs=5)
    assert queue["oldest_exact"] is exact


def test_what_is_of_a_run_is_of_the_latest_in_lists_and_detail_alike(client: TestClient, store: Store) -> None:
    task_id, at = make_id(911), time.time() - 300
    known = {"uuid": task_id, "name": "shop.pay.charge", "args": "()", "kwargs": "{}"}
    first = {"exception": "KeyError('k')", "traceback": "T", "uuid": task_id}
    events = [
        make_event("task-sent", timestamp=at, hostname="gen7@web", queue="payments", retries=0, **known),
        make_event("task-received", timestamp=at + 1, retries=0, **known),
        make_event("task-started", timestamp=at + 3, uuid=task_id),
        make_event("task-retried", timestamp=at + 9, **first),
        make_event("task-received", timestamp=at + 40, retries=1, **known),
        make_event("task-started", timestamp=at + 41, uuid=task_id),
    ]
    Writer(store, "shop", Settings()).write([Delivery(events=events, arrived=at + 50)])
    (item,) = client.get("/api/v1/tasks", params={"q": f"id:{task_id}"}).json()["items"]
    detail = client.get(f"/api/v1/tasks/{task_id}").json()
    *_, latest = detail["runs"]
    for key in (
        "worker",
        "retries",
        "received",
        "started",
        "runtime",
        "runtime_estimated",
        "wait",
        "wait_since",
        "eta",
    ):
        assert item[key] == detail[key] == latest[key], key
    assert (item["retries"], item["wait_since"]) == (1, "retry")
    assert item["wait"] == pytest.approx(32.0)
    assert [run["wait_since"] for run in detail["runs"]] == ["sent", "retry"]


def test_failures_are_grouped(client: TestClient) -> None:
    (group,) = client.get("/api/v1/failures").json()["items"]
    assert (group["exception_type"], group["count"], group["name"]) == ("TimeoutError", 2, "shop.pay.charge")
    assert client.get("/api/v1/failures?since=4102444800").json()["items"] == []


def test_series_counts_outcomes_and_names_gaps(client: TestClient) -> None:
    series = client.get("/api/v1/series").json()
    assert sum(bucket["failed"] for bucket in series["buckets"]) == 2
    assert sum(bucket["succeeded"] for bucket in series["buckets"]) == 2
    assert [gap["cause"] for gap in series["gaps"]] == ["broker was away"]


@pytest.mark.parametrize(
    "query", ["since=7&until=7", "since=8&until=7", "since=0&until=4102444800", "since=nan", "until=inf"]
)
def test_span_without_bounds_is_refused(client: TestClient, query: str) -> None:
    error_of(client.get(f"/api/v1/series?{query}"), 400)


def test_health_names_every_cluster_and_does_not_guess(client: TestClient) -> None:
    mail, shop = client.get("/api/v1/health").json()["items"]
    assert (shop["cluster"], shop["connected"], shop["events_total"]) == ("shop", True, 19)
    (gap,) = shop["gaps"]
    assert (gap["cause"], gap["dropped"]) == ("broker was away", 3)
    assert mail["cluster"] == "mail"
    assert mail["connected"] is mail["events_total"] is mail["lag_seconds"] is None


def test_health_lists_the_findings_of_each_cluster(client: TestClient) -> None:
    mail, shop = client.get("/api/v1/health").json()["items"]
    assert [each["text"] for each in mail["findings"]] == ["No receiver has written to this database yet."]
    found = {each["kind"]: each for each in shop["findings"]}
    assert found["gap"]["text"].startswith("50 s of events may be missing")
    assert found["gap"]["link"] == "/?range=1h"
    assert found["gap"]["since"] == shop["gaps"][0]["began"]
    assert "Nothing is failing" not in str(shop["findings"])


def test_clusters(client: TestClient) -> None:
    assert client.get("/api/v1/clusters").json() == {"items": [{"name": "mail"}, {"name": "shop"}]}


# --- what is not there


@pytest.mark.parametrize("path", ["/api/v1", "/api/v1/", "/api/v1/nothing", "/api/v1/workers/x"])
def test_unknown_path_answers_in_the_shape_of_errors(client: TestClient, path: str) -> None:
    assert error_of(client.get(path), 404)["code"] == "not_found"


def test_wrong_method_answers_in_the_shape_of_errors(client: TestClient) -> None:
    response = client.post("/api/v1/tasks", json={})
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert sorted(response.headers["allow"].split(", ")) == ["GET", "HEAD"]
    assert sorted(response.json()["error"]["detail"]["allowed"].split(", ")) == ["GET", "HEAD"]


def test_unexpected_failure_tells_no_secrets(store: Store, database_url: str) -> None:
    with serving(Settings(), database_url) as app:
        app.state.store, kept = None, app.state.store
        client = TestClient(app, base_url=BASE, raise_server_exceptions=False)
        error = error_of(client.get("/api/v1/tasks"), 500)
        app.state.store = kept
    assert error["code"] == "internal"
    assert "NoneType" not in str(error)
