"""A listener for events that shares nothing with the product: kombu's own consumer, one line of JSON for each event.

``python -m tests.conformance.recorder redis://... events.ndjson`` prints "ready" once it is subscribed, and ends when
the event ``conformance-end`` arrives.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from celery.events.event import get_exchange
from kombu import Connection, Consumer, Queue

END = "conformance-end"


class Recorder:
    """Writes down every event, each with when it arrived."""

    def __init__(self, output: TextIO) -> None:
        self.output = output
        self.ended = False

    def receive(self, body: Any, message: Any) -> None:
        """``body`` is one event, or a list of them as a worker's buffer sends it."""
        arrived = time.time()
        for event in body if isinstance(body, list) else [body]:
            self.output.write(json.dumps({"arrived": arrived, "event": event}) + "\n")
            self.ended = self.ended or event["type"] == END


def record(url: str, file: Path) -> None:
    with file.open("w", encoding="utf-8") as output, Connection(url) as connection:
        exchange = get_exchange(connection)
        queue = Queue(f"recorder.{uuid4().hex}", exchange, routing_key="#", exclusive=True, auto_delete=True)
        recorder = Recorder(output)
        with Consumer(connection, [queue], callbacks=[recorder.receive], accept=["json"], no_ack=True):
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            while not recorder.ended:
                connection.drain_events()


def main(given: Sequence[str]) -> None:
    url, file = given
    record(url, Path(file))


if __name__ == "__main__":
    main(sys.argv[1:])
