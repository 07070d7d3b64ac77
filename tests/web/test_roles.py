"""Every route of the dashboard against every role: what changes something is listed here, or a test fails."""

import re
from collections.abc import Iterator, Sequence

import pytest
from msgspec.structs import replace
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.testclient import TestClient

from celery_monitor.core.filters.parser import parse
from celery_monitor.records.application import Application
from celery_monitor.records.schedule import ScheduleEntry
from celery_monitor.records.user import Actor, Role
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.actions import read_actions
from celery_monitor.store.engine import Store
from celery_monitor.store.jobs import create_job, start_job
from celery_monitor.store.schedule import save_schedule
from celery_monitor.store.views import save_view
from celery_monitor.store.workers import change_workers
from celery_monitor.web.security.origin import Tokens
from tests.web.shop import BASE, PROBABLE, RUNNING, fill, serving, user
from tests.workers import running_worker

PROBABLE_GROUP = "1"  # the number of PROBABLE's failure
PREVIEW, STARTED = "1", "2"  # jobs that every test finds
SAVED = "1"  # a saved view
CHANNEL = "1"  # of alerts
SHOP = {"of_cluster": "shop"}
WORKER = "worker1@shop"
Listed = dict[tuple[str, str], tuple[str, str, dict[str, object]]]


def on_worker(name: str, action: str, fields: dict[str, object]) -> Listed:
    """The form and the operation that do it to a worker."""
    path = f"/workers/{{hostname:name}}/{name}"
    return {
        ("POST", path): (action, WORKER, {**SHOP, **fields}),
        ("POST", f"/api/v1{path}"): (action, WORKER, fields),
    }


def on_queue(name: str, action: str, fields: dict[str, object]) -> Listed:
    """The form and the operation that do it to a queue."""
    path = f"/queues/{{name:name}}/{name}"
    return {
        ("POST", path): (action, "payments", {**SHOP, **fields}),
        ("POST", f"/api/v1{path}"): (action, "payments", fields),
    }


# Paths of Flower's API, by what their last part names.
OF_WORKER: dict[str, tuple[str, dict[str, object]]] = {
    "shutdown": ("worker.shutdown", {}),
    "pool/restart": ("worker.pool_restart", {}),
    "pool/grow": ("worker.pool_grow", {"n": "2"}),
    "pool/shrink": ("worker.pool_shrink", {"n": "2"}),
    "pool/autoscale": ("worker.autoscale", {"min": "1", "max": "3"}),
    "queue/add-consumer": ("worker.add_consumer", {"queue": "payments"}),
    "queue/cancel-consumer": ("worker.cancel_consumer", {"queue": "payments"}),
}
OF_TASK: dict[str, tuple[str, dict[str, object]]] = {
    "revoke": ("task.revoke", {}),
    "abort": ("task.abort", {}),
    "timeout": ("worker.time_limit", {"workername": WORKER, "soft": "2.5", "hard": "4.5"}),
    "rate-limit": ("worker.rate_limit", {"workername": WORKER, "ratelimit": "7/m"}),
    "send-task": ("task.run", {"args": []}),
    "apply": ("task.run", {"args": []}),
    "async-apply": ("task.run", {"args": []}),
}

