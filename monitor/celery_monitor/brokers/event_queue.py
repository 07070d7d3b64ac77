"""The queues of celery_monitor_capture on brokers that carry no events: their names, and how they are found on SQS."""

import hashlib
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec

from celery_monitor.addresses import carries_events
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

LONGEST_NAME = 80  # of a queue of SQS


def uses_queues(broker: Broker, settings: Settings) -> bool:
    """Whether events and remote control go through queues of celery_monitor_capture."""
    return settings.source == "queue" or not carries_events(broker.url)


def control_prefix(event_queue: str) -> str:
    """What the names of the control queues begin with. As in celery_monitor_capture/control.py."""
    return f"{event_queue.removesuffix('.fifo')}-control-"


def control_queue(event_queue: str, hostname: str) -> str:
    """The control queue of a worker. As in celery_monitor_capture/control.py."""
    digest = hashlib.sha256(hostname.encode()).hexdigest()[:12]
    prefix = control_prefix(event_queue)
    readable = re.sub("[^A-Za-z0-9_-]", "_", hostname)[: LONGEST_NAME - len(prefix) - len(digest) - 1]
    return f"{prefix}{readable}-{digest}"


class SqsQueue(NamedTuple):
    """A queue of SQS, and the client of boto3 that reaches it."""

    client: Any
    url: str


def find_sqs_queue(channel: Any, name: str) -> SqsQueue | None:
    """A queue by its name in Celery; ``None`` where it does not exist. ``channel`` is kombu's.

    kombu's own look-ups create what is missing.
    """
    if channel.predefined_queues:
        given = channel.predefined_queues.get(name)
        return SqsQueue(channel.sqs(queue=name), str(given["url"])) if given else None
    client = channel.sqs()
    try:
        found = client.get_queue_url(QueueName=channel.canonical_queue_name(name))
    except client.exceptions.QueueDoesNotExist:
        return None
    return SqsQueue(client, str(found["QueueUrl"]))


class Envelope(msgspec.Struct):
    """A message as kombu writes it for virtual transports."""

    body: str
    content_type: str | None = msgspec.field(default=None, name="content-type")
    content_encoding: str | None = msgspec.field(default=None, name="content-encoding")
    headers: dict[str, Any] | None = None
    properties: dict[str, Any] | None = None

    @property
    def content(self) -> bytes:
        """The body. Raises ValueError."""
        encoded = (self.properties or {}).get("body_encoding") == "base64"
        return b64decode(self.body) if encoded else self.body.encode()


_decode_envelope = msgspec.json.Decoder(Envelope).decode


def open_envelope(text: str) -> Envelope:
    """The message in the text of a message of SQS. Raises ValueError and RecursionError."""
    return _decode_envelope(text if text.startswith("{") else b64decode(text))


def in_envelope(body: object, queue: str, headers: Mapping[str, object]) -> str:
    """JSON as the text of a message of SQS that kombu reads."""
    delivery = {"exchange": "", "routing_key": queue}
    envelope = Envelope(
        body=b64encode(msgspec.json.encode(body)).decode(),
        content_type="application/json",
        content_encoding="utf-8",
        headers=dict(headers),
        properties={"body_encoding": "base64", "delivery_info": delivery, "delivery_tag": str(uuid4()), "priority": 0},
    )
    return b64encode(msgspec.json.encode(envelope)).decode()
