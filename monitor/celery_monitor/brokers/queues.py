"""Queues on any transport that kombu reaches: depth, age of the oldest message, and a waiting message as it is shown.

The base of the transports that can do more. Celery's messages have no send time. A message that was at the head of a
queue at an earlier sample was sent before that sample: a lower bound of its age. A new head proves nothing by itself,
but while a message that was the newest at an earlier sample is still in the queue, all before it are at least as old.

Messages are read without the sender's code: only JSON is decoded, everything else stays bytes.
"""

from abc import ABC, abstractmethod
from base64 import b64decode
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol, Self

import msgspec
from kombu import Connection

from celery_monitor.brokers.connection import app_for, explained
from celery_monitor.core.sanitize import LATEST_TIME, Redactor
from celery_monitor.core.untrusted import NotJson, decode_json, plain_value
from celery_monitor.errors import BrokerUnavailable, NotFound
from celery_monitor.records.queue import Queue
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

LONGEST_NAME = 255  # bytes of an AMQP short string: nobody has a queue of a longer name, whatever events say


class Probe(Protocol):
    """Measures queues of one cluster. For one thread."""

    def sample(self, queue_names: Sequence[str]) -> list[Queue]:
        """One Queue per name, in order. Raises BrokerUnavailable; the next sample connects again."""
        ...

    def close(self) -> None: ...


