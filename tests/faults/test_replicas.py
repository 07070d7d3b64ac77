"""Two web processes on one PostgreSQL: both pages live, and what one gave out the other takes."""

import html
import json
import re
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from celery_monitor.records.receiver import Delivery, ReceiverHealth
from celery_monitor.settings import Settings
from celery_monitor.store.actions import read_actions
from celery_monitor.store.engine import open_store
from celery_monitor.store.writer import Writer
from tests.factories import make_event, make_id
from tests.test_cli import running


@contextmanager
def replica(database: str, broker_url: str, directory: Path, *options: str) -> Iterator[str]:
    arguments = (
        "celery_monitor",
        "web",
        "--database",
        database,
        "--broker",
        f"shop={broker_url}",
        "--port",
        "0",
        *options,
    )
    with running(arguments, directory) as (_, address):
        yield address.rstrip("/")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def token_of(base: str) -> str:
    return html.unescape(re.findall(r'data-token="([^"]+)"', get(f"{base}/tasks"))[0])


def look(base: str, token: str) -> ClientConnection:
    """A browser on the list of tasks, with a token that any replica may have given it."""
    socket = connect(f"{base.replace('http', 'ws')}/live", origin=Origin(base), max_size=None, legacy=True)
    socket.send(json.dumps({"token": token, "view": "/tasks"}))
    socket.recv(timeout=60)
    return socket


def hears(socket: ClientConnection, task_id: str) -> bool:
    return any(task_id in str(socket.recv(timeout=60)) for _ in range(20))


def test_pages_of_two_web_processes_change_together_and_share_tokens_and_actions(
    redis_url: str, postgres_url: str, tmp_path: Path
) -> None:
    store = open_store(postgres_url)
    with ExitStack() as stack:
        stack.callback(store.close)
        one = stack.enter_context(replica(postgres_url, redis_url, tmp_path))
        two = stack.enter_context(replica(postgres_url, redis_url, tmp_path))
        token = token_of(one)
        sockets = [stack.enter_context(look(base, token)) for base in (one, two)]
        task_id = make_id(812)
        event = make_event("task-received", uuid=task_id, name="shop.pay", args="(1,)", kwargs="{}")
        now = event.timestamp
        Writer(store, "shop", Settings()).write(
            [Delivery(events=[event], arrived=now)], ReceiverHealth(cluster="shop", connected=True, updated_at=now)
        )
        assert all(hears(socket, task_id) for socket in sockets)
        headers = {"X-CSRF-Token": token, "Origin": two, "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"{two}/api/v1/tasks/{task_id}/revoke", data=b"{}", headers=headers, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status < 300
        assert [action.target for action in read_actions(store).items] == [task_id]
        told = json.loads(get(f"{one}/api/v1/actions"))["items"]
        assert [each["target"] for each in told] == [task_id]


def test_a_secret_that_is_given_is_shared_without_the_database(redis_url: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        bases = [
            stack.enter_context(
                replica(f"sqlite:///{tmp_path}/{name}.db", redis_url, tmp_path, "--secret-key", "x" * 40)
            )
            for name in ("one", "two")
        ]
        token = token_of(bases[0])
        stack.enter_context(look(bases[1], token))
