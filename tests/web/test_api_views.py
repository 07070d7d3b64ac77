"""Saved views and the search of the palette, as scripts and the page ask for them."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from celery_monitor.control.views import LONGEST_NAME
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.receivers import read_clusters
from celery_monitor.store.writer import Writer
from tests.factories import make_event
from tests.web.shop import BASE, ODD, PROBABLE, fill, serving

QUERY = "q=state%3Afailed&sort=-runtime"


@pytest.fixture
def client(sqlite_url: str) -> Iterator[TestClient]:
    settings = Settings(broker=(Broker("shop", "redis://127.0.0.1:1/0"),))
    with serving(settings, sqlite_url) as app:
        fill(app.state.store)
        yield TestClient(app, base_url=BASE)


def save(client: TestClient, name: str = "failed", status: int = 200, **more: str) -> dict[str, object]:
    response = client.post("/api/v1/views/save", json={"name": name, "path": "/tasks", "query": QUERY, **more})
    assert response.status_code == status, response.text
    return dict(response.json())


def test_a_saved_view_is_listed_renamed_and_deleted_and_each_is_recorded(client: TestClient) -> None:
    view = save(client, "  failed \n first ")
    assert (view["name"], view["path"], view["query"]) == ("failed first", "/tasks", QUERY)
    assert client.get("/api/v1/views").json() == {"items": [view]}
    renamed = client.post(f"/api/v1/views/{view['id']}/rename", json={"name": "broken"}).json()
    assert renamed == {**view, "name": "broken"}
    assert client.post(f"/api/v1/views/{view['id']}/delete", json={"reason": "old"}).json()["id"] == view["id"]
    assert client.get("/api/v1/views").json() == {"items": []}
    trail = client.get("/api/v1/actions").json()["items"]
    assert [(each["action"], each["cluster"], each["outcome"]) for each in trail] == [
        ("view.delete", None, "done"),
        ("view.rename", None, "done"),
        ("view.save", None, "done"),
    ]
    assert trail[0]["reason"] == "old"
    assert trail[0]["parameters"] == {"view": view["id"], "name": "broken", "address": f"/tasks?{QUERY}"}
    assert read_clusters(client.app.state.store) == ["shop"]  # type: ignore[attr-defined]


def test_actions_without_a_cluster_are_shown(client: TestClient) -> None:
    save(client)
    assert "view.save" in client.get("/actions").text


def test_a_name_that_is_taken_is_a_conflict(client: TestClient) -> None:
    save(client)
    assert "already" in str(save(client, status=409)["error"])


def test_where_somebody_stands_is_no_part_of_a_view(client: TestClient) -> None:
    assert save(client, query="?q=a+b&cursor=WyJ4Il0&panel=retry&col=name&col=id")["query"] == "q=a%20b&col=name&col=id"


@pytest.mark.parametrize(
    "path",
    [
        "tasks",
        "",
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "/tasks?x=1",
        "/a b",
        "/\u202etasks",
        "/" * 2,
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(client: TestClient, path: str) -> None:
    assert save(client, path=path, status=400)


@pytest.mark.parametrize("name", ["", " \t ", "n" * (LONGEST_NAME + 1), "a\0b"])
def test_a_name_that_nobody_can_read_is_refused(client: TestClient, name: str) -> None:
    save(client, name, status=400)


def search(client: TestClient, text: str, **more: str) -> list[dict[str, object]]:
    response = client.get("/api/v1/search", params={"q": text, **more})
    assert response.status_code == 200, response.text
    return list(response.json()["items"])


def test_what_is_found_leads_to_its_page(client: TestClient) -> None:
    save(client, "pay: failed")
    found = [
        *search(client, "pay"),
        *search(client, "worker1"),
        *search(client, PROBABLE[:9]),
        *search(client, ODD[:6]),
    ]
    paths = {(each["kind"], each["path"]) for each in found}
    assert {kind for kind, _ in paths} == {"task", "worker", "queue", "name", "view"}
    for kind, path in paths:
        assert client.get(str(path)).status_code == 200, (kind, path)
    assert ("view", f"/tasks?{QUERY}") in paths


def test_term_finds_what_was_found(client: TestClient) -> None:
    found = [*search(client, "pay"), *search(client, "worker1"), *search(client, PROBABLE[:9])]
    assert {each["kind"] for each in found if each["term"] is None} == {"task"}
    for term in {str(each["term"]) for each in found if each["term"]}:
        counted = client.get("/api/v1/tasks", params={"q": term}).json()["count"]["value"]
        assert counted == 5, term


def test_a_link_narrows_to_a_cluster_where_there_are_several(client: TestClient) -> None:
    (one,) = search(client, "worker1")
    assert (one["detail"], one["path"]) == ("", "/workers/worker1%40shop")
    Writer(client.app.state.store, "eu", Settings()).write([Delivery([make_event("worker-heartbeat")], 7.5)])  # type: ignore[attr-defined]
    found = {(each["detail"], each["path"]) for each in search(client, "worker1")}
    assert found == {(name, f"/workers/worker1%40shop?cluster={name}") for name in ("shop", "eu")}
    (narrowed,) = search(client, "worker1", cluster="eu")
    assert narrowed["path"] == "/workers/worker1%40shop?cluster=eu"


def test_labels_show_hidden_characters_and_are_cut(client: TestClient) -> None:
    save(client, "\u202egpj.exe")
    (found,) = search(client, "gpj")
    assert found["label"] == "⟦U+202E⟧gpj.exe"


@pytest.mark.parametrize("params", [{"q": "x" * 201}, {"q": "x", "limit": "21"}, {"q": "x", "limit": "0"}])
def test_a_search_without_bounds_is_refused(client: TestClient, params: dict[str, str]) -> None:
    assert client.get("/api/v1/search", params=params).status_code == 400