class GenericProbe:
    """The number of waiting messages from a passive declaration. Virtual transports don't count consumers."""

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self.broker = broker
        self.settings = settings
        self.heads = QueueHeads()
        self._connection: Connection | None = None

    def sample(self, queue_names: Sequence[str]) -> list[Queue]:
        try:
            with explained(self.broker.url):
                return self.measure(self._connected(), queue_names)
        except BrokerUnavailable:
            self.close()
            raise

    def measure(self, connection: Connection, queue_names: Sequence[str]) -> list[Queue]:
        """``sample`` over an open connection; may raise whatever the broker's library raises."""
        with PassiveDeclarations(connection) as declarations:
            found = [declarations.declare(name) for name in queue_names]
        return [
            Queue(cluster=self.broker.cluster, name=name, ready=declared.message_count if declared else None)
            for name, declared in zip(queue_names, found, strict=True)
        ]

    def close(self) -> None:
        """Closes the connection, which may be lost already."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.collect()

    def new_connection(self) -> Connection:
        connection: Connection = app_for(self.broker, self.settings).connection_for_read(heartbeat=0)
        return connection

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self.new_connection()
        self._connection.ensure_connection(max_retries=1, interval_start=0)
        return self._connection


class PassiveDeclarations:
    """Passive declarations on one channel, which is replaced when a refusal closes it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._channel: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def declare(self, name: str) -> Any:
        """The broker's answer for one queue; ``None`` where it does not exist or access is refused."""
        if len(name.encode()) > LONGEST_NAME:
            return None
        if self._channel is None:
            self._channel = self._connection.channel()
        try:
            return self._channel.queue_declare(queue=name, passive=True)
        except self._connection.channel_errors:
            self._close()
            return None

    def _close(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


MOST_MARKERS = 32
LARGEST_MARKER = 8192  # bytes


class _Head(NamedTuple):
    identity: object
    since: float
    ready: int | None = None


class QueueHeads:
    """Remembers the head of each queue between samples. No I/O, no clock."""

    def __init__(self) -> None:
        self._heads: dict[str, _Head] = {}

    def observe(self, queue: str, identity: object | None, now: float, ready: int | None = None) -> float | None:
        """The time at or before which the head was sent; ``None``: unknown. Without identity no head is visible.

        With ``ready``, a queue that shrinks has a new head: no counter shows what is purged or expires.
        """
        last = self._heads.get(queue)
        if identity is None:
            self._heads.pop(queue, None)
            return None
        shrank = last is not None and ready is not None and last.ready is not None and ready < last.ready
        if last is None or last.identity != identity or shrank:
            self._heads[queue] = _Head(identity, now, ready)
            return None
        self._heads[queue] = last._replace(ready=ready)
        return last.since

    def backdate(self, queue: str, since: float | None) -> float | None:
        """Other evidence shows that the new head was in the queue at this time."""
        if since is not None:
            self._heads[queue] = self._heads[queue]._replace(since=since)
        return since


class Marker(NamedTuple):
    """A message that was the newest of its queue at that time."""

    since: float
    payload: bytes


class Markers:
    """The newest messages of one queue at earlier samples, the oldest first, at most MOST_MARKERS. No I/O, no clock."""

    def __init__(self) -> None:
        self._markers: deque[Marker] = deque()

    def observe(self, newest: bytes | None, now: float) -> None:
        """Adds a sample. An empty queue has no markers; large messages are skipped, as each is sent back to search."""
        if newest is None:
            self._markers.clear()
        elif len(newest) <= LARGEST_MARKER and (not self._markers or self._markers[-1].payload != newest):
            self._markers.append(Marker(now, newest))
            if len(self._markers) > MOST_MARKERS:  # half of them give the same bound, only less precisely
                self._markers = deque(list(self._markers)[::2])

    def since(self, is_queued: Callable[[bytes], bool | None]) -> float | None:
        """When the oldest marker that is still in the queue was observed: the head was sent before.

        Markers leave the queue in their order, so half of them are skipped at once. ``None``: none is in the queue, or
        that is unknown of the oldest.
        """
        while self._markers:
            queued = is_queued(self._markers[0].payload)
            if queued is not False:
                return self._markers[0].since if queued else None
            self._markers.popleft()
            middle = len(self._markers) // 2
            if middle and is_queued(self._markers[middle].payload) is False:
                for _ in range(middle + 1):
                    self._markers.popleft()
        return None


JSON_TYPES = {"application/json", "application/data"}
SHOWN = 1000  # characters of arguments, or bytes of what is not JSON
MOST_BODY = 1_000_000  # bytes decoded; the sender's own text of the arguments is shown beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueMessage:
    """``digest`` identifies exactly this message; ``body`` is bytes as text, where it is not JSON.

    ``sent`` (epoch seconds) is set only where the broker stamps messages, or the record has the task.
    """

    digest: str
    size: int
    id: str | None = None
    task: str | None = None
    args: str | None = None
    kwargs: str | None = None
    body: str | None = None
    content_type: str | None = None
    priority: int | None = None
    eta: str | None = None
    expires: str | None = None
    retries: int | None = None
    redelivered: bool | None = None
    sent: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadMessages:
    """Messages in the order of delivery. ``more``: others wait behind. ``hazard``: a side effect of reading."""

    messages: tuple[QueueMessage, ...]
    more: bool
    hazard: str | None = None


class QueueMessages(ABC):
    """The messages of one queue, over a new connection for each call.

    Raises BrokerUnavailable, NotFound, and Unsupported for what the broker cannot do.
    """

    after_purge = ""  # what else there is to know

    def __init__(self, broker: Broker, settings: Settings, queue: str) -> None:
        self.broker = broker
        self.settings = settings
        self.queue = queue
        self.redactor = Redactor(settings.redact)

    @abstractmethod
    def read(self, limit: int) -> ReadMessages:
        """The next messages to be delivered; fewer than ``limit`` where they are large."""

    @abstractmethod
    def delete(self, digest: str) -> Any:
        """Removes one message and returns it as the transport has it; ``None``: a worker received it meanwhile.

        Raises NotFound where it is not among the messages that are searched.
        """

    @abstractmethod
    def purge(self, see: Callable[[Any], bool]) -> int:
        """Removes every message and returns their number. ``see`` gets each one until it returns False."""

    def not_found(self, searched: int) -> NotFound:
        return NotFound(f"Not among the next {searched} messages of {self.queue}: a worker may have received it.")


def digest_of(*parts: bytes) -> str:
    """Identifies exactly this content."""
    whole = blake2b(digest_size=16)
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def describe_payload(payload: bytes, redactor: Redactor) -> QueueMessage:
    """A message as virtual transports store it: JSON around a body in base64."""
    digest = digest_of(payload)
    try:
        stored = decode_json(payload)
        properties = _mapping(stored.get("properties"))
        body = stored.get("body") or ""
        raw = b64decode(body) if properties.get("body_encoding") == "base64" else str(body).encode()
        envelope = {**properties, "content_type": stored.get("content-type"), "headers": stored.get("headers")}
    except (ValueError, TypeError, AttributeError):
        return QueueMessage(digest=digest, size=len(payload), body=_bytes(payload, redactor))
    return describe(raw, envelope, digest, redactor)


def describe(raw: bytes, envelope: Mapping[str, object], digest: str, redactor: Redactor) -> QueueMessage:
    """A message by its body and its properties, the headers among them. Its secrets are masked."""
    stamped = envelope.get("timestamp")  # AMQP's is a time, which is no plain value
    envelope = plain_value(envelope)
    headers = _mapping(envelope.get("headers"))
    kind = _text(envelope.get("content_type"))
    delivery = _mapping(envelope.get("delivery_info"))
    fields = _body_fields(raw, kind, headers)
    redelivered = envelope.get("redelivered")
    return QueueMessage(
        digest=digest,
        size=len(raw),
        id=_text(headers.get("id")) or _text(fields.get("id")) or _text(envelope.get("correlation_id")),
        task=_text(headers.get("task")) or _text(fields.get("task")),
        args=_masked(fields.get("args"), redactor),
        kwargs=_masked(fields.get("kwargs"), redactor),
        body=None if _is_plain_json(raw, kind, headers) and "args" in fields else _bytes(raw, redactor),
        content_type=kind,
        priority=_integer(envelope.get("priority", delivery.get("priority"))),
        eta=_text(headers.get("eta")) or _text(fields.get("eta")),
        expires=_text(headers.get("expires")) or _text(fields.get("expires")),
        retries=_integer(headers.get("retries", fields.get("retries"))),
        redelivered=redelivered if isinstance(redelivered, bool) else None,
        sent=_sent_at(headers, stamped),
    )


def _body_fields(raw: bytes, kind: str | None, headers: Mapping[str, object]) -> Mapping[str, object]:
    """args and kwargs as text; in Celery's protocol 1 every other field too.

    A body that is not plain JSON is not decoded: the sender's text of the arguments is used, if there is one.
    """
    from_headers = {name: headers[f"{name}repr"] for name in ("args", "kwargs") if headers.get(f"{name}repr")}
    if not _is_plain_json(raw, kind, headers):
        return from_headers
    try:
        value = decode_json(raw)
    except NotJson:
        return from_headers
    if isinstance(value, list) and len(value) == 3:
        return {"args": repr(value[0]), "kwargs": repr(value[1])}
    if isinstance(value, dict) and "task" in value:
        return {**value, "args": repr(value.get("args")), "kwargs": repr(value.get("kwargs"))}
    return from_headers


def _is_plain_json(raw: bytes, kind: str | None, headers: Mapping[str, object]) -> bool:
    return kind in JSON_TYPES and len(raw) <= MOST_BODY and not headers.get("compression")


def _masked(text: object, redactor: Redactor) -> str | None:
    if text is None:
        return None
    masked = redactor.text(str(text))
    return masked if len(masked) <= SHOWN else f"{masked[:SHOWN]}…"


def _bytes(raw: bytes, redactor: Redactor) -> str:
    """The beginning, as Python writes bytes. The end of a secret in it cannot be found, so it is cut there."""
    return redactor.cut(repr(raw[:SHOWN])[2:-1])


def _sent_at(headers: Mapping[str, object], stamped: object) -> float | None:
    """From RabbitMQ's message timestamp plug-in, in milliseconds; else from the property, in seconds."""
    exact = headers.get("timestamp_in_ms")
    try:
        at = exact / 1000 if isinstance(exact, int) else stamped.timestamp() if isinstance(stamped, datetime) else 0.0
    except (ValueError, OverflowError, OSError):
        return None
    return at if 0 < at < LATEST_TIME else None


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


class _Headers(msgspec.Struct):
    id: str | None = None


class _Envelope(msgspec.Struct):
    headers: _Headers | None = None


_read_envelope = msgspec.json.Decoder(_Envelope).decode


def task_id_of(payload: bytes) -> str | None:
    """The task of a message as virtual transports store it; ``None`` where it is not a task's message."""
    try:
        headers = _read_envelope(payload).headers
    except ValueError:
        return None
    return None if headers is None else headers.id
