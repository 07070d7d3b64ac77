"""Wrong passwords, one and many: what they cost whom, and where they are written."""

import asyncio
import logging
import threading
from collections.abc import Iterator

import argon2
import pytest
from starlette.testclient import TestClient

from celery_monitor.control.users import perform_locally
from celery_monitor.errors import StoreUnavailable, TooManyRequests, Unauthenticated
from celery_monitor.records.page import Action
from celery_monitor.records.user import Actor, Role
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.actions import read_actions
from celery_monitor.store.engine import Store
from celery_monitor.web.security import auth
from celery_monitor.web.security.auth import (
    FORGOTTEN_SECONDS,
    LONGEST_DELAY_SECONDS,
    MOST_WAITING,
    MOST_WAITING_OF_ADDRESS,
    MOST_WINDOWS,
    OTHER_ADDRESSES,
    OTHER_USERS,
    Account,
    Delays,
    Doors,
    FailedSignIns,
    Gate,
    network_of,
)
from tests.web.shop import BASE, QUICK, serving, user
from tests.workers import happens

HERE = "192.0.2.7"
THERE = "198.51.100.9"
PASSWORD = "r1ght r1ght"
OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}


def fail_times(delays: Delays, key: str, times: int, now: float = 1000.0) -> float:
    for _ in range(times):
        delays.fail(key, now)
    return delays.seconds_left(key, now)


# --- delays


def test_typing_errors_cost_nothing_and_guessing_doubles_the_delay() -> None:
    delays = [fail_times(Delays(), "ada", times) for times in (1, 4, 5, 6, 7, 10, 11, 1000)]
    assert delays == [0, 0, 1, 2, 4, 32, LONGEST_DELAY_SECONDS, LONGEST_DELAY_SECONDS]


def test_delay_passes_and_failures_are_forgotten() -> None:
    delays = Delays()
    assert fail_times(delays, "ada", 8) == 8
    assert delays.seconds_left("ada", 1007.5) == 0.5
    delays.fail("ada", 1000 + FORGOTTEN_SECONDS + 1)
    assert delays.seconds_left("ada", 1000 + FORGOTTEN_SECONDS + 1) == 0


def test_table_of_delays_is_bounded_and_keeps_who_failed_last() -> None:
    delays = Delays(most=50)
    for number in range(500):
        fail_times(delays, f"user {number}", 6)
    assert len(delays) == 50
    assert delays.seconds_left("user 499", 1000) == 2
    assert delays.seconds_left("user 0", 1000) == 0


def test_who_guesses_one_user_from_everywhere_and_one_who_guesses_all_users_from_one_place_wait() -> None:
    doors = Doors()
    for number in range(6):
        doors.fail("ada", f"198.51.100.{number}", 1000)
        doors.fail(f"user {number}", HERE, 1000)
    assert doors.seconds_left("ada", THERE, 1000) == 2
    assert doors.seconds_left("bob", HERE, 1000) == 2
    assert doors.seconds_left("bob", THERE, 1000) == 0


def test_others_cannot_keep_a_user_out_of_where_the_user_has_signed_in() -> None:
    doors = Doors()
    doors.succeed("ada", HERE)
    for _ in range(20):
        doors.fail("ada", THERE, 1000)
        doors.fail("bob", HERE, 1000)
    assert doors.seconds_left("ada", HERE, 1000) == 0
    for _ in range(6):
        doors.fail("ada", HERE, 1000)
    assert doors.seconds_left("ada", HERE, 1000) == 2  # from there the user can be guessed no faster


def test_own_password_does_not_free_an_address_to_go_on_guessing() -> None:
    doors = Doors()
    for number in range(8):
        doors.fail(f"user {number}", HERE, 1000)
    doors.succeed("eve", HERE)
    assert doors.seconds_left("user 9", HERE, 1000) == 8


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:aaaa::7", "2001:db8:1:2::/64"),
        ("unix", "unix"),
        ("", ""),
    ],
)
def test_client_is_an_address_or_the_network_that_it_can_choose_from(address: str, network: str) -> None:
    assert network_of(address) == network


# --- the queue


