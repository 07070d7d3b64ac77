"""A pytest plugin inside Celery's suite: what the worker and the clients sent, written down where it is sent.

Copied beside the unpacked suite and loaded by its own Python, so it imports nothing of this repository. Each line of
the file that ``CONFORMANCE_SENT`` names is an event that was published, or the message of a task.
"""

import json
import os
from collections.abc import Sequence
from typing import Any

import pytest
from celery.events.dispatcher import EventDispatcher
from celery.signals import after_task_publish

LONGEST_TEST_SECONDS = float(os.environ["CONFORMANCE_TEST_SECONDS"])
file = os.open(os.environ["CONFORMANCE_SENT"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
publish: Any = EventDispatcher._publish


def write(kind: str, content: Any) -> None:
    """One write for each line: processes of the pool append to the same file."""
    os.write(file, json.dumps({"kind": kind, "pid": os.getpid(), "content": content}, default=repr).encode() + b"\n")


def publish_and_write(self: Any, event: Any, *args: Any, **kwargs: Any) -> Any:
    kept_back = len(self._outbound_buffer)
    answer = publish(self, event, *args, **kwargs)
    if len(self._outbound_buffer) == kept_back:  # else the broker was away, and the event is published later
        for each in event if isinstance(event, list) else [event]:
            write("event", each)
    return answer


EventDispatcher._publish = publish_and_write


def write_message(headers: dict[str, Any], body: Any, routing_key: str, **_: Any) -> None:
    if isinstance(body, tuple):  # protocol 2
        fields = ("id", "task", "retries", "root_id", "parent_id", "argsrepr", "kwargsrepr", "eta")
        message = {name: headers.get(name) for name in fields}
        write("message", {**message, "args": body[0], "kwargs": body[1], "routing_key": routing_key})


after_task_publish.connect(write_message, weak=False)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """The suite gives most tests 300 s; the nearest mark counts."""
    for item in items:
        item.add_marker(pytest.mark.timeout(LONGEST_TEST_SECONDS), append=False)