# (method, path) of everything unsafe: the action, and a request that performs it.
UNSAFE: Listed = {
    ("POST", "/api/v1/tasks/{id:name}/retry"): ("task.retry", PROBABLE, {"confirm": True}),
    ("POST", "/api/v1/tasks/{id:name}/find-message"): ("task.find_message", RUNNING, {}),
    ("POST", "/tasks/{id:name}/find-message"): ("task.find_message", RUNNING, {"of_cluster": "shop"}),
    ("POST", "/api/v1/tasks/{id:name}/revoke"): ("task.revoke", RUNNING, {}),
    ("POST", "/tasks/{id:name}/retry"): ("task.retry", PROBABLE, {"confirm": "1"}),
    ("POST", "/tasks/{id:name}/revoke"): ("task.revoke", RUNNING, {}),
    ("POST", "/tasks/retry"): ("task.retry", "", {"task": f"shop {PROBABLE}", "confirm": "1"}),
    ("POST", "/tasks/revoke"): ("task.revoke", "", {"task": f"shop {RUNNING}"}),
    **{
        ("POST", f"{base}/{verb}"): (f"failure.{verb}", PROBABLE_GROUP, {"reason": "known"})
        for base in ("/api/v1/failures/{id}", "/failures/{id:int}")
        for verb in ("resolve", "mute", "reopen")
    },
    ("POST", "/tasks/bulk-retry"): ("bulk.retry", "", {}),
    ("POST", "/tasks/bulk-revoke"): ("bulk.revoke", "", {}),
    ("POST", "/jobs/{id}/start"): ("bulk.retry", PREVIEW, {}),
    ("POST", "/jobs/{id}/include-retried"): ("bulk.retry", PREVIEW, {"include_retried": "1"}),
    ("POST", "/jobs/{id}/abort"): ("bulk.abort", STARTED, {}),
    ("POST", "/api/v1/bulk/preview"): ("bulk.retry", "", {"action": "retry", "q": "state:failed"}),
    ("POST", "/api/v1/bulk"): ("bulk.revoke", "", {"action": "revoke", "q": "state:started"}),
    ("POST", "/api/v1/bulk/{id:int}/abort"): ("bulk.abort", STARTED, {}),
    ("POST", "/api/v1/schedule/run"): ("schedule.run", "", {"name": "nightly count", "confirm": True}),
    ("POST", "/schedule/run"): ("schedule.run", "", {"of_cluster": "shop", "entry": "nightly count"}),
    ("POST", "/workers/enable-events"): ("worker.enable_events", "", {"cluster": "shop"}),
    ("POST", "/workers/revoke-stamped"): ("task.revoke_stamped", "", {**SHOP, "header": "batch", "stamps": "b7"}),
    ("POST", "/run/send"): ("task.run", "", {**SHOP, "name": "shop.pay.charge", "queue": "payments"}),
    ("POST", "/api/v1/run"): ("task.run", "", {"name": "shop.pay.charge", "queue": "payments"}),
    ("POST", "/api/v1/revoke-stamped"): ("task.revoke_stamped", "", {"header": "batch", "stamps": ["b7"]}),
    ("POST", "/views/save"): ("view.save", "", {"name": "slow ones", "path": "/tasks", "query": "q=runtime%3A%3E5s"}),
    ("POST", "/views/rename"): ("view.rename", "", {"view": SAVED, "name": "slowest"}),
    ("POST", "/views/delete"): ("view.delete", "", {"view": SAVED}),
    ("POST", "/api/v1/views/save"): ("view.save", "", {"name": "slow ones", "path": "/tasks"}),
    ("POST", "/api/v1/views/{id:int}/rename"): ("view.rename", SAVED, {"name": "slowest"}),
    ("POST", "/api/v1/views/{id:int}/delete"): ("view.delete", SAVED, {}),
    **on_worker("grow", "worker.pool_grow", {"number": 2}),
    **on_worker("shrink", "worker.pool_shrink", {"number": 2}),
    **on_worker("restart", "worker.pool_restart", {}),
    **on_worker("autoscale", "worker.autoscale", {"minimum": 1, "maximum": 3}),
    **on_worker("add-consumer", "worker.add_consumer", {"queue": "payments"}),
    **on_worker("cancel-consumer", "worker.cancel_consumer", {"queue": "payments"}),
    **on_worker("rate-limit", "worker.rate_limit", {"task": "shop.pay.charge", "rate": "7/m"}),
    **on_worker("time-limit", "worker.time_limit", {"task": "shop.pay.charge", "soft": 2.5, "hard": 4.5}),
    **on_worker("enable-events", "worker.enable_events", {}),
    **on_worker("disable-events", "worker.disable_events", {}),
    **on_worker("shutdown", "worker.shutdown", {"confirm": WORKER}),
    **on_queue("pause", "queue.pause", {}),
    **on_queue("resume", "queue.resume", {}),
    **on_queue("purge", "queue.purge", {"confirm": "payments"}),
    **on_queue("messages", "queue.read", {}),
    ("POST", "/queues/{name:name}/grow"): ("worker.pool_grow", "payments", {**SHOP, "number": 2}),
    ("POST", "/queues/{name:name}/add-consumer"): ("worker.add_consumer", "payments", {**SHOP, "worker": WORKER}),
    **on_queue("delete-message", "queue.delete_message", {"digest": "0a1b"}),
    **{
        ("POST", f"/api/worker/{path}/{{target:path}}"): (action, WORKER, fields)
        for path, (action, fields) in OF_WORKER.items()
    },
    **{
        ("POST", f"/api/task/{path}/{{target:path}}"): (action, "shop.pay.charge", fields)
        for path, (action, fields) in OF_TASK.items()
    },
    ("POST", "/alerts/save-rule"): ("rule.save", "", {"name": "Disk", "kind": "disk"}),
    ("POST", "/alerts/mute-rule"): ("rule.mute", "", {"name": "Lost tasks", "seconds": "60"}),
    ("POST", "/alerts/delete-rule"): ("rule.delete", "", {"name": "Mine"}),
    ("POST", "/alerts/add-channel"): ("channel.add", "", {"name": "b", "kind": "webhook", "url": "http://127.0.0.1:1"}),
    ("POST", "/alerts/change-channel"): ("channel.change", "", {"channel": CHANNEL}),
    ("POST", "/alerts/delete-channel"): ("channel.delete", "", {"channel": CHANNEL}),
    ("POST", "/alerts/test-channel"): ("channel.test", "", {"channel": CHANNEL}),
    ("POST", "/api/v1/rules"): ("rule.save", "", {"name": "Disk", "kind": "disk"}),
    ("POST", "/api/v1/rules/mute"): ("rule.mute", "", {"name": "Lost tasks", "seconds": 60}),
    ("POST", "/api/v1/rules/delete"): ("rule.delete", "", {"name": "Mine"}),
    ("POST", "/api/v1/channels"): ("channel.add", "", {"name": "c", "kind": "webhook", "url": "http://127.0.0.1:1"}),
    ("POST", "/api/v1/channels/{id:int}/change"): ("channel.change", CHANNEL, {}),
    ("POST", "/api/v1/channels/{id:int}/delete"): ("channel.delete", CHANNEL, {}),
    ("POST", "/api/v1/channels/{id:int}/test"): ("channel.test", CHANNEL, {}),
    ("POST", "/users/add"): ("user.add", "", {"name": "ned", "password": "long enough"}),
    ("POST", "/users/scope"): ("user.scope", "", {"name": "ned", "scope": "queue:emails"}),
    ("POST", "/users/role"): ("user.role", "", {"name": "ned", "role_name": "admin"}),
    ("POST", "/users/password"): ("user.password", "", {"name": "ned", "password": "long enough"}),
    ("POST", "/users/disable"): ("user.disable", "", {"name": "ned"}),
    ("POST", "/users/enable"): ("user.enable", "", {"name": "ned"}),
    ("POST", "/users/remove"): ("user.remove", "", {"name": "ned"}),
    ("POST", "/users/end-session"): ("session.end", "", {"session": "0a1b"}),
    ("POST", "/users/end-sessions"): ("session.end_all", "", {"name": "ned"}),
    ("POST", "/users/make-token"): ("token.make", "", {"name": "ci"}),
    ("POST", "/users/revoke-token"): ("token.revoke", "", {"name": "ci"}),
}
# Of everybody's own session, and so of no role: tests/web/test_sign_in.py.
OWN_SESSION = {("POST", path) for path in ("/sign-in", "/sign-out", "/account/sign-out-everywhere")}
# They change nothing and only show what would be done: of these a denial alone is recorded.
QUESTIONS = {"/tasks/bulk-retry", "/tasks/bulk-revoke", "/jobs/{id}/include-retried", "/api/v1/bulk/preview"}
ADMINS_ONLY = {"queue.purge", "queue.delete_message", "worker.shutdown"}
ADMINS_ONLY |= {"channel.add", "channel.change", "channel.delete"}
ADMINS_ONLY |= {action for action, _, _ in UNSAFE.values() if action.startswith(("user.", "session.", "token."))}
WITHOUT_LOGIN = {"/healthcheck", "/livez", "/readyz", "/metrics", "/sign-in", "/static/{version}/{path:path}"}
SAFE = {"GET", "HEAD", "OPTIONS"}
LOGINS = {"vera": ("vera", "v"), "olga": ("olga", "o"), "root": ("root", "r")}
USERS = (user("vera", "viewer", "v"), user("olga", "operator", "o"), user("root", "admin", "r"))
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def read_only() -> bool:
    """Unless a test says otherwise."""
    return False


