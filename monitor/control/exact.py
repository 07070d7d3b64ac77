"""Sending a captured message again: the same bytes, headers, route and links, as a task of its own."""

import json
import re
from datetime import UTC
from datetime import datetime
from datetime import timedelta
from typing import Any

from celery.utils.saferepr import saferepr
from kombu.utils.json import loads

from monitor.brokers.publish import Copy
from monitor.brokers.publish import Route
from monitor.errors import Conflict
from monitor.messages import JSON
from monitor.messages import Unreadable
from monitor.messages import json_text
from monitor.records import Message

# Native delayed delivery puts these in front of a routing key: kombu/transport/native_delayed_delivery.py.
DELAY = re.compile(r"^(?:[01]\.){28}")
DELAYED_EXCHANGE = "celery_delayed_"
# What brokers write into headers of a message that was delivered before.
DELIVERY_HEADERS = ("redelivered", "x-delivery-count", "x-acquired-count", "x-opt-")
DEAD_LETTER = re.compile(r"^x-(?:first-|last-)?death")
# Kept of the properties; the others are of one delivery, or (user_id) only true of who sent it first.
PROPERTIES = ("priority", "delivery_mode", "reply_to", "message_id", "timestamp", "type", "app_id")
REPR_LENGTH = 1024  # as Celery's own

Arguments = tuple[list[object], dict[str, object]]


def route_of(message: Message) -> Route:
    """Where the message came from; out of native delayed delivery, the queue that it was for."""
    exchange, key = message.exchange or "", message.routing_key or ""
    undelayed = DELAY.sub("", key)
    if undelayed != key or DELAYED_EXCHANGE in exchange:
        return Route("", message.queue or undelayed)
    return Route(exchange, key) if key else Route("", message.queue or "")


def copy_of(
    message: Message,
    task_id: str,
    new_id: str,
    route: Route,
    countdown: float | None = None,
    edited: Arguments | None = None,
) -> Copy:
    """The message with a new id, no retries yet, no expiry, and an ETA only by ``countdown``, in seconds.

    ``edited`` replaces the arguments of a JSON body; links stay. Raises Conflict where the body cannot be opened.
    """
    headers = _headers(message, task_id, new_id, countdown)
    body = message.body or b""
    if edited is not None:
        body = _edited_body(message, edited)
        headers.pop("compression", None)
        headers |= {name: saferepr(value, REPR_LENGTH) for name, value in zip(REPRS, edited, strict=True)}
    given: dict[str, Any] = loads(message.properties)
    properties = {name: given[name] for name in PROPERTIES if given.get(name) is not None}
    if str(given.get("expiration", "")).isdecimal():
        properties["expiration"] = int(given["expiration"]) / 1000  # milliseconds on the wire, seconds for kombu
    return Copy(
        id=new_id,
        route=route,
        queue=message.queue,
        body=body,
        content_type=message.content_type or JSON,
        content_encoding=message.content_encoding,
        headers=headers,
        properties={**properties, "correlation_id": new_id},
    )


REPRS = ("argsrepr", "kwargsrepr")


def _headers(message: Message, task_id: str, new_id: str, countdown: float | None) -> dict[str, Any]:
    given: dict[str, Any] = loads(message.headers)
    headers = {
        name: value
        for name, value in given.items()
        if not name.startswith(DELIVERY_HEADERS) and not DEAD_LETTER.match(name)
    }
    eta = None if countdown is None else (datetime.now(UTC) + timedelta(seconds=countdown)).isoformat()
    headers |= {"id": new_id, "retries": 0, "eta": eta, "expires": None}
    # A task that Celery retried names itself as its parent.
    headers |= {name: new_id for name in ("root_id", "parent_id") if headers.get(name) == task_id}
    return headers


def _edited_body(message: Message, edited: Arguments) -> bytes:
    try:
        document = json.loads(json_text(message))
    except (Unreadable, ValueError) as error:
        raise Conflict(f"Its arguments cannot be replaced: {error}.") from None
    links = document[2] if isinstance(document, list) and len(document) > 2 else {}
    return json.dumps([*edited, links]).encode()
