"""Processes that die with -9, and browsers that do not listen: what remains goes on."""

import html
import json
import os
import re
import socket
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import redis
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.apps.ledger import LEDGER_VARIABLE
from tests.faults.dashboard import Dashboard, serving
from tests.workers import running_worker, wait_for

TASKS = int(os.environ.get("TEST_FAULT_TASKS", "1500"))
FAILING_EACH = 10
VANISHED = 500


def receives_again(dashboard: Dashboard, killed: int) -> None:
    wait_for(lambda: dashboard.pid("receiver") != killed, what="another receiver")
    wait_for(lambda: dashboard.log.count("receiving events of shop") > 1, what="its connection")
    assert "ended with SIGKILL" in dashboard.log


def test_a_killed_receiver_starts_again_and_rabbitmq_has_kept_everything(
    amqp_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEDGER_VARIABLE, redis_url)
    book: Any = redis.Redis.from_url(redis_url)
    with ExitStack() as stack:
        stack.enter_context(closing(book))
        dashboard = stack.enter_context(serving(amqp_url, tmp_path))
        worker = stack.enter_context(running_worker(amqp_url, app="tests.apps.ledger", concurrency=4))
        wait_for(dashboard.connected, what="the connection")
        for number in range(TASKS):
            worker.send("entry", number % FAILING_EACH == 0)
            if number in {TASKS // 4, TASKS // 2}:
                receives_again(dashboard, dashboard.kill("receiver"))
        wait_for(lambda: book.hlen("ledger:failed") + book.hlen("ledger:succeeded") == TASKS, what="the ledger")
        expected = {"failed": book.hlen("ledger:failed"), "succeeded": book.hlen("ledger:succeeded"), "unfinished": 0}
        assert expected["failed"] == TASKS // FAILING_EACH
        wait_for(lambda: dashboard.counts(*expected) == expected, what=f"{expected}")
        health = dashboard.health()
        assert (health["dropped_total"], health["malformed_total"], health["gaps"]) == (0, 0, [])
        assert dashboard.unexpected() == []


def test_a_killed_receiver_leaves_a_gap_on_redis_and_a_killed_web_process_leaves_nothing(
    redis_url: str, tmp_path: Path
) -> None:
    with serving(redis_url, tmp_path) as dashboard, running_worker(redis_url) as worker:
        dashboard.wait_for_state(worker.send("add", 1, 2), "SUCCESS")
        receives_again(dashboard, receiver := dashboard.kill("receiver"))
        dashboard.says("may be missing: the receiver was not running")
        (gap,) = dashboard.health()["gaps"]
        assert 0 < gap["ended"] - gap["began"] < 15
        receiver, web = dashboard.pid("receiver"), dashboard.kill("web")
        worker.send("add", 3, 4)
        wait_for(lambda: dashboard.pid("web") != web, what="another web process")
        dashboard.wait_for_state(worker.send("add", 5, 6), "SUCCESS")
        expected = {"succeeded": 3, "unfinished": 0}
        wait_for(lambda: dashboard.counts(*expected) == expected, what="all three")
        assert dashboard.pid("receiver") == receiver
        assert dashboard.health()["gaps"] == [gap]
        assert dashboard.unexpected() == []


def test_a_worker_killed_with_its_task_leaves_it_lost_with_the_evidence(broker_url: str, tmp_path: Path) -> None:
    with serving(broker_url, tmp_path) as dashboard, running_worker(broker_url, hostname="doomed@shop") as worker:
        task_id = worker.send("sleep", 300)
        dashboard.wait_for_state(task_id, "STARTED")
        worker.kill()
        lost = dashboard.wait_for_state(task_id, "LOST")
        assert "doomed@shop" in lost["exception"]
        assert "is gone" in lost["exception"]
        dashboard.says("doomed@shop", "offline", path="/workers")
        dashboard.says("No worker is up")
        assert "1 tasks are lost: doomed@shop" in dashboard.log
        with running_worker(broker_url) as another:
            dashboard.wait_for_state(another.send("add", 2, 3), "SUCCESS")
            dashboard.no_longer_says("No worker is up")


def test_browsers_that_do_not_listen_or_vanish_hold_up_nobody(redis_url: str, tmp_path: Path) -> None:
    with serving(redis_url, tmp_path) as dashboard, running_worker(redis_url) as worker, ExitStack() as stack:
        token = re.findall(r'data-token="([^"]+)"', dashboard.get("/tasks"))[0]
        here, token = f"{dashboard.url.replace('http', 'ws')}/live", html.unescape(token)
        origin = Origin(dashboard.url)
        slow = connect(here, legacy=True, max_queue=1, compression=None, origin=origin)
        stack.callback(slow.close_socket)
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        slow.send(json.dumps({"token": token, "view": "/tasks"}))
        for _ in range(VANISHED):
            gone = connect(here, legacy=True, origin=origin)
            gone.send(json.dumps({"token": token, "view": "/tasks"}))
            gone.socket.shutdown(socket.SHUT_RDWR)
            gone.close_socket()
        for number in range(300):
            worker.send("echo", "x" * 900, number)
        listener = stack.enter_context(connect(here, legacy=True, origin=origin, max_size=None))
        listener.send(json.dumps({"token": token, "view": "/tasks?q=name:basic.add"}))
        task_id = worker.send("add", 40, 2)
        wait_for(lambda: task_id in str(listener.recv(timeout=60)), what="the task on the live socket")
        dashboard.wait_for_state(task_id, "SUCCESS")
        wait_for(lambda: dashboard.counts("succeeded") == {"succeeded": 301}, what="all tasks")
        assert dashboard.unexpected() == []