@pytest.fixture(scope="module")
def worker(redis_service: str) -> Iterator[None]:
    """Answers to what is asked of ``WORKER``, so that no test waits for an answer that never comes."""
    with running_worker(redis_service, hostname=WORKER, events=False):
        yield


@pytest.fixture
def client(sqlite_url: str, redis_url: str, read_only: bool) -> Iterator[TestClient]:
    settings = Settings(
        broker=(Broker("shop", redis_url),),
        basic_auth=USERS,
        secret_key="a key",
        read_only=read_only,
        application=Application(
            broker_read_url=redis_url, broker_write_url=redis_url, tasks={"shop.pay.charge": {"queue": "payments"}}
        ),
    )
    with serving(settings, sqlite_url) as app:
        fill(app.state.store)
        silence_worker(app.state.store)
        make_jobs(app.state.store)
        schedule_something(app.state.store)
        save_view(app.state.store, "failed", "/tasks", "q=state%3Afailed", "olga", 9.0)
        yield TestClient(app, base_url=BASE, follow_redirects=False)


def silence_worker(store: Store) -> None:
    change_workers(store, "shop", ["worker1@shop"], lambda worker: replace(worker, events_enabled=False))


def make_jobs(store: Store) -> None:
    wanted = parse('state:failed cluster:"shop"', 0.0)
    for _ in (PREVIEW, STARTED):
        job = create_job(store, "shop", "retry", wanted, "state:failed", "olga")
    start_job(store, job.id, "olga", None, None)


