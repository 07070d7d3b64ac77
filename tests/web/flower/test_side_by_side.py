"""Our answers beside those of Flower itself, on one broker with one worker."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.web.flower.calls import CALLS, Call
from tests.web.flower.peers import Answer, Peers, Side, running_peers
from tests.workers import ROOT, wait_for

DOCUMENT = ROOT / "docs" / "flower.md"
VALUES = ("uuid", "name", "state", "worker", "args", "kwargs", "result", "exception", "retries", "exchange",
          "routing_key", "client", "root_id", "parent_id", "eta", "received", "started", "succeeded", "failed",
          "revoked", "runtime", "sent")  # fmt: skip
SOMETIMES = {"queues"}  # on RabbitMQ alone
ELSEWHERE = {"order", "clock", "streamed", "heads", "one-end"}  # differences that are not of one call
ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture(scope="module", params=["redis", "amqp"])
def peers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    redis_url: str = request.getfixturevalue("redis_service")
    amqp_url: str = request.getfixturevalue("rabbitmq_service") if request.param == "amqp" else redis_url
    with running_peers(amqp_url, redis_url, tmp_path_factory.mktemp("peers")) as running:
        yield running


def differences() -> dict[str, str]:
    """The table of docs/flower.md: names of deliberate differences, and their reasons."""
    section = DOCUMENT.read_text(encoding="utf-8").partition("## Deliberate differences")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", section, re.MULTILINE))


def ask(peers: Peers, side: Side, call: Call) -> Answer:
    known = {"worker": peers.worker.hostname, "side": side.name, **peers.ids}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(each) for key, each in value.items()}
        return re.sub(r"\{(\w+)\}", lambda each: known[each[1]], value) if isinstance(value, str) else value

    answer = side.call(call.method, filled(call.path), filled(call.form), filled(call.body), call.headers)
    if "/pool/" in call.path:  # a worker whose pool changes answers nobody
        wait_for(peers.worker.app.control.inspect([peers.worker.hostname]).ping, what="the worker's answer")
    return answer


def shape(answer: Answer, side: Side, call: Call) -> dict[str, Any]:
    """What must be equal: status, type, keys to the second level, and messages."""
    body: Any = named(answer.text, side)
    if "json" in answer.kind:
        body = answer.json
        for task in (body, *body.values()) if isinstance(body, dict) else ():
            if isinstance(task, dict) and "uuid" in task:
                del task["clock"]  # the difference ``clock``
        body = [sorted(each) for each in body.values()] if call.any_tasks else keys(body, side)
    return {"status": answer.status, "kind": answer.kind.lower(), "body": body}


def keys(value: Any, side: Side) -> Any:
    if isinstance(value, dict):
        return {name: sorted(each) if isinstance(each, dict) else plain(each, side) for name, each in value.items()}
    return plain(value, side)


def plain(value: Any, side: Side) -> Any:
    """Texts as they are, but for ids; of a fraction only that it is one."""
    if isinstance(value, list):
        return [plain(each, side) for each in value]
    if isinstance(value, str):
        return named(value, side)
    return "fraction" if isinstance(value, float) else value


def named(text: str, side: Side) -> str:
    return ID.sub("…", text).replace(side.name, "side")


def test_tasks_have_flowers_values(peers: Peers) -> None:
    theirs, ours = (side.get("/api/tasks?limit=100&sort_by=received") for side in (peers.flower, peers.ours))
    for task_id in peers.ids.values():
        for name in VALUES:
            expected = theirs[task_id][name]
            if isinstance(expected, float):
                expected = pytest.approx(expected, abs=1e-3)
            assert ours[task_id][name] == expected, (theirs[task_id]["name"], name)


@pytest.mark.parametrize("path", ["/api/task/types", "/api/tasks?limit=3&sort_by=-received", "/api/workers?status=1"])
def test_an_answer_is_not_sent_to_who_has_it(peers: Peers, path: str) -> None:
    for side in (peers.flower, peers.ours):
        first = side.call("GET", path)
        assert first.tag is not None
        again = side.call("GET", path, headers={"If-None-Match": first.tag})
        assert (again.status, again.body) == (304, b"")


def test_an_aborted_task_ends_itself(peers: Peers) -> None:
    for side in (peers.flower, peers.ours):
        sent = side.call("POST", "/api/task/async-apply/basic.wait_for_abort", body={"args": [30]}).json
        task = f"/api/task/info/{sent['task-id']}"
        wait_for(
            lambda of=side, path=task: of.call("GET", path).status == 200 and of.get(path)["started"], what="start"
        )
        assert side.call("POST", f"/api/task/abort/{sent['task-id']}").status == 200
        ended = side.get(f"/api/task/result/{sent['task-id']}?timeout=20")
        assert ended["result"] == "aborted"


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_answer_is_flowers(peers: Peers, call: Call) -> None:
    theirs, ours = (shape(ask(peers, side, call), side, call) for side in (peers.flower, peers.ours))
    assert (ours == theirs) is not bool(call.differs) or call.differs in SOMETIMES


def test_every_difference_is_used_by_a_call() -> None:
    assert set(differences()) == {call.differs for call in CALLS if call.differs} | ELSEWHERE


def test_document_has_the_numbers_of_the_table() -> None:
    different = sum(bool(call.differs) for call in CALLS)
    numbers = f"{len(CALLS)} calls: {len(CALLS) - different} are answered alike, {different} differ on purpose"
    assert numbers in DOCUMENT.read_text(encoding="utf-8")
