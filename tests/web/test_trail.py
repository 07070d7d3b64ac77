"""What the trail holds beside commands: exports and reads of secrets; its own export and its retention."""

import csv
import io
import json
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from celery_monitor.records.page import Action
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store import schema
from celery_monitor.store.actions import MOST_DELETED, MOST_ROWS, delete_old_actions, read_actions, record_action
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.retention.expiry import DAY_SECONDS, Retention
from tests.web.shop import BASE, fill, serving, user

USERS = (user("vera", "viewer", "v"), user("root", "admin", "r"))
VERA, ROOT = ("vera", "v"), ("root", "r")
EXPORT = "/api/v1/export/actions"


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = open_store(database_url)
    fill(opened)
    yield opened
    opened.close()


@pytest.fixture
def client(store: Store, database_url: str) -> Iterator[TestClient]:
    settings = Settings(broker=(Broker("shop", "redis://127.0.0.1:1/0"),), basic_auth=USERS)
    with serving(settings, database_url) as app:
        yield TestClient(app, base_url=BASE)


def add(store: Store, number: int, at: float, **fields: object) -> None:
    given = {"actor": f"user{number}", "action": "task.retry", "cluster": "shop", **fields}
    record_action(store, Action(at=at, **given))  # type: ignore[arg-type]


def test_an_export_of_tasks_is_recorded_with_its_filter_and_number(store: Store, client: TestClient) -> None:
    client.get("/api/v1/export/tasks", params={"q": "state:failed", "format": "ndjson"}, auth=VERA)
    (noted,) = read_actions(store).items
    assert (noted.actor, noted.action, noted.query, noted.count) == ("vera", "export.tasks", "state:failed", 2)
    assert (noted.cluster, noted.outcome, noted.parameters) == (None, "done", {"format": "ndjson"})


def test_a_head_request_for_an_export_is_recorded_too(store: Store, client: TestClient) -> None:
    assert client.head("/api/v1/export/tasks", auth=VERA).headers["X-Total-Count"] == "5"
    assert [each.action for each in read_actions(store, action="export.*").items] == ["export.tasks"]


def test_only_admins_export_the_trail_and_a_denial_is_in_it(store: Store, client: TestClient) -> None:
    assert client.get(EXPORT, auth=VERA).status_code == 403
    (noted,) = read_actions(store).items
    assert (noted.actor, noted.action, noted.outcome) == ("vera", "export.actions", "denied")
    assert "vera is viewer" in (noted.message or "")


def test_the_trail_is_exported_with_the_filters_of_its_page(store: Store, client: TestClient) -> None:
    for number in range(3):
        add(store, number, 1000.0 + number, reason="=1+1", parameters={"rate": 7}, outcome="failed")
    answer = client.get(EXPORT, params={"action": "task.*", "format": "csv"}, auth=ROOT)
    assert answer.headers["content-disposition"] == 'attachment; filename="actions.csv"'
    assert answer.headers["cache-control"] == "no-store"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["actor"] for row in rows] == ["user2", "user1", "user0"]
    assert (rows[0]["reason"], rows[0]["parameters"]) == ("'=1+1", '{"rate":7}')
    assert rows[0]["at"].startswith("1970-01-01T00:16:42")
    lines = client.get(EXPORT, params={"actor": "user1", "format": "ndjson"}, auth=ROOT).text.splitlines()
    assert [(json.loads(line)["actor"], json.loads(line)["at"]) for line in lines] == [("user1", 1001.0)]
    noted = read_actions(store, action="export.actions").items
    assert [(each.actor, each.query) for each in noted] == [("root", "actor=user1"), ("root", "action=task.%2A")]


def test_the_export_has_all_pages_and_itself(store: Store, client: TestClient) -> None:
    now = time.time()
    with store.begin() as connection:
        values = {"actor": "mira", "action": "task.run", "cluster_id": 0, "parameters": "{}", "outcome": "done"}
        connection.execute(schema.action.insert(), [{"at": now, **values} for _ in range(MOST_ROWS + 5)])
    lines = client.get(EXPORT, params={"format": "ndjson"}, auth=ROOT).text.splitlines()
    assert len(lines) == MOST_ROWS + 6
    assert json.loads(lines[0])["action"] == "export.actions"


def test_admins_are_offered_the_export_on_the_page(client: TestClient) -> None:
    assert EXPORT in client.get("/actions", auth=ROOT).text
    assert EXPORT not in client.get("/actions", auth=VERA).text


def test_retention_deletes_old_actions_in_chunks_and_never_the_newest(store: Store) -> None:
    with store.begin() as connection:
        values = {"actor": "mira", "action": "task.run", "cluster_id": 0, "parameters": "{}", "outcome": "done"}
        connection.execute(schema.action.insert(), [{"at": float(each), **values} for each in range(MOST_DELETED + 10)])
        assert delete_old_actions(connection, 1e9) is True
        assert len(connection.execute(select(schema.action.c.id)).all()) == 10
        assert delete_old_actions(connection, 1e9) is False
        (left,) = connection.execute(select(schema.action.c.at)).scalars()
        assert left == MOST_DELETED + 9
        assert delete_old_actions(connection, 1e9) is False


def test_actions_are_kept_for_the_days_of_the_setting(store: Store) -> None:
    now = time.time()
    for number, days in enumerate((12, 8, 1)):
        add(store, number, now - days * DAY_SECONDS)
    Retention(store, "shop", Settings(keep_action_days=10.0)).delete_expired(now)
    assert [each.actor for each in read_actions(store).items] == ["user2", "user1"]
