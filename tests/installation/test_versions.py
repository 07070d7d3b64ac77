"""The product alone in its environment, oldest and newest, watches the oldest and the newest workers on each broker.

Five workers serve all products in turn, one of them beside the oldest product; each product watches both brokers.
"""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from websockets.sync.client import connect
from websockets.typing import Origin

from tests.faults.dashboard import Dashboard
from tests.receiver.sources.conftest import delete_queue
from tests.servers import running_redis
from tests.test_cli import await_end, environ
from tests.workers import wait_for

APPLICATION = Path(__file__).with_name("shop.py")
PAGES = ("/", "/tasks", "/failures", "/queues", "/workers", "/workflows", "/schedule", "/actions")
START_SECONDS = 60
STOP_SECONDS = 60


@dataclass(frozen=True)
class Shop:
    """A worker in an environment of its own, and where to send it tasks."""

    cluster: str
    hostname: str
    version: str
    queue: str
    app: Celery
    captures: bool

    def send(self, name: str, *args: Any) -> str:
        return str(self.app.send_task(f"shop.{name}", args, queue=self.queue).id)


@contextmanager
def running_shop(python: Path, cluster: str, broker_url: str, directory: Path, *, captures: bool) -> Iterator[Shop]:
    """A worker as a stranger starts it: no ``-E``, one queue, a pool of processes."""
    queue = f"shop-{uuid4().hex[:8]}"
    hostname = f"{queue}@{cluster}"
    directory.mkdir()
    shutil.copy(APPLICATION, directory)
    command = [str(python), "-m", "celery", "-A", "shop", "worker", "-n", hostname, "-c", "1", "-l", "INFO"]
    log_file = directory / "worker.log"
    ours = {
        "SHOP_BROKER": broker_url,
        "SHOP_QUEUE": queue,
        "PYTHONPATH": "",
        "SHOP_CAPTURES": "yes" if captures else "no",
    }
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=os.environ | ours, stdout=log, stderr=log, start_new_session=True
        )
    code = "import celery; print(celery.__version__)"
    version = subprocess.check_output([python, "-c", code], text=True, timeout=60).strip()
    with Celery("sender", broker=broker_url, set_as_current=False) as app:
        try:
            wait_for(
                lambda: process.poll() is not None or f"{hostname} ready." in log_file.read_text("utf-8", "replace"),
                START_SECONDS,
                f"a worker of Celery {version}",
            )
            assert process.poll() is None, log_file.read_text("utf-8", "replace")
            yield Shop(cluster, hostname, version, queue, app, captures)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_SECONDS)
            with app.connection_for_write() as connection:
                connection.default_channel.queue_delete(queue)


@dataclass(frozen=True)
class Street:
    """All shops, and the brokers that they are at."""

    brokers: dict[str, str]
    shops: list[Shop]


@pytest.fixture(scope="module")
def street(
    lowest: Path,
    oldest_worker: Path,
    newest_worker: Path,
    rabbitmq_service: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Street]:
    directory = tmp_path_factory.mktemp("street")
    with ExitStack() as stack:
        server = stack.enter_context(running_redis(directory))
        brokers = {"redis": f"redis://127.0.0.1:{server.port}/3", "rabbit": rabbitmq_service}
        shops = [
            stack.enter_context(running_shop(python, cluster, url, directory / f"{cluster}-{age}", captures=captures))
            for cluster, url in brokers.items()
            for age, python, captures in (
                ("oldest", oldest_worker, cluster == "redis"),
                ("newest", newest_worker, cluster == "rabbit"),
            )
        ]
        beside = running_shop(lowest, "redis", brokers["redis"], directory / "beside", captures=False)
        yield Street(brokers, [*shops, stack.enter_context(beside)])


@contextmanager
def watching(python: Path, street: Street, database: str, directory: Path) -> Iterator[Dashboard]:
    """``celery-monitor serve`` of another environment."""
    node_id = f"test-{uuid4().hex[:10]}"
    log_file = directory / "serve.log"
    command = [str(python.parent / "celery-monitor"), "serve", "--port", "0", "--database", database]
    command += ["--node-id", node_id, "--inspect-seconds", "3600"]
    for cluster, url in street.brokers.items():
        command += ["--broker", f"{cluster}={url}"]
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environ(PYTHONPATH="", PYTHONUNBUFFERED="1"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    product = Dashboard(process, log_file, "", directory / "record.db")
    try:
        found = wait_for(
            lambda: process.poll() is not None or re.search(r"is at (http://\S+?)/ ", product.log), START_SECONDS
        )
        assert found is not True, product.log
        product.url = found.group(1)
        yield product
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_SECONDS)
        await_end(process.pid)
        delete_queue(f"celeryev.{node_id}", street.brokers["rabbit"])


