"""Every route against every role and scope: what is outside of somebody's scope is neither shown nor acted on.

The record has what is inside of ``queue:payments`` (tests/web/shop.py), and beside it things whose every text holds
PLANT. No answer to somebody with this scope may have it, and no viewer without arguments may see SECRET. A route that
is not listed here fails a test.
"""

import json
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from starlette.testclient import TestClient

from celery_monitor.control import run
from celery_monitor.control.commands import Target
from celery_monitor.core.filters.parser import parse
from celery_monitor.core.filters.scope import limits_of
from celery_monitor.records.page import Action
from celery_monitor.records.queue import Pause, Queue
from celery_monitor.records.receiver import Delivery, ReceiverHealth, RefusedEvents
from celery_monitor.records.schedule import BeatHealth, ScheduleEntry, UnreadEntry
from celery_monitor.records.user import Actor, ApiToken, Role
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.accounts.limited import limited
from celery_monitor.store.accounts.users import make_token
from celery_monitor.store.actions import read_actions, record_action
from celery_monitor.store.engine import Store
from celery_monitor.store.jobs import create_job, start_job
from celery_monitor.store.queues import save_pause, save_queues
from celery_monitor.store.schedule import save_beat_health, save_schedule
from celery_monitor.store.views import save_view
from celery_monitor.store.writer import Writer
from celery_monitor.web.app import PAGES
from celery_monitor.web.present import ViewSnapshot, Watched
from celery_monitor.web.security.origin import Tokens
from tests.databases import empty_record, empty_schema
from tests.factories import make_event, make_id
from tests.web.shop import BASE, PROBABLE, RUNNING, fill, serving, user
from tests.web.test_roles import LOGINS, OWN_SESSION, SAFE, UNSAFE, addressed, all_routes

PLANT = "pl4nted"
SECRET = "s3cret"  # in arguments, results and errors of what is inside
SCOPE = "queue:payments"
OUT_ID, OUT_CHILD, IN_CHILD, SECRET_ID = (make_id(number) for number in (201, 202, 203, 204))
OUT_QUEUE, OUT_NAME = f"{PLANT}_queue", f"{PLANT}.task"
SCOPED = {"sven": ("sven", "s"), "sam": ("sam", "m")}  # viewer and operator of SCOPE
EVERYBODY = {**LOGINS, **SCOPED}
USERS = (
    user("vera", "viewer", "v"),
    user("olga", "operator", "o"),
    user("root", "admin", "r"),
    user("sven", f"viewer[{SCOPE}]", "s"),
    user("sam", f"operator[{SCOPE}]", "m"),
)
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}


@dataclass(frozen=True)
class Read:
    """A route that shows something: a target inside, one outside, and who may read it."""

    inside: str = ""
    outside: str = ""
    scoped: bool = True  # for a part of a cluster too
    metrics: bool = False  # for a token of the role metrics
    admins: bool = False
    open: bool = False  # for everybody, signed in or not
    own: bool = False  # with a scope, one's own: here those of sam


