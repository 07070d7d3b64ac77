"""One worker, with Flower and our dashboard beside each other on its broker."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from tests.apps.basic import BROKER_VARIABLE, CONFIG_VARIABLE
from tests.e2e.product import serving
from tests.servers import free_port
from tests.workers import ROOT, Worker, running_worker, wait_for

SIDES = ("flower", "ours")
APP = "tests.apps.peers"


@dataclass(frozen=True)
class Answer:
    """What one side answered."""

    status: int
    kind: str
    body: bytes
    tag: str | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass
class Side:
    """One of the two dashboards."""

    name: str
    address: str  # ends with /

    def call(
        self,
        method: str,
        path: str,
        form: Mapping[str, str] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
        elif method == "POST":
            data = urlencode(form or {}).encode()
        kind = "application/json" if body is not None else "application/x-www-form-urlencoded"
        sent = {**({"Content-Type": kind} if data is not None else {}), **(headers or {})}
        request = Request(f"{self.address}{path.lstrip('/')}", data=data, method=method, headers=sent)
        try:
            with urlopen(request, timeout=30) as response:
                return _answer(response)
        except HTTPError as error:
            with error:
                return _answer(error)

    def get(self, path: str) -> Any:
        return self.call("GET", path).json


def _answer(response: Any) -> Answer:
    return Answer(response.status, response.headers.get("Content-Type", ""), response.read(), response.headers["ETag"])


@dataclass
class Peers:
    """Both sides and their worker; ``ids`` of tasks that were sent to it."""

    worker: Worker
    flower: Side
    ours: Side
    ids: dict[str, str]


@contextmanager
def running_peers(broker_url: str, redis_url: str, directory: Path) -> Iterator[Peers]:
    """Both have seen the same tasks."""
    config = {"result_backend": redis_url, "worker_pool_restarts": True, "result_expires": 600}
    with (
        running_worker(broker_url, app=APP, config=config, concurrency=4) as worker,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(BROKER_VARIABLE, broker_url)
        patch.setenv(CONFIG_VARIABLE, json.dumps({**config, "task_default_queue": worker.queue}))
        with running_flower(directory) as flower, serving(broker_url, directory, "-A", APP) as product:
            ours = Side("ours", product.address)
            wait_for(lambda: worker.hostname in flower.get("api/workers?refresh=1"), what="Flower's view of the worker")
            wait_for(lambda: worker.hostname in ours.get("api/workers"), what="our view of the worker")
            peers = Peers(worker, flower, ours, _send(worker))
            for side in (flower, ours):
                wait_for(lambda seen=side: _have_ended(seen, peers.ids), what=f"the tasks of {side.name}")
            yield peers
            with worker.app.connection_for_write() as connection:
                for queue in ("extra", "&amp", "nobody"):
                    for name in SIDES:
                        connection.default_channel.queue_delete(f"{name}-{queue}")


@contextmanager
def running_flower(directory: Path, *options: str) -> Iterator[Side]:
    """Flower of APP, as the environment configures it."""
    port = free_port()
    command = [sys.executable, "-m", "celery", "-A", APP, "flower", f"--port={port}", "--address=127.0.0.1", *options]
    log = directory / "flower.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "FLOWER_UNAUTHENTICATED_API": "true"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    side = Side("flower", f"http://127.0.0.1:{port}/")

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(URLError):
            return side.call("GET", "healthcheck").status == 200
        return False

    try:
        wait_for(answers, what="Flower")
        yield side
    finally:
        process.kill()
        process.wait(15)


def _send(worker: Worker) -> dict[str, str]:
    """One task for each end, the oldest first."""
    return {
        "added": worker.send("add", 3, 4),
        "failed": worker.send("fail", "no such order"),
        "echoed": worker.send("echo", "card refused", kwargs={"order": 17}),
        "rejected": worker.send("reject"),
        "parent": worker.send("start_group"),
        "later": worker.send("add", 1, 2, countdown=3600),
    }


EXPECTED = {
    "added": "SUCCESS",
    "failed": "FAILURE",
    "echoed": "SUCCESS",
    "rejected": "FAILURE",
    "parent": "SUCCESS",
    "later": "RECEIVED",
}


def _have_ended(side: Side, ids: Mapping[str, str]) -> bool:
    tasks = side.get("api/tasks?limit=100")
    return all(ids[name] in tasks and tasks[ids[name]]["state"] == state for name, state in EXPECTED.items())
