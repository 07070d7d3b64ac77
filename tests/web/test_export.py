"""Exports: everything that matches, nothing that a spreadsheet would run, in as much memory as one chunk needs."""

import asyncio
import csv
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from celery_monitor.core.filters.parser import parse
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store
from celery_monitor.store.tasks.page import iterate_tasks
from celery_monitor.store.writer import Writer
from celery_monitor.web.api.tasks import COLUMNS, export
from tests.factories import make_event, make_id
from tests.web.shop import BASE, ODD, fill, serving

PATH = "/api/v1/export/tasks"
MANY = 51_300
KILOBYTE = "x" * 1000
MEGABYTE = 1_000_000
FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1")


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Starlette]:
    settings = Settings(broker=(Broker("shop", "redis://127.0.0.1:1/0"),))
    with serving(settings, sqlite_url) as app:
        yield app


@pytest.fixture
def client(app: Starlette) -> TestClient:
    fill(app.state.store)
    return TestClient(app, base_url=BASE)


def write(store: Store, numbers: range, name: str = "shop.mail", **more: object) -> None:
    now = time.time()
    events = [
        make_event("task-received", timestamp=now + number / 1e3, uuid=make_id(number), name=name, **more)
        for number in numbers
    ]
    Writer(store, "shop", Settings()).write([Delivery(events=events, arrived=now)])


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_ndjson_has_the_tasks_of_the_list_as_the_api_shows_them(client: TestClient) -> None:
    response = client.get(PATH, params={"q": "state:failed", "format": "ndjson"})
    rows = [json.loads(line) for line in response.text.splitlines()]
    listed = client.get("/api/v1/tasks", params={"q": "state:failed"}).json()["items"]
    assert rows == [{name: item[name] for name in COLUMNS} for item in listed]
    assert response.headers["x-total-count"] == "2"
    assert response.headers["x-total-exact"] == "true"
    assert response.headers["content-disposition"] == 'attachment; filename="tasks.ndjson"'


def test_csv_has_one_row_per_task_with_times_that_people_read(client: TestClient) -> None:
    rows = read_csv(client.get(PATH).text)
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["id"] == ODD
    assert len(rows) == 5
    assert {row["received"][-1] for row in rows} == {"Z"}
    assert rows[1]["result"] == ""  # it runs: unknown is empty


def test_one_cluster_alone_is_exported(client: TestClient, app: Starlette) -> None:
    beat = make_event("task-received", timestamp=time.time(), uuid="other", name="eu.task")
    Writer(app.state.store, "eu", Settings()).write([Delivery([beat], time.time())])
    assert [row["id"] for row in read_csv(client.get(PATH, params={"cluster": "eu"}).text)] == ["other"]


def test_a_wrong_filter_is_refused_before_anything_is_sent(client: TestClient) -> None:
    response = client.get(PATH, params={"q": "colour:red"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "filter"


def test_asking_for_the_head_begins_nothing(client: TestClient) -> None:
    response = client.head(PATH)
    assert (response.status_code, response.content, response.headers["x-total-count"]) == (200, b"", "5")


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_is_a_formula(app: Starlette, client: TestClient, text: str) -> None:
    write(app.state.store, range(1, 2), text, args=text, kwargs='{"a": "b\n,c"}')
    (row,) = read_csv(client.get(PATH, params={"q": f"id:{make_id(1)}"}).text)
    assert row["name"].startswith("'")
    assert row["args"] == f"'{text}"
    assert row["kwargs"] == '{"a": "b\n,c"}'


def test_secrets_stay_masked(app: Starlette, client: TestClient) -> None:
    write(app.state.store, range(1, 2), kwargs="{'password': 'hunter2'}")
    for kind in ("csv", "ndjson"):
        text = client.get(PATH, params={"q": f"id:{make_id(1)}", "format": kind}).text
        assert "password" in text
        assert "hunter2" not in text


def test_the_walk_goes_on_behind_what_one_request_may_look_at(app: Starlette, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("celery_monitor.store.tasks.plan.BUDGET", 50)
    monkeypatch.setattr("celery_monitor.store.tasks.page.CHUNK", 7)
    write(app.state.store, range(1, 3), "shop.rare")
    write(app.state.store, range(10, 300), args="(1,)")
    write(app.state.store, range(300, 310), "shop.rare", args="(2,)")
    for text, wanted in (("args:*2*", 10), ("", 302), ("name:shop.rare", 12), ("-args:*1* -args:*2*", 2)):
        chunks = list(iterate_tasks(app.state.store, parse(text, time.time())))
        ids = [task.id for chunk in chunks for task in chunk]
        assert len(set(ids)) == len(ids) == wanted, text
        assert all(len(chunk) <= 7 for chunk in chunks)


@pytest.mark.slow
def test_many_rows_take_the_memory_of_one_chunk(app: Starlette) -> None:
    store: Store = app.state.store
    for start in range(0, MANY, 5000):
        write(store, range(start, min(MANY, start + 5000)), args=KILOBYTE)
    count, chunks = export(store, parse("", time.time()), "csv")
    lines = size = peak = 0
    before = resident_bytes()
    for chunk in chunks:
        lines += chunk.count(b"\n")
        size += len(chunk)
        peak = max(peak, resident_bytes())
    assert (count.value, count.exact) == (MANY, True)
    assert lines == MANY + 1
    assert size > 50 * MEGABYTE
    assert peak - before < 25 * MEGABYTE
    assert asyncio.run(bodies_until_gone(app)) < 5


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def bodies_until_gone(app: Starlette) -> int:
    """How many chunks are still made for a client that leaves after the first."""
    gone = asyncio.Event()
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if gone.is_set():
            return {"type": "http.disconnect"}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if message.get("body"):
            gone.set()
            await asyncio.sleep(0)  # as a socket that is written to

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"format=ndjson",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1:5757")],
        "client": ("127.0.0.1", 50_111),
        "server": ("127.0.0.1", 5757),
    }
    await app(scope, receive, send)
    return sum(1 for message in sent if message.get("body"))