READS: dict[str, Read] = {
    "/": Read(),
    "/tasks": Read(),
    "/tasks/{id:name}": Read(PROBABLE, OUT_ID),
    "/failures": Read(),
    "/failures/{id:int}": Read("1", "2"),
    "/queues": Read(),
    "/queues/{name:name}": Read("payments", OUT_QUEUE),
    "/workers": Read(scoped=False),
    "/workers/{hostname:name}": Read("worker1@shop", scoped=False),
    "/workflows": Read(),
    "/workflows/{root_id:path}": Read(IN_CHILD, OUT_ID),
    "/schedule": Read(),
    "/actions": Read(),
    "/run": Read(),
    "/jobs/{id}": Read("2", "1", own=True),
    "/views": Read(),
    "/users": Read(scoped=False, admins=True),
    "/account": Read(metrics=True),
    "/sign-in": Read(open=True),
    "/static/{version}/{path:path}": Read("app.js", open=True),
    "/live": Read(),
    "/alerts": Read(scoped=False),
    "/healthcheck": Read(open=True),
    "/livez": Read(open=True),
    "/readyz": Read(open=True),
    "/metrics": Read(open=True),
    "/api/workers": Read(scoped=False),
    "/api/tasks": Read(),
    "/api/task/types": Read(),
    "/api/task/info/{target:path}": Read(PROBABLE, OUT_ID),
    "/api/task/result/{target:path}": Read(PROBABLE, scoped=False),
    "/api/queues/length": Read(),
    "/api/v1/alerts": Read(scoped=False),
    "/api/v1/rules": Read(scoped=False),
    "/api/v1/channels": Read(scoped=False),
    "/api/v1/openapi.json": Read(),
    "/api/v1/tasks": Read(),
    "/api/v1/export/tasks": Read(),
    "/api/v1/tasks/{id:name}": Read(PROBABLE, OUT_ID),
    "/api/v1/workers": Read(scoped=False),
    "/api/v1/workers/{hostname:name}/alive": Read("worker1@shop", scoped=False),
    "/api/v1/workers/{hostname:name}/inspect": Read("worker1@shop", scoped=False),
    "/api/v1/queues": Read(),
    "/api/v1/failures": Read(),
    "/api/v1/failures/{id}": Read("1", "2"),
    "/api/v1/workflows": Read(),
    "/api/v1/workflows/{root_id:path}": Read(IN_CHILD, OUT_ID),
    "/api/v1/schedule": Read(),
    "/api/v1/series": Read(),
    "/api/v1/actions": Read(),
    "/api/v1/export/actions": Read(admins=True),
    "/api/v1/health": Read(metrics=True),
    "/api/v1/clusters": Read(),
    "/api/v1/jobs": Read(),
    "/api/v1/bulk/{id:int}": Read("2", "1", own=True),
    "/api/v1/bulk/{id:int}/tasks": Read("2", "1", own=True),
    "/api/v1/views": Read(),
    "/api/v1/search": Read(),
}
# More addresses, of which each answer is searched for what is outside. They name it by a part that is no PLANT.
PROBES = (
    "/?range=7d",
    "/tasks?q=pl4",
    "/tasks?q=state:failed&col=name&col=args&col=result&col=queue&sort=name",
    "/tasks?q=queue:pl4*",
    "/tasks?q=job:1",
    f"/tasks?q=root:{OUT_CHILD}",
    f"/workflows/{OUT_CHILD}",  # a member is inside, and the root is not
    f"/api/v1/workflows/{OUT_CHILD}",
    f"/tasks/{PROBABLE}?panel=edit",
    "/failures?state=all&range=7d",
    "/failures/1?range=7d",
    "/actions?actor=olga",
    "/run?cluster=shop",
    "/api/v1/search?q=pl4",
    f"/api/v1/search?q={OUT_ID[:12]}",
    "/api/v1/tasks?q=pl4",
    "/api/v1/tasks?limit=500&sort=queue",
    "/api/v1/export/tasks?format=csv",
    "/api/v1/export/tasks?format=ndjson",
    "/api/v1/failures?state=all",
    "/api/v1/actions?target=pl4*",
)
# What an operator asks for outside: every other target of UNSAFE is inside.
OUTSIDE: dict[str, tuple[str, dict[str, object]]] = {
    **{path: (OUT_ID, fields) for (_, path), (_, _, fields) in UNSAFE.items() if "/tasks/{id" in path},
    **{path: ("2", fields) for (_, path), (_, _, fields) in UNSAFE.items() if "/failures/" in path},
    **{path: ("1", fields) for (_, path), (_, _, fields) in UNSAFE.items() if "/jobs/" in path or "/bulk/{" in path},
    **{
        path: (OUT_QUEUE, {**fields, **({"confirm": OUT_QUEUE} if "confirm" in fields else {})})
        for (_, path), (_, _, fields) in UNSAFE.items()
        if "/queues/" in path
    },
    "/tasks/retry": ("", {"task": f"shop {OUT_ID}", "confirm": "1"}),
    "/tasks/revoke": ("", {"task": f"shop {OUT_ID}"}),
    "/api/v1/bulk": ("", {"action": "revoke", "q": f"name:{OUT_NAME}"}),
    "/api/v1/bulk/preview": ("", {"action": "retry", "q": f"name:{OUT_NAME}"}),
    "/run/send": ("", {"of_cluster": "shop", "name": "shop.pay.charge", "queue": OUT_QUEUE}),
    "/api/v1/run": ("", {"name": "shop.pay.charge", "queue": OUT_QUEUE}),
    "/schedule/run": ("", {"of_cluster": "shop", "entry": f"{PLANT} entry"}),
    "/api/v1/schedule/run": ("", {"name": f"{PLANT} entry", "confirm": True}),
    "/views/rename": ("", {"view": "1", "name": "mine"}),
    "/views/delete": ("", {"view": "1"}),
    "/api/v1/views/{id:int}/rename": ("1", {"name": "mine"}),
    "/api/v1/views/{id:int}/delete": ("1", {}),
}
# Of one's own, or of what matches inside: there is nothing outside to name.
WITHOUT_TARGET = {"/tasks/bulk-retry", "/tasks/bulk-revoke", "/views/save", "/api/v1/views/save"}
# Of a whole cluster or of the dashboard: denied to everybody with a scope of queues.
NOT_IN_PART = {
    path
    for _, path in UNSAFE
    if "/workers" in path
    or path.startswith(("/users/", "/api/worker/", "/api/task/", "/alerts/", "/api/v1/rules", "/api/v1/channels"))
    or path.endswith(("/revoke-stamped", "/grow", "/add-consumer"))
}


