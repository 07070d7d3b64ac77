"""Requests that are never finished, on a real socket."""

import socket
import threading
import time
from collections.abc import Iterator

import httpx2
import pytest
import uvicorn

from celery_monitor.settings import Settings
from celery_monitor.web import deadlines
from celery_monitor.web.app import create_app
from celery_monitor.web.deadlines import DeadlineProtocol
from tests.servers import free_port
from tests.workers import wait_for

HOST = b"Host: 127.0.0.1\r\n"
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
HEAD = b"POST /sign-in HTTP/1.1\r\n" + HOST + FORM + b"Content-Length: 1000\r\n\r\n"


@pytest.fixture
def port(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A dashboard that waits for headers for 0.6 s, for a body for 1.2 s."""
    monkeypatch.setattr(deadlines, "HEADER_SECONDS", 0.6)
    monkeypatch.setattr(deadlines, "BODY_SECONDS", 1.2)
    port = free_port()
    app = create_app(Settings(database=sqlite_url, port=port))
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning", http=DeadlineProtocol))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, what="the server")
    yield port
    server.should_exit = True
    thread.join()
    app.state.store.close()


def send(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(data)
    return connection


def drip(connection: socket.socket, byte: bytes) -> bytes:
    """Goes on byte by byte until the server ends it; gives what it said."""
    with connection:
        return _drip(connection, byte)


def _drip(connection: socket.socket, byte: bytes) -> bytes:
    connection.settimeout(0.1)
    said = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            connection.sendall(byte)
            part = connection.recv(4096)
        except TimeoutError:
            continue
        except ConnectionError:
            return said
        if not part:
            return said
        said += part
    raise AssertionError("the connection is still open")


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\n" + HOST + b"X-Slow: ",
        HEAD,
        HEAD + b"name=a",
        b"POST /sign-in HTTP/1.1\r\n" + HOST + FORM + b"Transfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_request_that_drips_is_ended(port: int, begun: bytes, caplog: pytest.LogCaptureFixture) -> None:
    # A chunk's head may be any number of zeros long.
    said = drip(send(port, begun), b"0")
    assert said == b"" or said.startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 400 "))
    assert "Traceback" not in caplog.text


def test_who_sends_nothing_more_is_told_408(port: int) -> None:
    for begun in (b"GET / HT", HEAD + b"name=a"):
        with send(port, begun) as connection:
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_body_that_nobody_reads_ends_too(port: int) -> None:
    """The route is answered before its body is read."""
    connection = send(port, b"GET /healthcheck HTTP/1.1\r\n" + HOST + b"Content-Length: 100000\r\n\r\n")
    assert b" 200 " in drip(connection, b"x")


def test_many_half_sent_requests_hold_up_nobody(port: int) -> None:
    slow = [send(port, b"GET / HTTP/1.1\r\nX: ") for _ in range(200)] + [send(port, HEAD) for _ in range(200)]
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        assert client.get("/healthcheck").status_code == 200
        for connection in slow:
            assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
            connection.close()
        assert client.get("/healthcheck").status_code == 200


def test_finished_requests_of_a_kept_connection_have_all_the_time(port: int) -> None:
    """The time counts for each request anew, and not while the server works or nobody asks."""
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for _ in range(4):
            assert client.get("/healthcheck").status_code == 200
            time.sleep(0.5)
        pool = client._transport._pool  # type: ignore[attr-defined]
        assert len(pool.connections) == 1
