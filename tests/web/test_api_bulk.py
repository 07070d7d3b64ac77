"""Bulk by query through the API."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from tests.web.shop import BASE, PROBABLE, TRUNCATED, fill, serving
from tests.workers import wait_for


@pytest.fixture
def client(redis_url: str, sqlite_url: str) -> Iterator[TestClient]:
    settings = Settings(broker=(Broker("shop", redis_url),), port=5757)
    with serving(settings, sqlite_url) as app:
        fill(app.state.store)
        yield TestClient(app, base_url=BASE, client=("127.0.0.1", 50123))


def test_preview_start_watch_and_outcomes(client: TestClient) -> None:
    asked = {"action": "retry", "q": "state:failed", "reason": "gateway is back"}
    preview = client.post("/api/v1/bulk/preview", json=asked).json()
    assert preview["q"] == "state:failed"
    assert preview["count"] == {"value": 2, "exact": True}
    assert preview["fidelity"] == {"exact": 0, "probable": 1, "unknown": 1}
    assert preview["sendable"] == 1
    assert not preview["estimated"]
    assert [sample["id"] for sample in preview["samples"]] == [PROBABLE]
    started = client.post("/api/v1/bulk", json={**asked, "preview": preview["id"]})
    assert started.status_code == 200, started.text
    address = f"/api/v1/bulk/{started.json()['id']}"
    wait_for(lambda: client.get(address).json()["state"] == "done", what="the end of the job")
    job = client.get(address).json()
    assert (job["count"], job["done"], job["skipped"], job["left"]) == (2, 1, 1, 0)
    assert (job["actor"], job["reason"], job["q"]) == ("anonymous", "gateway is back", "state:failed")
    first = client.get(f"{address}/tasks?limit=1").json()
    second = client.get(f"{address}/tasks?limit=1&cursor={first['next']}").json()
    assert [each["id"] for each in (*first["items"], *second["items"])] == [PROBABLE, TRUNCATED]
    assert first["items"][0]["new_id"] in client.get(f"/api/v1/tasks/{PROBABLE}").json()["retried_as"]
    (skipped,) = client.get(f"{address}/tasks?outcome=skipped").json()["items"]
    assert "arguments unknown" in skipped["reason"]
    assert [each["id"] for each in client.get("/api/v1/jobs").json()["items"]] == [job["id"]]


def test_without_a_preview_what_matches_now_is_taken_and_a_slow_one_can_be_aborted(client: TestClient) -> None:
    job = client.post("/api/v1/bulk", json={"action": "retry", "q": "state:failed", "rate": 0.05}).json()
    address = f"/api/v1/bulk/{job['id']}"
    wait_for(lambda: client.get(address).json()["left"] == 1, what="the first task")
    assert client.post(f"{address}/abort", json={}).json()["state"] in {"stopping", "aborted"}
    wait_for(lambda: client.get(address).json()["state"] == "aborted", what="the end of the job")
    assert client.post(f"{address}/abort", json={}).status_code == 409


def test_a_second_retry_leaves_out_what_was_retried_unless_it_is_asked_for(client: TestClient) -> None:
    asked = {"action": "retry", "q": f"id:{PROBABLE}"}
    client.post(f"/api/v1/tasks/{PROBABLE}/retry", json={"confirm": True})
    preview = client.post("/api/v1/bulk/preview", json=asked).json()
    assert preview["skipped"] == {"already retried, state unknown": 1}
    assert (preview["sendable"], preview["retried"], preview["include_retried"]) == (0, 1, False)
    both = client.post("/api/v1/bulk/preview", json={**asked, "include_retried": True}).json()
    assert (both["sendable"], both["skipped"], both["include_retried"]) == (1, {}, True)
    refused = client.post("/api/v1/bulk/preview", json={**asked, "action": "revoke", "include_retried": True})
    assert refused.status_code == 409
    assert "include_retried" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"action": "purge", "q": ""},
        {"action": "retry"},
        {"action": "retry", "q": "colour:red"},
        {"action": "retry", "q": "name:nothing"},
        {"action": "retry", "q": "state:failed", "rate": 0},
        {"action": "retry", "q": "state:failed", "rate": "5"},
        {"action": "retry", "q": "state:failed", "preview": 77},
    ],
)
def test_what_cannot_be_understood_starts_nothing(client: TestClient, body: dict[str, object]) -> None:
    response = client.post("/api/v1/bulk", json=body)
    assert response.status_code == (404 if "preview" in body or body.get("q") == "name:nothing" else 400)
    assert client.get("/api/v1/jobs").json() == {"items": []}
