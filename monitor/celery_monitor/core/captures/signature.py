"""Signatures of captured messages: HMAC-SHA256 with a key that the workers and this monitor have.

``capture/celery_monitor_capture`` signs, with the same text; a test compares both. No I/O, no clock.
"""

import hashlib
import hmac
import json
from collections.abc import Sequence

from celery_monitor.records.event import Message

VERSION = "celery-monitor-capture 1"


def signed_text(message: Message, task_id: str) -> bytes:
    """The text to sign: all that the monitor uses of a message, whom it is from, and when it was signed."""
    signature = message.signature
    fields = [
        VERSION,
        task_id,
        message.worker,
        None if signature is None else repr(float(signature.time)),
        message.why,
        message.headers,
        message.properties,
        message.content_type,
        message.content_encoding,
        message.exchange,
        message.routing_key,
        message.queue,
        message.as_sent,
        [message.chain, message.callbacks, message.errbacks, message.chord],
        message.size,
        None if message.body is None else hashlib.sha256(message.body).hexdigest(),
    ]
    return json.dumps(fields, separators=(",", ":")).encode()


def is_signed(message: Message, task_id: str, keys: Sequence[str]) -> bool:
    """Whether one of the keys has signed it. Compares in constant time."""
    if message.signature is None:
        return False
    text = signed_text(message, task_id)
    given = message.signature.mac.encode("utf-8", "replace")
    macs = [hmac.new(key.strip().encode(), text, hashlib.sha256).hexdigest().encode() for key in keys]
    return any(hmac.compare_digest(mac, given) for mac in macs)
