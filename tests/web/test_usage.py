"""What counts as a use of the dashboard, in the record where receivers read it."""

import time
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.receivers import last_use
from celery_monitor.web import usage
from celery_monitor.web.app import create_app
from tests.web.test_live import run_site
from tests.workers import wait_for


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    store = open_store(sqlite_url)
    yield store
    store.close()


@pytest.fixture
def client(sqlite_url: str) -> Iterator[TestClient]:
    app = create_app(Settings(database=sqlite_url, broker=()))
    with TestClient(app, base_url="http://127.0.0.1:5555", client=("127.0.0.1", 50_000)) as client:
        yield client
    app.state.store.close()


@pytest.mark.parametrize("path", ["/tasks", "/api/v1/queues"])
def test_a_request_is_a_use(client: TestClient, store: Store, path: str) -> None:
    assert last_use(store) is None
    assert client.get(path).status_code == 200
    wait_for(lambda: last_use(store))


def test_probes_and_static_files_are_none(client: TestClient, store: Store) -> None:
    for path in ("/healthcheck", "/api/v1/health", "/static/1/app.css", "/sign-in"):
        client.get(path)
    before = time.time()
    client.get("/tasks")  # not recorded if one of the others were, as a use is recorded every few seconds
    assert float(wait_for(lambda: last_use(store))) >= round(before, 3)


def test_a_page_that_stays_open_is_one(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "NOTE_SECONDS", 0.05)
    with run_site(sqlite_url) as site, site.look("/tasks"):
        first = wait_for(lambda: last_use(site.store))
        second = wait_for(lambda: (found := last_use(site.store)) != first and found)
        wait_for(lambda: last_use(site.store) not in {first, second})