def post(product: Dashboard, path: str, **body: object) -> Any:
    request = urllib.request.Request(
        f"{product.url}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def is_live(product: Dashboard) -> bool:
    """A tab's websocket is told what its view shows."""
    token = html.unescape(re.findall(r'data-token="([^"]+)"', product.get("/tasks"))[0])
    address = f"{product.url.replace('http', 'ws')}/live"
    with connect(address, origin=Origin(product.url), max_size=None) as tab:
        tab.send(json.dumps({"token": token, "view": "/tasks"}))
        return bool(json.loads(tab.recv(timeout=60)))


def worker_of(product: Dashboard, shop: Shop) -> dict[str, Any] | None:
    items = product.json("/api/v1/workers")["items"]
    return next((each for each in items if each["hostname"] == shop.hostname), None)


@dataclass(frozen=True)
class Day:
    """What one worker ran: a success, a task that Celery retries once, a failure."""

    shop: Shop
    order: str
    opened: str


def open_shop(product: Dashboard, shop: Shop) -> Day:
    """Once its task events are on, which nobody but the product did, and its queues are known."""
    found = wait_for(lambda: (each := worker_of(product, shop)) and each["events_enabled"] and each, what="task events")
    if found["queues"] is None:  # not asked yet
        found = wait_for(lambda: (each := worker_of(product, shop)) and each["queues"] and each, what="its queues")
    assert found["queues"] == [shop.queue]
    order = uuid4().hex
    return Day(shop, order, shop.send("open", order))


def check_and_retry(product: Dashboard, day: Day) -> str:
    """All that happened is recorded; gives the id under which the failure was sent again."""
    opened = product.wait_for_state(day.opened, "SUCCESS")
    added, charged, delivered = re.findall(r"[0-9a-f-]{36}", opened["result"])
    assert product.wait_for_state(added, "SUCCESS")["result"] == "42"
    done = product.wait_for_state(delivered, "SUCCESS")
    assert (done["retries"], [run["outcome"] for run in done["runs"]]) == (1, ["retried", "succeeded"])
    product.wait_for_state(charged, "FAILURE")
    failed = wait_for(lambda: (each := product.task(charged)) and each["queue"] and each, what="the queue of a task")
    assert failed["exception"] == f"ValueError('the card of order {day.order} was refused')"
    where = failed["worker"], failed["queue"], failed["cluster"], failed["parent_id"]
    assert where == (day.shop.hostname, day.shop.queue, day.shop.cluster, day.opened)
    sent = post(product, f"/api/v1/tasks/{charged}/retry", confirm=True)
    assert sent["fidelity"] == ("exact" if day.shop.captures else "probable")
    return str(sent["id"])


def check_retry_and_worker(product: Dashboard, day: Day, retried: str) -> None:
    again = product.wait_for_state(retried, "SUCCESS")
    assert again["result"] == f"'order {day.order} is paid'"
    inside = product.json(f"/api/v1/workers/{day.shop.hostname}/inspect")
    assert (inside["silent"], inside["active"]) == (False, [])
    assert "shop.deliver" in inside["registered"]
    seen = wait_for(lambda: (each := worker_of(product, day.shop)) and each["sw_ver"] and each, what="a heartbeat")
    assert seen["sw_ver"] == day.shop.version


# The newest on SQLite is what all other tests run.
@pytest.mark.parametrize(("age", "kind"), [("lowest", "sqlite"), ("lowest", "postgresql"), ("newest", "postgresql")])
def test_every_worker_is_watched(
    age: str, kind: str, street: Street, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    python: Path = request.getfixturevalue(age)
    database = f"sqlite:///{tmp_path}/record.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    with watching(python, street, database, tmp_path) as product:
        days = [open_shop(product, shop) for shop in street.shops]
        retried = [check_and_retry(product, day) for day in days]
        for day, task_id in zip(days, retried, strict=True):
            check_retry_and_worker(product, day, task_id)
        for page in PAGES:
            assert "<main" in product.get(page)
        assert is_live(product)
        assert product.unexpected() == []


@pytest.mark.parametrize("age", ["lowest", "newest"])
def test_doctor_finds_the_workers(age: str, street: Street, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    python: Path = request.getfixturevalue(age)
    command = [str(python.parent / "celery-monitor"), "doctor", "--json"]
    for cluster, url in street.brokers.items():
        command += ["--broker", f"{cluster}={url}"]
    ours = environ(PYTHONPATH="")
    done = subprocess.run(command, cwd=tmp_path, env=ours, capture_output=True, text=True, timeout=60, check=False)
    findings = json.loads(done.stdout)["findings"]
    answers = {each["subject"]: each for each in findings if each["check"] == "workers"}
    assert {name: each["level"] for name, each in answers.items()} == dict.fromkeys(street.brokers, "ok")
    for shop in street.shops:
        assert shop.hostname in answers[shop.cluster]["what"]


@pytest.mark.parametrize("age", ["lowest", "newest"])
def test_a_damaged_password_is_one_line(age: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    python: Path = request.getfixturevalue(age)
    command = [str(python.parent / "celery-monitor"), "web", "--basic-auth", "olga:$argon2id$v=19$m=64-damaged"]
    ours = environ(PYTHONPATH="")
    done = subprocess.run(command, cwd=tmp_path, env=ours, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