def plant(store: Store, now: float) -> None:
    """What nobody with SCOPE may see; and of what is inside, the texts that viewers may be denied."""
    known = {"name": OUT_NAME, "args": f"('{PLANT}',)", "kwargs": f"{{'{PLANT}': 1}}", "retries": 0}
    failed = {"exception": f"Pl4ntedError('{PLANT}')".replace("Pl4nted", PLANT), "traceback": f'File "{PLANT}.py"'}
    sent = {"hostname": f"{PLANT}@web", "queue": OUT_QUEUE, "routing_key": OUT_QUEUE}
    here = {"hostname": "ada@web", "queue": "payments", "routing_key": "payments"}
    mine = {"name": "shop.pay.refund", "args": f"('{SECRET}',)", "kwargs": f"{{'card': '{SECRET}'}}", "retries": 0}
    bad = {"exception": f"SecretError('{SECRET}')", "traceback": f"SecretError: {SECRET}"}
    child = {**known, "root_id": IN_CHILD, "parent_id": IN_CHILD}
    below = {**mine, "root_id": OUT_CHILD, "parent_id": OUT_CHILD}
    events = [
        *(make_event("task-sent", timestamp=now - 60, uuid=each, **sent, **known) for each in (OUT_ID, OUT_CHILD)),
        make_event("task-received", timestamp=now - 59, uuid=OUT_ID, hostname=f"{PLANT}@vm", **known),
        make_event("task-started", timestamp=now - 58, uuid=OUT_ID, hostname=f"{PLANT}@vm"),
        make_event("task-failed", timestamp=now - 57, uuid=OUT_ID, hostname=f"{PLANT}@vm", **failed),
        make_event("task-sent", timestamp=now - 50, uuid=make_id(205), **sent, **child),
        make_event("task-sent", timestamp=now - 50, uuid=IN_CHILD, **here, **mine),
        make_event("task-sent", timestamp=now - 49, uuid=make_id(206), **here, **below),
        make_event("task-sent", timestamp=now - 48, uuid=SECRET_ID, **here, **mine),
        make_event("task-received", timestamp=now - 47, uuid=SECRET_ID, **mine),
        make_event("task-started", timestamp=now - 46, uuid=SECRET_ID),
        make_event("task-failed", timestamp=now - 45, uuid=SECRET_ID, **bad),
        make_event("worker-online", timestamp=now - 44, hostname=f"{PLANT}@vm", freq=2.0),
        *(
            make_event(f"task-{kind}", timestamp=now - 43, uuid=make_id(207), **sent, **known)
            for kind in ("sent", "received")
        ),
    ]
    health = ReceiverHealth(
        cluster="shop",
        connected=True,
        updated_at=now + 60,
        last_event_at=now,
        lag_seconds=0.0,
        host=f"{PLANT}-host",
        notices=(f"{PLANT} notice",),
        refused=(RefusedEvents(hostname=f"{PLANT}@vm", content_type="application/x-python-serialize"),),
    )
    Writer(store, "shop", Settings()).write([Delivery(events=events, arrived=now)], health)
    queues = [Queue(cluster="shop", name=name, ready=7, sampled_at=now) for name in ("payments", OUT_QUEUE)]
    save_queues(store, "shop", queues, now)
    save_pause(store, Pause(cluster="shop", queue=OUT_QUEUE, by=f"{PLANT} user", at=now, workers=(), reason=PLANT))
    entries = [
        ScheduleEntry(
            cluster="shop", name=name, task=task, schedule="3600.0", every=3600.0, queue=queue, args=f"('{text}',)",
            args_json="[]", kwargs_json="{}",
        )
        for name, task, queue, text in (
            (f"{PLANT} entry", OUT_NAME, OUT_QUEUE, PLANT), ("nightly count", "shop.pay.charge", "payments", SECRET),
        )
    ]  # fmt: skip
    save_schedule(store, "shop", entries, now)
    unread = (UnreadEntry(source="workers", name=f"{PLANT} unread", reason=PLANT),)
    save_beat_health(store, BeatHealth(cluster="shop", at=now, unread=(f"{PLANT} source",), unread_entries=unread))
    save_view(store, f"{PLANT} view", "/tasks", f"q=name%3A{OUT_NAME}", "olga", now)
    for actor, query in (("olga", f"name:{OUT_NAME}"), ("sam", "state:failed queue:payments")):
        job = create_job(store, "shop", "retry", parse(query, now).in_cluster("shop"), query, actor)
    start_job(store, job.id, "sam", None, None)
    record_action(
        store,
        Action(at=now, actor="olga", action="task.retry", cluster="shop", target=OUT_ID, reason=PLANT, outcome="done"),
    )


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "sqlite":
        yield empty_record(tmp_path_factory.mktemp("scopes"))
        return
    with empty_schema(request.getfixturevalue("postgres_service")) as url:
        yield url


