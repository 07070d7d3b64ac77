"""The events of a run once more, in seconds: what a change of the code makes of them, without a broker or the suite."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from starlette.testclient import TestClient

from celery_monitor.receiver.decode import decode
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery, ReceiverHealth
from celery_monitor.settings import Settings
from celery_monitor.store.engine import open_store
from celery_monitor.store.writer import Writer
from tests.conformance.compare import lines
from tests.conformance.observed import Api, observe
from tests.web.shop import BASE, serving

TOGETHER_SECONDS = 0.1  # what arrives within it is stored together, as the receiver does


class Inside(Api):
    """The API of an application in this process."""

    def __init__(self, client: TestClient) -> None:
        super().__init__(BASE)
        self.client = client

    def get(self, path: str, **query: Any) -> Any:
        return self.client.get(path, params=query).json()


def replay(directory: Path) -> None:
    """Replaces what the product showed at the end of the run."""
    recorded = lines((directory / "recorded.ndjson").read_text(encoding="utf-8"))
    with TemporaryDirectory(prefix="conformance-") as folder:
        url = f"sqlite:///{folder}/record.db"
        store = open_store(url)
        writer = Writer(store, "shop", Settings())
        counted = 0
        for delivery in _deliveries(recorded):
            counted += len(delivery.events)
            writer.write([delivery], ReceiverHealth(cluster="shop", connected=True, events_total=counted))
        store.close()
        with serving(Settings(), url) as app, TestClient(app, BASE) as client:
            observed = observe(Inside(client))
    (directory / "observed.json").write_text(json.dumps(observed), encoding="utf-8")


def _deliveries(recorded: list[dict[str, Any]]) -> Iterator[Delivery]:
    events: list[Event] = []
    began = recorded[0]["arrived"]
    for each in recorded:
        if each["arrived"] - began > TOGETHER_SECONDS:
            yield Delivery(events, began)
            events, began = [], each["arrived"]
        events.extend(decode(json.dumps(each["event"]).encode())[0])
    yield Delivery(events, began)
