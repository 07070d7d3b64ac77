"""The receiver's own queue on RabbitMQ: it keeps events while no receiver runs, and cannot eat the broker.

Workers publish events as transient messages, which a classic queue, durable or not, loses when its broker restarts;
a quorum queue keeps them. What was on its way between worker and broker at that moment is lost in any case. So beside
the queue stands its witness: a classic queue with one transient message, which is gone after a restart. As its only
consumer we also hold the name: a second receiver is refused.
"""

import logging
from typing import Any
from typing import NamedTuple

from amqp import Channel
from amqp import Connection
from amqp import Message
from amqp.exceptions import NotFound
from amqp.exceptions import PreconditionFailed
from amqp.spec import Basic
from celery import Celery

from monitor.settings import Settings

log = logging.getLogger(__name__)

LONGEST_MILLISECONDS = 2**32 - 1  # RabbitMQ takes no more
EXPIRES_AFTER_TTLS = 2  # an abandoned queue goes when its last event has long expired
PREFETCH_BATCHES = 2  # one batch is stored while the next arrives
MOST_PREFETCH = 65_535
TRANSIENT = 1


class Declared(NamedTuple):
    """The queue, ready to consume from."""

    channel: Channel
    name: str
    missed: bool  # events may be missing that were sent since it was last consumed from
    remembered: bool  # the broker has not restarted since


def queue_name(app: Celery, settings: Settings) -> str:
    """Celery's own form: prefix and node id."""
    return f"{app.conf.event_queue_prefix}.{settings.node_id}"


def witness_name(queue: str) -> str:
    """Of the queue beside it, which forgets when the broker restarts."""
    return f"{queue}.witness"


def queue_arguments(settings: Settings) -> dict[str, Any]:
    """Its bounds in time, number and bytes. The oldest events go first."""
    ttl = int(settings.event_queue_ttl * 1000)
    return {
        "x-message-ttl": min(ttl, LONGEST_MILLISECONDS),
        "x-expires": min(ttl * EXPIRES_AFTER_TTLS, LONGEST_MILLISECONDS),
        "x-max-length": settings.event_queue_max,
        "x-max-length-bytes": settings.event_queue_max_bytes,
    }


def prefetch(settings: Settings) -> int:
    """Messages that may be with us and not committed."""
    return min(settings.batch_events * PREFETCH_BATCHES, MOST_PREFETCH)


def declare(connection: Connection, app: Celery, settings: Settings) -> Declared:
    """The queue, declared and bound, and its name held for this connection.

    A queue or an exchange that exists with other arguments is used as it is: to delete it could lose events.
    """
    exchange = app.conf.event_exchange
    name = queue_name(app, settings)
    before = _length(connection, name)
    remembered = _take_witness(connection, name, settings)
    # As workers declare it: kombu's Exchange("celeryev", type="topic") is durable.
    channel = _or_as_it_is(
        connection,
        connection.channel(),
        "exchange_declare",
        {"exchange": exchange, "type": "topic", "durable": True, "auto_delete": False},
    )
    channel = _declare_queue(connection, channel, name, settings)
    channel.queue_bind(queue=name, exchange=exchange, routing_key="#")
    channel.basic_qos(prefetch_size=0, prefetch_count=prefetch(settings), a_global=False)
    overflowed = before is not None and before >= settings.event_queue_max
    return Declared(channel, name, before is None or overflowed or not remembered, remembered)


def remember(declared: Declared) -> None:
    """From now on the witness knows that we consume. Not earlier: an attempt that failed must not count."""
    if not declared.remembered:
        message = Message(b"here since the broker started", delivery_mode=TRANSIENT)
        # Not basic_publish: it first reads, and would take events that have begun to arrive for its own.
        where = (0, "", witness_name(declared.name), False, False)
        declared.channel.send_method(Basic.Publish, "Bssbb", where, message)


def _length(connection: Connection, name: str) -> int | None:
    """How many events the queue has kept; ``None`` where there is no such queue."""
    channel = connection.channel()
    try:
        length: int = channel.queue_declare(queue=name, passive=True).message_count
    except NotFound:  # the broker has closed the channel
        return None
    channel.close()
    return length


def _take_witness(connection: Connection, name: str, settings: Settings) -> bool:
    """Holds the witness as long as the connection lasts; says whether the broker has run since it was last held."""
    name = witness_name(name)
    arguments = {"x-expires": queue_arguments(settings)["x-expires"], "x-queue-type": "classic"}
    channel = _or_as_it_is(
        connection,
        connection.channel(),
        "queue_declare",
        {"queue": name, "durable": True, "auto_delete": False, "arguments": arguments},
    )
    length = channel.queue_declare(queue=name, passive=True).message_count
    # A queue with a consumer does not expire. What it delivers stays unacknowledged, and so in the queue.
    channel.basic_consume(name, exclusive=True, callback=_keep)
    return bool(length)


def _keep(_: Message) -> None:
    """The witness's message, which goes back to it when the connection ends."""


def _declare_queue(connection: Connection, channel: Channel, name: str, settings: Settings) -> Channel:
    wanted = {"queue": name, "durable": True, "auto_delete": False}
    bounds = queue_arguments(settings)
    kept = {"x-queue-type": "quorum", **bounds}
    if _major_version(connection) >= 4:  # there a message that was delivered 20 times is thrown away unless told not to
        kept["x-delivery-limit"] = -1
    try:
        channel.queue_declare(**wanted, arguments=kept)
    except PreconditionFailed as error:
        channel = connection.channel()
        if _length(connection, name) is None:
            log.warning("%s; events that wait in the queue are lost when the broker restarts.", error.reply_text)
            channel.queue_declare(**wanted, arguments=bounds)
        else:
            _warn_of_other_arguments(error)
    return channel


def _major_version(connection: Connection) -> int:
    version = str(connection.server_properties.get("version", "")).partition(".")[0]
    return int(version) if version.isdigit() else 0


def _or_as_it_is(connection: Connection, channel: Channel, method: str, arguments: dict[str, Any]) -> Channel:
    try:
        getattr(channel, method)(**arguments)
    except PreconditionFailed as error:
        _warn_of_other_arguments(error)
        channel = connection.channel()
        getattr(channel, method)(**{**arguments, "passive": True})
    return channel


def _warn_of_other_arguments(error: PreconditionFailed) -> None:
    log.warning(
        "%s; it is used as it is. To give it the present settings, delete it, or choose another node_id.",
        error.reply_text,
    )