@pytest.fixture(scope="module")
def clients(database: str) -> Iterator[dict[bool, TestClient]]:
    """The dashboard with and without arguments for viewers, on one record."""
    common = Settings(broker=(Broker("shop", "redis://127.0.0.1:1/0"),), basic_auth=USERS, secret_key="a key")
    hiding = Settings(
        broker=common.broker, basic_auth=USERS, secret_key="a key", viewer_sees_arguments=False, metrics_need_token=True
    )
    with serving(common, database) as shown, serving(hiding, database) as hidden:
        fill(shown.state.store)
        plant(shown.state.store, time.time())
        yield {
            True: TestClient(shown, base_url=BASE, follow_redirects=False),
            False: TestClient(hidden, base_url=BASE, follow_redirects=False),
        }


@pytest.fixture
def client(clients: dict[bool, TestClient]) -> TestClient:
    return clients[True]


def store_of(client: TestClient) -> Store:
    store: Store = client.app.state.store  # type: ignore[attr-defined]
    return store


def get(client: TestClient, address: str, login: str | None) -> tuple[int, str]:
    response = client.get(address, headers=headers_of(login) if login else {})
    return response.status_code, response.text


def headers_of(login: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(':'.join(EVERYBODY[login]).encode()).decode()}", **OWN_PAGE}


def send(client: TestClient, path: str, target: str, fields: dict[str, object], login: str) -> int:
    headers = {**headers_of(login), "X-CSRF-Token": Tokens("a key").make(Actor(login, Role.VIEWER), "")}
    address = addressed(path, target)
    if path.startswith("/api/"):
        return client.post(address, json=fields, headers=headers).status_code
    return client.post(address, data=fields, headers=headers).status_code


def newest(client: TestClient) -> list[Action]:
    return list(read_actions(store_of(client), limit=500).items)


