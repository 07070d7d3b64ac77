"""What one guest does to the whole product, while another wants to work with it."""

import asyncio
import base64
import html
import json
import os
import re
import socket
import stat
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

from celery_monitor.store.actions import read_actions
from celery_monitor.store.engine import open_store
from tests.faults.dashboard import Dashboard, serving
from tests.workers import happens

PASSWORDS = {"ada": "s3cret one", "bob": "s3cret two", "eve": "s3cret three"}
SOCKETS = 200
MOST_OF_USER = 50
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
HEAD = b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\n" + FORM + b"Content-Length: 100\r\n\r\n"


@pytest.fixture
def dashboard(redis_url: str, tmp_path: Path) -> Iterator[Dashboard]:
    users = [part for name, word in PASSWORDS.items() for part in ("--basic-auth", f"{name}:viewer:{word}")]
    before = os.umask(0)
    try:
        with serving(redis_url, tmp_path, *users) as running:
            yield running
    finally:
        os.umask(before)


def authorization(name: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


def get(dashboard: Dashboard, path: str, name: str, password: str | None = None) -> tuple[int, str]:
    headers = authorization(name, PASSWORDS[name] if password is None else password)
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{dashboard.url}{path}", headers=headers), timeout=60) as a:
            return a.status, a.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def token_of(dashboard: Dashboard, name: str) -> str:
    _, page = get(dashboard, "/tasks", name)
    return html.unescape(re.findall(r'data-token="([^"]+)"', page)[0])


async def look(dashboard: Dashboard, name: str, token: str, view: str) -> ClientConnection:
    """A page that has sent its first message, if it was let in."""
    browser = await connect(
        f"{dashboard.url.replace('http', 'ws')}/live",
        origin=Origin(dashboard.url),
        additional_headers=authorization(name, PASSWORDS[name]),
        max_size=None,
        open_timeout=60,
    )
    with suppress(ConnectionClosed):
        await browser.send(json.dumps({"token": token, "view": view}))
    return browser


def check_files(dashboard: Dashboard) -> None:
    """Of a process whose umask is 0."""
    found = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in Path(dashboard.database).parent.iterdir()
        if path.name.startswith("record.db")
    }
    assert set(found) >= {"record.db", "record.db-wal", "record.db-shm"}
    assert set(found.values()) == {0o600}


def test_hundred_wrong_passwords_hold_up_nobody_and_are_written(dashboard: Dashboard) -> None:
    check_files(dashboard)
    assert get(dashboard, "/tasks", "bob")[0] == 200
    with ThreadPoolExecutor(101) as guests:
        wrong = [guests.submit(get, dashboard, "/tasks", "ada", f"wrong {number}") for number in range(100)]
        verified = guests.submit(get, dashboard, "/tasks", "bob")
        assert verified.result()[0] == 200
        statuses = Counter(each.result()[0] for each in wrong)
    assert set(statuses) == {401, 429}
    assert statuses[401] <= 16  # looked at by argon2: eight at a time, until the delay begins
    assert re.search(r"1 failed sign-in of 'ada' from 127\.0\.0\.1 \(password\)", dashboard.log)
    store = open_store(f"sqlite:///{dashboard.database}")
    rows = read_actions(store, action="session.sign_in", outcome="denied").items
    store.close()
    assert [(row.actor, row.count) for row in rows] == [("ada", 1)]  # the other 99 are written after a minute


def test_many_live_pages_of_one_user_do_not_starve_another(dashboard: Dashboard) -> None:
    tokens = {name: token_of(dashboard, name) for name in ("bob", "eve")}

    async def attack(number: int) -> tuple[int, str]:
        browser = await look(dashboard, "eve", tokens["eve"], f"/tasks?q=name%3Aa{number}")
        try:
            while True:
                await browser.recv()
        except ConnectionClosed:
            return browser.close_code or 0, browser.close_reason or ""
        finally:
            await browser.close()

    async def crowd() -> tuple[int, list[tuple[int, str]]]:
        attackers = [asyncio.create_task(attack(number)) for number in range(SOCKETS)]
        await happens(lambda: sum(each.done() for each in attackers) >= SOCKETS - MOST_OF_USER)
        ended = [each.result() for each in attackers if each.done()]
        modest = await look(dashboard, "bob", tokens["bob"], "/tasks")
        async with asyncio.timeout(60):
            messages = [json.loads(await modest.recv()) for _ in range(4)]
        await modest.close()
        for each in attackers:
            each.cancel()
        await asyncio.gather(*attackers, return_exceptions=True)
        return len(messages[0]["regions"]), ended

    regions, ended = asyncio.run(crowd())
    assert regions >= 3
    assert Counter(code for code, _ in ended) == {1013: SOCKETS - MOST_OF_USER}
    assert all("50 live pages are open for this user" in reason for _, reason in ended)
    assert all(token not in dashboard.log for token in tokens.values())
    assert '"WebSocket /live" [accepted]' in dashboard.log
    assert dashboard.unexpected() == []


@pytest.mark.slow
def test_half_sent_requests_end_while_others_are_served(dashboard: Dashboard) -> None:
    address = ("127.0.0.1", int(dashboard.url.rpartition(":")[2]))

    def begin(data: bytes) -> socket.socket:
        connection = socket.create_connection(address, timeout=60)
        connection.sendall(data)
        return connection

    began = time.monotonic()
    headers = [begin(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ") for _ in range(200)]
    bodies = [begin(HEAD) for _ in range(100)]
    assert get(dashboard, "/tasks", "bob")[0] == 200
    for connection in (*headers, *bodies):
        with connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began > 25  # a body has its thirty seconds
    assert get(dashboard, "/tasks", "bob")[0] == 200
    assert dashboard.unexpected() == []
