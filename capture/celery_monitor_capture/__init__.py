"""Sends the messages of failed tasks as events, so that celery-monitor can retry them exactly. Runs in your workers.

One line of your application's configuration::

    app.conf.task_annotations = {"*": {"Request": "celery_monitor_capture:Request"}}

or ``celery_monitor_capture.install(app)``, which keeps existing annotations. A task that fails for good, is rejected or
is revoked then sends one more event, ``capture-message``, with its original message: body, headers, properties and
route. Tasks that succeed or will be retried cost nothing.

``celery_monitor_capture:RequestOnReceive`` sends each message when it is received instead, so that a task whose worker
is killed can be retried exactly as well. It costs an event with the whole message for every task.

With a key, which the monitor has as well, each message is signed, so that nobody else can announce one:
``CELERY_CAPTURE_KEY_FILE`` in the environment, ``capture_key_file`` in Celery's configuration, or
``install(app, key_file=...)`` names a file whose first line is the key.

Imports only Celery, kombu and the standard library, runs on Python 3.8, and never raises into the worker: a message
that cannot be captured is logged.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject, Retry
from celery.worker.request import Request as CeleryRequest
from kombu.utils.json import dumps

from celery_monitor_capture import events
from celery_monitor_capture.control import ControlQueue

EVENT = "capture-message"
GROUP = "capture"  # not ``task``: other monitors read the type of a task event as a state
LIMIT_VARIABLE = "CELERY_CAPTURE_MAX_BYTES"
DEFAULT_LIMIT = 256 * 1024
KEY_VARIABLE = "CELERY_CAPTURE_KEY_FILE"
KEY_SETTING = "capture_key_file"
SIGNED = "celery-monitor-capture 1"  # in what is signed; celery_monitor/core/captures.py checks it
PER_DELIVERY = ("delivery_info", "delivery_tag", "body_encoding", "application_headers")
# The binary delay in front of a routing key: see kombu/transport/native_delayed_delivery.py.
_DELAY = re.compile(r"^(?:[01]\.){28}")

log = logging.getLogger(__name__)
_logged: set[str] = set()  # classes of errors


def _limit() -> int:
    text = os.environ.get(LIMIT_VARIABLE, "")
    return int(text) if text.isdecimal() else DEFAULT_LIMIT


class Request(CeleryRequest):  # type: ignore[misc]  # celery has no types
    """Celery's request, which also sends the message of a task that did not succeed.

    ``max_bytes``: of a longer body only the size is sent.
    """

    max_bytes = _limit()
    _captured = False

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        """Before Celery's own handler, in which the result backend may raise."""
        if _is_over(exc_info):
            self._capture("failed")
        return super().on_failure(exc_info, *args, **kwargs)

    def on_timeout(self, soft: bool, timeout: float) -> Any:
        if not soft:
            self._capture("failed")
        return super().on_timeout(soft, timeout)

    def reject(self, requeue: bool = False) -> Any:
        if not requeue:
            self._capture("rejected")
        return super().reject(requeue=requeue)

    def _announce_revoked(self, *args: Any, **kwargs: Any) -> Any:
        self._capture("revoked")
        return super()._announce_revoked(*args, **kwargs)

    def _capture(self, why: str) -> None:
        """Sends the message, once. Never raises into the task."""
        try:
            if not self._captured:
                self._captured = True
                _send(self, why)
        except Exception as error:  # noqa: BLE001 - the worker must go on
            _log_once(error)