def schedule_something(store: Store) -> None:
    entry = ScheduleEntry(
        cluster="shop",
        name="nightly count",
        task="shop.count",
        schedule="3600.0",
        every=3600.0,
        queue="payments",
        args_json="[]",
        kwargs_json="{}",
    )
    save_schedule(store, "shop", [entry], 9.0)


def all_routes(client: TestClient) -> Sequence[BaseRoute]:
    return client.app.routes  # type: ignore[attr-defined,no-any-return]


def addressed(path: str, target: str) -> str:
    return re.sub(r"\{\w+(:\w+)?\}", target, path)


def send(client: TestClient, path: str, target: str, fields: dict[str, object], login: str) -> int:
    """As the page would: with its token, and its own site named."""
    client.auth = LOGINS[login]
    token = Tokens("a key").make(Actor(login, Role.VIEWER), "")
    address = addressed(path, target)
    headers = {**OWN_PAGE, "X-CSRF-Token": token}
    if path.startswith("/api/v1/") or "args" in fields:
        return client.post(address, json=fields, headers=headers).status_code
    return client.post(address, data=fields, headers=headers).status_code


def trail(client: TestClient) -> list[tuple[str, str, bool]]:
    page = read_actions(client.app.state.store, limit=500)  # type: ignore[attr-defined]
    return [(action.actor, action.action, action.outcome == "denied") for action in page.items]


def test_every_unsafe_route_is_listed(client: TestClient) -> None:
    found = {
        (method, route.path)
        for route in all_routes(client)
        if isinstance(route, Route)
        for method in (route.methods or {"ANY"}) - SAFE
    }
    assert found == set(UNSAFE) | OWN_SESSION


def test_every_route_is_of_a_kind_that_the_guard_knows(client: TestClient) -> None:
    assert [route for route in all_routes(client) if not isinstance(route, (Route, WebSocketRoute))] == []


@pytest.mark.parametrize(("login", "read_only"), [("vera", False), ("root", True)])
def test_nothing_is_done_for_a_viewer_or_where_all_is_read_only(
    client: TestClient, read_only: bool, login: str
) -> None:
    for (_, path), (action, target, fields) in UNSAFE.items():
        before = len(trail(client))
        status = send(client, path, target, fields, login)
        assert trail(client)[: len(trail(client)) - before] == [(login, action, True)], path
        assert status == 403 or not path.startswith("/api/"), path


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(("key", "what"), UNSAFE.items(), ids=lambda each: each[1] if each[0] == "POST" else "")
def test_an_operator_acts_but_for_what_is_left_to_admins(
    client: TestClient, key: tuple[str, str], what: tuple[str, str, dict[str, object]]
) -> None:
    action, target, fields = what
    status = send(client, key[1], target, fields, "olga")
    denied = action in ADMINS_ONLY
    assert trail(client) == ([] if key[1] in QUESTIONS and not denied else [("olga", action, denied)])
    assert (status == 403) == denied or not key[1].startswith("/api/v1/")  # a worker's refusal is 403 in Flower's API


@pytest.mark.parametrize("login", LOGINS)
def test_nobody_acts_without_the_token(client: TestClient, login: str) -> None:
    client.auth = LOGINS[login]
    for (_, path), (_, target, fields) in UNSAFE.items():
        address = addressed(path, target)
        sent = {"json": fields} if path.startswith("/api/") else {"data": fields}
        assert client.post(address, headers=OWN_PAGE, **sent).status_code == 403, path  # type: ignore[arg-type]
    assert trail(client) == []


def test_everything_but_the_open_paths_needs_a_login(client: TestClient) -> None:
    for route in all_routes(client):
        if isinstance(route, Route) and route.path not in WITHOUT_LOGIN:
            for method in route.methods or ():
                address = addressed(route.path, PROBABLE if ":name}" in route.path else PROBABLE_GROUP)
                assert client.request(method, address, headers=OWN_PAGE).status_code == 401, (method, route.path)