def test_every_route_is_listed(client: TestClient) -> None:
    found = {
        (method, str(route.path))  # type: ignore[attr-defined]
        for route in all_routes(client)
        for method in getattr(route, "methods", None) or {"LIVE"}
    }
    reads = {("GET", path) for path in READS}
    assert found - {(method, path) for method, path in found if method in SAFE - {"GET"}} == (
        reads | set(UNSAFE) | OWN_SESSION | {("LIVE", "/live")}
    )
    assert {path for _, path in UNSAFE} == set(OUTSIDE) | WITHOUT_TARGET | NOT_IN_PART


@pytest.mark.parametrize("path", READS)
def test_who_reads_what(client: TestClient, path: str) -> None:
    listed = READS[path]
    inside = addressed(path, listed.inside)
    assert (get(client, inside, None)[0] == 401) is not listed.open
    for login, actor in EVERYBODY.items():
        allowed = (login == "root" or not listed.admins) and (login not in SCOPED or listed.scoped)
        status = get(client, inside, login)[0]
        if listed.own and login == "sven":
            assert status == 404
            continue
        if path.endswith("/inspect") or path in {"/api/workers", "/api/task/result/{target:path}", "/readyz"}:
            assert status in ({200, 404, 503} if allowed else {403}), actor
        else:
            assert status == (200 if allowed else 403), actor
        if listed.outside and login not in SCOPED:
            assert get(client, addressed(path, listed.outside), login)[0] == 200, actor
        elif listed.outside:
            status, text = get(client, addressed(path, listed.outside), login)
            assert (status, PLANT in text.replace(listed.outside, "")) == (404, False), actor


def test_a_token_for_metrics_reads_metrics_and_health_alone(clients: dict[bool, TestClient]) -> None:
    token = ApiToken(id=0, name="prometheus", role=Role.METRICS, actor="root", created_at=1.0)
    secret = make_token(store_of(clients[True]), token)[1]
    header = {"Authorization": f"Bearer {secret}"}
    client = clients[True]
    for path, listed in READS.items():
        status = client.get(addressed(path, listed.inside), headers=header).status_code
        assert (status == 403) is not (listed.metrics or listed.open), path
    for (_, path), (_, target, fields) in UNSAFE.items():
        if path.startswith("/api/"):
            assert client.post(addressed(path, target), json=fields, headers=header).status_code == 403, path
    assert client.get("/metrics").status_code != 401
    assert clients[False].get("/metrics").status_code == 401  # metrics_need_token
    assert clients[False].get("/metrics", headers=header).status_code != 401
    assert clients[False].get("/healthcheck").status_code == 200


@pytest.mark.parametrize("login", SCOPED)
def test_no_answer_holds_anything_from_outside(client: TestClient, login: str) -> None:
    assert PLANT in get(client, "/tasks", "vera")[1]
    for path, listed in READS.items():
        status, text = get(client, addressed(path, listed.inside), login)
        if path != "/metrics":  # strangers may read it too, and have names of tasks there: metrics_need_token
            assert PLANT not in text, (status, path)
    for address in PROBES:
        status, text = get(client, address, login)
        assert status in {200, 403}, address
        assert PLANT not in text, address


@pytest.mark.parametrize("login", SCOPED)
def test_no_live_view_holds_anything_from_outside(client: TestClient, login: str) -> None:
    for page in PAGES:
        listed = READS[page.path]
        outside = frames(client, addressed(page.path, listed.outside), login) if listed.outside else "error"
        assert "error" in outside, page.path
        assert PLANT not in outside.replace(listed.outside or "nothing", ""), page.path
        text = frames(client, addressed(page.path, listed.inside), login)
        assert PLANT not in text, page.path
        is_own = not listed.own or login == "sam"
        assert ("regions" in text) == (listed.scoped and not listed.admins and is_own), page.path


def frames(client: TestClient, address: str, login: str) -> str:
    """The first frame of a view."""
    token = Tokens("a key").make(Actor(login, Role.VIEWER), "")
    with client.websocket_connect("ws://127.0.0.1:5757/live", headers=headers_of(login)) as socket:
        socket.send_text(json.dumps({"view": address, "token": token}))
        return socket.receive_text()