class RequestOnReceive(Request):
    """Sends each message when it is received, in case the worker is killed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._capture("received")


def install(
    app: Celery,
    *,
    on_receive: bool = False,
    max_bytes: int | None = None,
    key_file: str | None = None,
    event_queue: bool | str | None = None,
) -> None:
    """Captures the messages of all tasks of the application; its other annotations are kept.

    ``max_bytes`` applies to this process; the environment's CELERY_CAPTURE_MAX_BYTES to all. ``key_file``: a file with
    the key to sign with. ``event_queue``: whether events and remote control use queues of their own; by default where
    the broker carries neither; a text is the queue's name.
    """
    if key_file is not None:
        app.conf[KEY_SETTING] = key_file
    if max_bytes is not None:
        Request.max_bytes = max_bytes
    name = f"{__name__}:{'RequestOnReceive' if on_receive else 'Request'}"
    if isinstance(event_queue, str):
        app.conf[events.QUEUE_SETTING] = event_queue
    if event_queue or (event_queue is None and not events.carries_events(app)):
        events.dispatch_to_queue(app)
        app.steps["consumer"].add(ControlQueue)
    given = app.conf.task_annotations or ()
    app.conf.task_annotations = [*(given if isinstance(given, (list, tuple)) else (given,)), {"*": {"Request": name}}]


def _is_over(exc_info: Any) -> bool:
    """Whether the task will not be retried or requeued."""
    error = exc_info.exception
    if type(error).__name__ == "ExceptionWithTraceback":  # of billiard 4; Celery 5.2 has billiard 3, without it
        error = error.exc
    if isinstance(error, Reject):
        return not error.requeue
    return not isinstance(error, (Retry, Ignore))


def _send(request: Request, why: str) -> None:
    eventer = request.eventer
    if not (eventer and eventer.enabled and request.task.send_events):
        return
    if eventer.groups and GROUP not in eventer.groups:
        if "task" not in eventer.groups:
            return  # task events are off
        eventer.groups.add(GROUP)  # they were turned on by remote control
    fields = describe(request, why)
    if fields is not None:
        eventer.send(EVENT, uuid=request.id, **fields)


def describe(request: Request, why: str) -> dict[str, Any] | None:
    """The fields of the event. ``None`` for protocol 1, whose id is in the body and cannot be replaced."""
    message = request.message
    headers = dict(message.headers or {})
    if "id" not in headers or "task" not in headers:
        return None
    body, as_sent = wire_body(message)
    if not as_sent:
        headers.pop("compression", None)
    delivery = message.delivery_info or {}
    exchange, routing_key = delivery.get("exchange"), delivery.get("routing_key")
    given = {name: value for name, value in (message.properties or {}).items() if name not in PER_DELIVERY}
    described: dict[str, Any] = {
        "why": why,
        "size": len(body),
        "as_sent": as_sent,
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "headers": dumps(headers),
        "properties": dumps(given),
        "exchange": exchange,
        "routing_key": routing_key,
        "queue": queue_of(request.app, exchange, routing_key),
        **_links(request),
    }
    if len(body) <= request.max_bytes:
        described["body"] = base64.b64encode(body).decode("ascii")
    else:
        described["too_large"] = True
    key_file = os.environ.get(KEY_VARIABLE) or request.app.conf.get(KEY_SETTING)
    if key_file:
        described["signature"] = sign(described, request.id, request.eventer.hostname, read_key(str(key_file)))
    return {
        "name": request.name,
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        "message": described,
    }


@lru_cache(maxsize=8)
def read_key(path: str) -> bytes:
    """The first key in a file, which has one a line. Raises OSError and ValueError: then nothing is sent."""
    with open(path, encoding="utf-8") as file:  # noqa: PTH123
        lines = [line.strip() for line in file]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"{path} has no key")
    return keys[0].encode()


def sign(described: Mapping[str, Any], task_id: str, hostname: str, key: bytes) -> dict[str, Any]:
    """The time, and the HMAC-SHA256 of the task's id, the worker, that time and the message."""
    now = time.time()
    body = described.get("body")
    links = ("chain", "callbacks", "errbacks", "chord")
    names = ("headers", "properties", "content_type", "content_encoding", "exchange", "routing_key", "queue", "as_sent")
    fields = [
        SIGNED,
        task_id,
        hostname,
        repr(now),
        described["why"],
        *(described[name] for name in names),
        [described[name] for name in links],
        described["size"],
        None if body is None else hashlib.sha256(base64.b64decode(body)).hexdigest(),
    ]
    text = json.dumps(fields, separators=(",", ":")).encode()
    return {"time": now, "mac": hmac.new(key, text, hashlib.sha256).hexdigest()}


def wire_body(message: Any) -> tuple[bytes, bool]:
    """The body, and whether it is unchanged: on some transports kombu has already decompressed it."""
    raw = getattr(message, "_raw", None)  # of virtual transports
    if isinstance(raw, Mapping) and isinstance(raw.get("body"), (str, bytes)):
        encoding = (raw.get("properties") or {}).get("body_encoding")
        if encoding in {None, "base64"}:
            body = base64.b64decode(raw["body"]) if encoding else raw["body"]
            return _bytes(body), True
    return _bytes(message.body), "compression" not in (message.headers or {})


def _bytes(body: Any) -> bytes:
    return body.encode("utf-8") if isinstance(body, str) else bytes(body)


def queue_of(app: Celery, exchange: str | None, routing_key: str | None) -> str | None:
    """The queue that this worker consumed the message from; ``None`` if several match its route."""
    if routing_key is None:
        return None
    if not exchange:
        return routing_key
    key = _DELAY.sub("", routing_key)
    queues = app.amqp.queues.consume_from
    bound = [
        name
        for name, queue in queues.items()
        if queue.routing_key == key and (key != routing_key or (queue.exchange and queue.exchange.name == exchange))
    ]
    if len(bound) == 1:
        return str(bound[0])
    return str(next(iter(queues))) if len(queues) == 1 else None


def _links(request: Request) -> dict[str, Any]:
    """Callbacks, chain and chord: they are in the body, which a monitor cannot read if it is pickled."""
    embed = request._payload[2] or {}
    chord = embed.get("chord")
    return {
        "chain": len(embed.get("chain") or ()),
        "callbacks": len(embed.get("callbacks") or ()),
        "errbacks": len(embed.get("errbacks") or ()),
        "chord": str(chord.get("task")) if isinstance(chord, Mapping) else None,
    }


def _log_once(error: Exception) -> None:
    """Logs each class of error once."""
    kind = type(error).__name__
    if kind not in _logged:
        _logged.add(kind)
        with suppress(Exception):
            log.warning("a message could not be captured; this is logged once: %s: %s", kind, error)
