"""Remote control through queues, where Celery starts none for lack of fan-out: each worker polls a queue of its own.

The commands are Celery's own, and the replies have the form of Celery's. A worker deletes its queue when it shuts down.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading
import time
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.utils.collections import AttributeDict
from celery.worker import state
from celery.worker.control import Panel
from kombu import Connection, Exchange, Producer, Queue

from celery_monitor_capture.events import connect, queue_name

LONGEST_NAME = 80  # of a queue of SQS
POLL_SECONDS = 1.0  # where the transport does not wait for messages itself
RETRY_SECONDS = 5.0

log = logging.getLogger(__name__)


def control_prefix(event_queue: str) -> str:
    """What the names of the control queues begin with."""
    return f"{re.sub('[.]fifo$', '', event_queue)}-control-"


def control_queue(event_queue: str, hostname: str) -> str:
    """The control queue of a worker: its name, as far as a queue's name can have it, and a digest of it."""
    digest = hashlib.sha256(hostname.encode()).hexdigest()[:12]
    prefix = control_prefix(event_queue)
    readable = re.sub("[^A-Za-z0-9_-]", "_", hostname)[: LONGEST_NAME - len(prefix) - len(digest) - 1]
    return f"{prefix}{readable}-{digest}"


class ControlQueue(bootsteps.StartStopStep):  # type: ignore[misc]  # celery has no types
    """Polls the worker's control queue from its start to its shutdown."""

    requires = ("celery.worker.consumer.events:Events", "celery.worker.consumer.tasks:Tasks")

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._thread: threading.Thread | None = None
        self._over = threading.Event()

    def include_if(self, c: Any) -> bool:
        return bool(c.app.conf.worker_enable_remote_control)

    def start(self, c: Any) -> None:
        if self._thread is None:  # it lasts when the consumer is started again
            self._thread = threading.Thread(target=self._run, args=(c,), name="celery-monitor-control", daemon=True)
            self._thread.start()

    def shutdown(self, c: Any) -> None:
        """Deletes the queue, unless the broker is away."""
        self._over.set()
        thread = threading.Thread(target=self._delete, args=(c,), daemon=True)
        thread.start()
        thread.join(RETRY_SECONDS)

    def _queue(self, c: Any, channel: Any) -> Queue:
        """Declared and bound: virtual transports delete no queue that they know no binding of."""
        name = control_queue(queue_name(c.app), c.hostname)
        queue = Queue(name, Exchange(name, type="direct"), routing_key=name)(channel)
        queue.declare()
        return queue

    def _delete(self, c: Any) -> None:
        with suppress(Exception), connect(c.app) as connection:
            self._queue(c, connection.channel()).delete()

    def _run(self, c: Any) -> None:
        while not self._over.is_set():
            self._poll_until_lost(c)
            self._over.wait(RETRY_SECONDS)

    def _poll_until_lost(self, c: Any) -> None:
        try:
            with connect(c.app) as connection:
                self._poll(c, connection)
        except Exception as error:  # noqa: BLE001 - of any transport's library
            log.warning("the control queue cannot be read: %s", error)

    def _poll(self, c: Any, connection: Connection) -> None:
        channel = connection.channel()
        queue = self._queue(c, channel)
        producer = Producer(channel, auto_declare=False)
        handlers = AttributeDict(app=c.app, hostname=c.hostname, consumer=c, tset=set)
        node = c.app.control.mailbox.Node(c.hostname, handlers=Panel.data, state=handlers)
        while not self._over.is_set():
            began = time.monotonic()
            message = queue.get(no_ack=False, accept=["json"])
            if message is None:
                self._over.wait(max(0.0, POLL_SECONDS - (time.monotonic() - began)))
                continue
            message.ack()
            if message.headers.get("expires", 0) > time.time():
                self._handle(c, node, message.payload, producer)

    def _handle(self, c: Any, node: Any, command: dict[str, Any], producer: Producer) -> None:
        """Runs a command in the worker's event loop, if it has one, as Celery does."""
        done = threading.Event()
        replies: list[Any] = []

        def run() -> None:
            try:
                replies.append(node.dispatch(command["method"], arguments=command.get("arguments")))
            except SystemExit:  # shutdown
                state.should_stop = 0
            except Exception as error:  # noqa: BLE001 - told to the sender
                replies.append({"error": repr(error)})
            finally:
                done.set()

        if c.hub is None:
            run()
        else:
            c.hub.call_soon(run)
        if done.wait(RETRY_SECONDS) and replies and command.get("reply_to"):
            body = json.dumps({c.hostname: replies[0]}, default=str)
            headers = {"ticket": command.get("ticket"), "expires": time.time() + RETRY_SECONDS}
            producer.publish(
                body,
                routing_key=command["reply_to"],
                content_type="application/json",
                content_encoding="utf-8",
                headers=headers,
                retry=False,
            )