class SlowHasher:
    """Like argon2 on a busy machine: nobody leaves before ``go`` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.calls = 0

    def hash(self, password: str) -> str:
        return QUICK.hash(password)

    def verify(self, hashed: str, password: str) -> bool:
        self.calls += 1
        if password != PASSWORD:
            self.go.wait(60)
        return argon2.PasswordHasher().verify(hashed, password)


def make_gate() -> Gate:
    names = ("ada", "bob")
    return Gate({name: Account(Actor(name, Role.VIEWER), QUICK.hash(PASSWORD)) for name in names})


async def outcome(gate: Gate, name: str, password: str, address: str) -> str:
    try:
        await gate.check(name, password, address)
    except (Unauthenticated, TooManyRequests) as error:
        return error.code
    return "in"


def test_flood_fills_only_its_share_of_the_queue_and_holds_up_no_verified_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = SlowHasher()

    async def flood() -> tuple[list[str], str, int]:
        gate = make_gate()
        assert await outcome(gate, "bob", PASSWORD, THERE) == "in"
        monkeypatch.setattr(auth, "_hasher", slow)
        tries = [asyncio.create_task(outcome(gate, "ada", f"wrong {number}", HERE)) for number in range(300)]
        await happens(lambda: sum(each.done() for each in tries) >= 300 - MOST_WAITING_OF_ADDRESS)
        verified = await asyncio.wait_for(outcome(gate, "bob", PASSWORD, HERE), 60)  # from the same address
        waiting = gate._waiting.total()
        slow.go.set()
        return await asyncio.gather(*tries), verified, waiting

    ends, verified, waiting = asyncio.run(flood())
    assert verified == "in"
    assert waiting == MOST_WAITING_OF_ADDRESS
    assert ends.count("too_many_requests") == 300 - MOST_WAITING_OF_ADDRESS
    assert slow.calls == MOST_WAITING_OF_ADDRESS


def test_queue_is_bounded_for_all_addresses_together(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowHasher()

    async def flood() -> list[str]:
        gate = make_gate()
        monkeypatch.setattr(auth, "_hasher", slow)
        tries = [asyncio.create_task(outcome(gate, "ada", "wrong", f"10.0.0.{number}")) for number in range(200)]
        await happens(lambda: sum(each.done() for each in tries) >= 200 - MOST_WAITING)
        slow.go.set()
        return await asyncio.gather(*tries)

    assert asyncio.run(flood()).count("too_many_requests") == 200 - MOST_WAITING
    assert slow.calls == MOST_WAITING


def test_unknown_name_takes_argon2_as_long_as_a_wrong_password(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowHasher()
    gate = make_gate()
    monkeypatch.setattr(auth, "_hasher", slow)
    slow.go.set()
    assert asyncio.run(outcome(gate, "nobody", "wrong", HERE)) == "unauthenticated"
    assert slow.calls == 1
    right = argon2.extract_parameters(argon2.PasswordHasher().hash(PASSWORD))
    assert argon2.extract_parameters(gate._nobody) == right


def test_no_start_waits_for_argon2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(argon2.PasswordHasher, "hash", None)
    assert Gate({})._nobody != Gate({})._nobody


def test_password_is_not_looked_at_while_the_delay_runs() -> None:
    async def guess() -> list[str]:
        gate = make_gate()
        ends = [await outcome(gate, "ada", f"wrong {number}", HERE) for number in range(5)]
        return [*ends, await outcome(gate, "ada", PASSWORD, HERE), await outcome(gate, "bob", PASSWORD, THERE)]

    assert asyncio.run(guess()) == ["unauthenticated"] * 5 + ["too_many_requests", "in"]


# --- log and trail


def noted(failed: FailedSignIns, *given: tuple[str, str]) -> None:
    async def note_all() -> None:
        for name, address in given:
            await failed.note(name, address, "password")

    asyncio.run(note_all())


def test_first_failure_is_written_at_once_and_the_others_of_a_minute_as_one(caplog: pytest.LogCaptureFixture) -> None:
    rows: list[Action] = []
    failed = FailedSignIns(rows.append)
    with caplog.at_level(logging.WARNING):
        noted(failed, *[("ada", HERE)] * 13)
        assert [(row.actor, row.count, row.outcome) for row in rows] == [("ada", 1, "denied")]
        failed.flush()
    assert [(row.action, row.count, row.message) for row in rows[1:]] == [
        ("session.sign_in", 12, f"12 failed sign-ins from {HERE}: password.")
    ]
    assert caplog.messages[1:] == [f"12 failed sign-ins of 'ada' from {HERE} (password)"]
    failed.flush()
    assert len(rows) == 2


def test_who_goes_on_gets_one_row_a_minute() -> None:
    rows: list[Action] = []
    failed = FailedSignIns(rows.append)
    for _ in range(3):
        noted(failed, *[("ada", HERE)] * 10)
        failed.flush()
    assert [row.count for row in rows] == [1, 9, 10, 10]


def test_rows_are_bounded_however_many_names_and_addresses_are_tried() -> None:
    rows: list[Action] = []
    failed = FailedSignIns(rows.append)
    noted(failed, *[(f"user {number}", HERE) for number in range(2000)])
    failed.flush()
    assert len(rows) == 7
    assert sum(row.count or 0 for row in rows) == 2000
    assert (rows[-1].actor, rows[-1].count) == (OTHER_USERS, 1994)
    rows.clear()
    noted(failed, *[("ada", f"10.0.{number // 250}.{number % 250}") for number in range(2000)])
    failed.flush()
    assert len(rows) <= MOST_WINDOWS + 2
    assert sum(row.count or 0 for row in rows) == 2000
    assert OTHER_ADDRESSES in str(rows[-1].message) or rows[-1].actor == OTHER_USERS


def test_names_of_earlier_minutes_are_not_counted_against_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[Action] = []
    failed = FailedSignIns(rows.append)
    for minute in range(12):
        monkeypatch.setattr("celery_monitor.web.security.auth.time.time", lambda now=1000.0 + 60 * minute: now)
        noted(failed, (f"user {minute}", HERE))
    assert [row.actor for row in rows] == [f"user {minute}" for minute in range(12)]


def test_name_of_control_characters_surrogates_or_great_length_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    rows: list[Action] = []
    with caplog.at_level(logging.WARNING):
        noted(FailedSignIns(rows.append), ("a\x1b[31m\nb\0" + "x" * 5000, HERE), ("\ud800", THERE))
    assert all(message.isprintable() and len(message) < 250 for message in caplog.messages)
    assert all("\0" not in row.actor and len(row.actor) <= 100 for row in rows)
    assert rows[1].actor.encode()


def test_trail_that_cannot_be_written_changes_nothing_for_the_guest(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_: Action) -> None:
        raise StoreUnavailable("the disk is full")

    noted(FailedSignIns(refuse), ("ada", HERE))
    assert "the disk is full" in caplog.text


# --- at the real doors


@pytest.fixture
def client(sqlite_url: str) -> Iterator[TestClient]:
    broker = Broker("shop", "redis://127.0.0.1:1/0")
    settings = Settings(database=sqlite_url, basic_auth=(user("vera", "viewer", PASSWORD),), broker=(broker,))
    with serving(settings, sqlite_url) as app:
        perform_locally(settings, "user.add", name="ada", password=PASSWORD, role_name="operator")
        yield TestClient(app, base_url=BASE, follow_redirects=False, client=(HERE, 4711))
        app.state.failed_sign_ins.flush()


def denied(client: TestClient) -> list[tuple[str, int | None, str | None]]:
    store: Store = client.app.state.store  # type: ignore[attr-defined]
    found = read_actions(store, action="session.sign_in", outcome="denied").items
    return [(each.actor, each.count, each.message) for each in found]


def test_every_door_writes_failures_to_the_trail(client: TestClient) -> None:
    assert client.post("/sign-in", data={"name": "ada", "password": "wrong"}, headers=OWN_PAGE).status_code == 401
    assert client.get("/api/v1/tasks", auth=("vera", "wrong")).status_code == 401
    assert client.get("/api/v1/tasks", headers={"Authorization": "Bearer cmt_no"}).status_code == 401
    settings = client.app.state.settings  # type: ignore[attr-defined]
    secret = perform_locally(settings, "token.make", name="old", days=1e-9).secret
    assert client.get("/api/v1/tasks", headers={"Authorization": f"Bearer {secret}"}).status_code == 401
    assert denied(client) == [
        ("token:old", 1, f"1 failed sign-in from {HERE}: API token."),
        ("an unknown API token", 1, f"1 failed sign-in from {HERE}: API token."),
        ("vera", 1, f"1 failed sign-in from {HERE}: password."),
        ("ada", 1, f"1 failed sign-in from {HERE}: password."),
    ]


def test_page_and_api_say_when_to_try_again(client: TestClient) -> None:
    for _ in range(6):
        page = client.post("/sign-in", data={"name": "ada", "password": "wrong"}, headers=OWN_PAGE)
    api = client.get("/api/v1/tasks", auth=("ada", PASSWORD))
    for response in (page, api):
        assert response.status_code == 429
        assert 1 <= int(response.headers["retry-after"]) <= 2
        assert "try again in" in response.text
    assert api.json()["error"]["code"] == "too_many_requests"
    client.app.state.failed_sign_ins.flush()  # type: ignore[attr-defined]
    assert [count for _, count, _ in denied(client)] == [6, 1]


def test_session_and_verified_password_open_while_their_address_and_name_are_delayed(client: TestClient) -> None:
    assert client.get("/api/v1/tasks", auth=("vera", PASSWORD)).status_code == 200
    assert client.post("/sign-in", data={"name": "ada", "password": PASSWORD}, headers=OWN_PAGE).status_code == 303
    for number in range(30):
        client.get("/api/v1/tasks", auth=(("vera", "ada", "eve")[number % 3], f"wrong {number}"))
    assert client.get("/api/v1/tasks", auth=("eve", "wrong")).status_code == 429
    assert client.get("/api/v1/tasks", auth=("vera", PASSWORD)).status_code == 200
    assert client.get("/api/v1/tasks").status_code == 200  # by the session's cookie


def test_name_that_no_database_can_hold_is_a_wrong_name(client: TestClient) -> None:
    assert client.get("/api/v1/tasks", auth=("a\0b", "wrong")).status_code == 401
    assert denied(client)[0][0] == "a�b"


@pytest.mark.parametrize("path", ["/", "/tasks", "/sign-in", "/api/v1/tasks", "/account", "/nowhere", "/metrics"])
def test_pages_and_answers_are_stored_nowhere(client: TestClient, path: str) -> None:
    client.post("/sign-in", data={"name": "ada", "password": PASSWORD}, headers=OWN_PAGE)
    assert client.get(path).headers["cache-control"] == "no-store"
    assert client.post(path, headers=OWN_PAGE).headers["cache-control"] == "no-store"


def test_static_files_are_kept(client: TestClient) -> None:
    version = client.app.state.static_version  # type: ignore[attr-defined]
    assert "immutable" in client.get(f"/static/{version}/app.js").headers["cache-control"]
