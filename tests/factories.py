"""Records for tests. Values differ from defaults, so that a test which reads a default fails."""

import json
from itertools import count
from uuid import UUID

from celery_monitor.records.event import READ_BY_US, Event, Message
from celery_monitor.records.task import Run, Task, TaskState

NOW = 1_780_000_000.0
_numbers = count(1)


def make_id(number: int | None = None) -> str:
    """A UUID that is the same in each run of the tests."""
    return str(UUID(int=(number if number is not None else next(_numbers)) + (7 << 96)))


def make_event(type: str, **fields: object) -> Event:  # noqa: A002
    """An event of worker1@shop (pid 4711), a task's own unless the type says worker."""
    given: dict[str, object] = {"timestamp": NOW, "hostname": "worker1@shop", "pid": 4711, "clock": 9, **fields}
    if type.startswith("task-"):
        given.setdefault("uuid", make_id(0))
    return Event(type=type, **given)  # type: ignore[arg-type]


def make_run(**fields: object) -> Run:
    given: dict[str, object] = {
        "worker": "worker1@shop",
        "pid": 4711,
        "retries": 2,
        "received": NOW,
        "started": NOW + 0.25,
        **fields,
    }
    return Run(**given)  # type: ignore[arg-type]


def make_task(**fields: object) -> Task:
    given: dict[str, object] = {
        "cluster": "shop",
        "id": make_id(),
        "state": TaskState.STARTED,
        "name": "shop.pay.charge",
        "queue": "payments",
        "args": "(31, 'EUR')",
        "kwargs": "{'card': 'visa'}",
        "runs": [make_run()],
        **fields,
    }
    return Task(**given)  # type: ignore[arg-type]


def make_message(task_id: str, *, body: bytes | None = None, **fields: object) -> Message:
    """A captured JSON message of the task shop.pay.charge(31, card='visa')."""
    default = b'[[31], {"card": "visa"}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
    texts = {"argsrepr": "(31,)", "kwargsrepr": "{'card': 'visa'}"}
    own = {"id": task_id, "task": "shop.pay.charge", "root_id": task_id, "retries": 0}
    headers = {**own, **texts, **_given(fields, "headers")}
    properties = {"priority": 4, "correlation_id": task_id, "delivery_mode": 1, **_given(fields, "properties")}
    given: dict[str, object] = {
        "why": "failed",
        "body": default if body is None else body,
        "size": len(default if body is None else body),
        "headers": json.dumps(headers),
        "properties": json.dumps(properties),
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "exchange": "",
        "routing_key": "payments",
        "queue": "payments",
        **({} if fields.get("why") in READ_BY_US else {"worker": "worker1@shop", "pid": 4711}),
        "args": headers["argsrepr"],
        "kwargs": headers["kwargsrepr"],
        **fields,
    }
    return Message(**given)  # type: ignore[arg-type]


def make_captured_task(task_id: str, **fields: object) -> Task:
    """The failed task of ``make_message``: sent, received and ended by the worker that announces its message."""
    given: dict[str, object] = {
        "id": task_id,
        "state": TaskState.FAILURE,
        "args": "(31,)",
        "kwargs": "{'card': 'visa'}",
        "sent": NOW - 1,
        "exchange": "",
        "routing_key": "payments",
        "runs": [make_run(retries=0, ended=NOW + 2)],
        **fields,
    }
    return make_task(**given)


def _given(fields: dict[str, object], name: str) -> dict[str, object]:
    value = fields.pop(name, {})
    assert isinstance(value, dict)
    return value