@pytest.mark.parametrize("path", [path for _, path in UNSAFE])
def test_an_operator_of_a_queue_acts_on_what_is_inside_alone(client: TestClient, path: str) -> None:
    action, target, fields = UNSAFE["POST", path]
    before = len(newest(client))
    if path in OUTSIDE:
        outside, given = OUTSIDE[path]
        status = send(client, path, outside, given, "sam")
        assert status in {303, 403, 404, 409} or (status in {200, 400} and not path.startswith("/api/")), path
    if path in NOT_IN_PART:
        status = send(client, path, target, fields, "sam")
        assert status in {303, 403, 404}, path
    new = newest(client)[: len(newest(client)) - before]
    assert {each.outcome for each in new} <= {"denied", "failed", "aborted"}, new  # sam's own job, without a broker
    assert {each.actor for each in new} <= {"sam"}
    if path in OUTSIDE and action not in {"queue.purge", "queue.delete_message"} and "job" not in path:
        status = send(client, path, target or "2", fields, "sam")
        assert status != 403, path


def test_a_bulk_action_has_what_is_inside_alone(client: TestClient) -> None:
    headers = {**headers_of("sam"), "X-CSRF-Token": Tokens("a key").make(Actor("sam", Role.VIEWER), "")}
    body = {"action": "retry", "q": "state:failed"}
    chosen = client.post("/api/v1/bulk/preview", json=body, headers=headers).json()["count"]["value"]
    mine, everything = (
        json.loads(get(client, "/api/v1/tasks?q=state:failed", login)[1])["count"]["value"] for login in ("sam", "olga")
    )
    assert chosen == mine < everything


def test_a_repeated_run_is_recognised_though_its_queue_is_unknown(client: TestClient) -> None:
    store = limited(store_of(client), limits_of(Actor("sam", Role.OPERATOR, SCOPE)))
    broker = Broker("shop", "redis://127.0.0.1:1/0")
    assert run._is_recorded(Target(store, Settings(broker=(broker,)), broker), OUT_ID)


def test_viewers_who_may_not_see_arguments_see_none(clients: dict[bool, TestClient]) -> None:
    shown, hidden = clients[True], clients[False]
    own = (f"/tasks/{SECRET_ID}", f"/api/v1/tasks/{SECRET_ID}")
    addresses = [*own, "/failures?state=all", "/api/v1/failures?state=all", *PROBES]
    addresses += [addressed(path, listed.inside) for path, listed in READS.items()]
    assert SECRET in get(shown, own[0], "vera")[1]
    assert SECRET in get(hidden, own[0], "olga")[1]
    for login in ("vera", "sven"):
        for address in addresses:
            status, text = get(hidden, address, login)
            allowed = {200, 403, 404, *([503] if address.endswith("/alive") else [])}  # its worker may have aged
            assert status in allowed, (login, address)
            assert SECRET not in text, (login, address)
        for page in PAGES:
            assert SECRET not in frames(hidden, addressed(page.path, READS[page.path].inside), login), page.path
        for query in (f"args:{SECRET}", f"-kwargs.card:{SECRET}", f"exception:*{SECRET}*"):
            status, text = get(hidden, f"/api/v1/tasks?q={query}", login)
            assert (status, "hidden" in text) == (400, True)
        assert json.loads(get(hidden, f"/api/v1/tasks?q={SECRET}", login)[1])["items"] == []
    assert get(hidden, own[0], "vera")[0] == 200
    assert get(hidden, "/api/v1/workers/worker1@shop/inspect", "vera")[0] == 403  # current tasks with their arguments
    assert RUNNING in get(hidden, "/workers/worker1@shop?ask=1", "vera")[1]


def test_viewers_of_different_scopes_share_no_view(client: TestClient) -> None:
    live = client.app.state.live  # type: ignore[attr-defined]
    seen: list[Watched] = []
    read = live._read

    def noted(watched: Watched) -> ViewSnapshot:
        seen.append(watched)
        snapshot: ViewSnapshot = read(watched)
        return snapshot

    live._read = noted
    try:
        for login in ("vera", "sven"):
            frames(client, "/tasks", login)
    finally:
        live._read = read
    assert len({each.limits for each in seen}) == 2
