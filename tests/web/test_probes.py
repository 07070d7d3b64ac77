"""What machines ask: probes of the dashboard, and whether a worker is alive."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from celery_monitor.records.receiver import Delivery, ReceiverHealth
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store
from celery_monitor.store.receivers import save_health
from celery_monitor.store.writer import Writer
from tests.factories import make_event
from tests.servers import free_port
from tests.web.shop import BASE, fill, serving, user

WORKER = "worker1@shop"
USERS = (user("vera", "viewer", "v"),)
NOWHERE = Settings(broker=(Broker("shop", f"redis://127.0.0.1:{free_port()}/0"),))


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Starlette]:
    with serving(NOWHERE, sqlite_url) as app:
        yield app


@pytest.fixture
def client(app: Starlette) -> TestClient:
    return TestClient(app, base_url=BASE)


def report(store: Store, **fields: object) -> None:
    """What the receiver says of itself, now."""
    now = time.time()
    known = {"connected": True, "last_event_at": now, "lag_seconds": 0.2, "updated_at": now}
    save_health(store, ReceiverHealth(cluster="shop", **{**known, **fields}))  # type: ignore[arg-type]


def test_probes_need_no_login_and_any_host_name(sqlite_url: str) -> None:
    with serving(replace(NOWHERE, basic_auth=USERS), sqlite_url) as app:
        client = TestClient(app, base_url="http://monitor.pods.svc:5555")
        assert client.get("/livez").text == "OK"
        assert client.get("/readyz").json() == {
            "ready": True,
            "checks": {
                "database": {"ok": True, "message": "can be read"},
                "migrations": {"ok": True, "message": "of this version"},
                "receiver": {"ok": True, "message": "not behind"},
                "spool": {"ok": True, "message": "0 of 4294967296 bytes"},
            },
        }


def test_not_ready_while_the_record_is_behind(client: TestClient, app: Starlette) -> None:
    report(app.state.store, lag_seconds=120.0)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["ready"] is False
    assert answer.json()["checks"]["receiver"] == {"ok": False, "message": "shop: 120 s behind, more than 60 s"}
    report(app.state.store, lag_seconds=12.0)
    assert client.get("/readyz").status_code == 200
    assert client.get("/livez").status_code == 200


def test_not_ready_while_the_spool_is_full(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "1").write_bytes(b"12345678")
    settings = replace(NOWHERE, spool_dir=str(tmp_path), spool_bytes=8)
    with serving(settings, sqlite_url) as app:
        answer = TestClient(app, base_url=BASE).get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["spool"]["message"]) == (503, "8 of 8 bytes")


def test_worker_is_alive_while_its_heartbeats_come(client: TestClient, app: Starlette) -> None:
    path = f"/api/v1/workers/{WORKER}/alive"
    assert client.get(path).status_code == 404
    now = time.time()
    heartbeat = make_event("worker-heartbeat", timestamp=now - 30, freq=2.0)
    Writer(app.state.store, "shop", Settings()).write([Delivery(events=[heartbeat], arrived=now - 30)])
    report(app.state.store)
    assert (client.get(path).status_code, client.get(path).json()["alive"]) == (200, True)
    silent = client.get(f"{path}?within=10")
    assert (silent.status_code, silent.json()["error"]["code"]) == (503, "not_alive")


def test_worker_that_said_goodbye_is_not_alive(client: TestClient, app: Starlette) -> None:
    fill(app.state.store)
    report(app.state.store)
    now = time.time()
    Writer(app.state.store, "shop", Settings()).write(
        [Delivery(events=[make_event("worker-offline", timestamp=now)], arrived=now)]
    )
    assert client.get(f"/api/v1/workers/{WORKER}/alive").status_code == 503


@pytest.mark.parametrize("fields", [{"lag_seconds": 30.0}, {"connected": False}, {"updated_at": time.time() - 60}])
def test_no_worker_is_accused_while_the_record_is_behind(
    client: TestClient, app: Starlette, fields: dict[str, object]
) -> None:
    old = time.time() - 500
    heartbeat = make_event("worker-heartbeat", timestamp=old, freq=2.0)
    Writer(app.state.store, "shop", Settings()).write([Delivery(events=[heartbeat], arrived=old)])
    report(app.state.store, **fields)
    answer = client.get(f"/api/v1/workers/{WORKER}/alive")
    assert (answer.status_code, answer.json()["alive"]) == (200, None)
