"""The whole application on a record of its own, for the tests of pages."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import msgspec
from starlette.testclient import TestClient

from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery, ReceiverHealth
from celery_monitor.records.worker import Worker
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store
from celery_monitor.store.workers import change_workers
from celery_monitor.store.writer import Writer
from celery_monitor.web.app import create_app
from tests.databases import empty_record
from tests.factories import make_event

BASE = "http://127.0.0.1:5757"
HOSTILE = "<img src=x onerror=alert(1)>\u202e\x00'\"&/..?q#%zz"


class House:
    """A browser without scripts, and the record that it looks at."""

    def __init__(self, client: TestClient, store: Store) -> None:
        self.client = client
        self.store = store
        self.now = time.time()

    def write(self, *events: Event, cluster: str = "shop", arrived: float | None = None, **health: object) -> None:
        # On a busy machine a page is read long after: the receiver has spoken by then.
        said = {"connected": True, "updated_at": self.now + 60, "last_event_at": self.now - 1, "lag_seconds": 0.2}
        Writer(self.store, cluster, Settings()).write(
            [Delivery(events=list(events), arrived=self.now if arrived is None else arrived)],
            ReceiverHealth(cluster=cluster, **{**said, **health}),  # type: ignore[arg-type]
        )

    def worker(self, hostname: str, *, online: bool = True, cluster: str = "shop", **inspected: object) -> None:
        """A worker that was heard of, with what inspect told of it."""
        event = make_event(
            "worker-heartbeat" if online else "worker-offline",
            hostname=hostname,
            timestamp=self.now,
            freq=3.0,
            active=2,
            processed=731,
            sw_ident="py-celery",
            sw_ver=inspected.pop("sw_ver", "5.5.3"),
        )
        self.write(event, cluster=cluster)

        def change(worker: Worker) -> Worker:
            return msgspec.structs.replace(worker, **inspected)

        change_workers(self.store, cluster, [hostname], change)

    def text(self, path: str, status: int = 200) -> str:
        """The words of a page's main part, as somebody reads them."""
        reader = _Words()
        reader.feed(self.html(path, status))
        return " ".join(" ".join(reader.words).split())

    def html(self, path: str, status: int = 200) -> str:
        response = self.client.get(path)
        assert response.status_code == status, response.text
        return response.text


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._main = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._main = self._main or tag == "main"

    def handle_endtag(self, tag: str) -> None:
        self._main = self._main and tag != "main"

    def handle_data(self, data: str) -> None:
        if self._main:
            self.words.append(data)


@contextmanager
def open_house(folder: Path, **settings: object) -> Iterator[House]:
    """The application on an empty record in ``folder``."""
    given = {"broker": (Broker("shop", "redis://127.0.0.1:1/0"),), "database": empty_record(folder)}
    app = create_app(Settings(**{**given, **settings}))  # type: ignore[arg-type]
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        yield House(client, app.state.store)
    app.state.store.close()
