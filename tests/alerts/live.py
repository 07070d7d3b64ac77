"""A receiver in its own process on a real broker, with real workers, and what its alerts send over HTTP.

A story is a generator: up to its first ``yield`` it brings about the cause of an alert, of which it yields some words;
after that it removes the cause, and may keep what it has started by a second one. Its name is the kind of its rule.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from celery_monitor.core.alerts.kinds import DEFAULT_RULES
from celery_monitor.errors import NotFound
from celery_monitor.records.alert import Channel, Rule, Severity
from celery_monitor.records.failure import FailureState
from celery_monitor.records.task import TaskState
from celery_monitor.store.alerts.facts import BEGAN
from celery_monitor.store.alerts.rules import (
    add_channel,
    delete_channel,
    delete_rule,
    read_rules,
    save_rule,
)
from celery_monitor.store.engine import Store, open_store, put_value
from celery_monitor.store.rollups.failures import UNRESOLVED, read_failure_groups, set_failure_state
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.workers import read_workers
from tests.alerts.listener import Listener, listening
from tests.databases import empty_record
from tests.faults.receivers import CLUSTER, Record, receiving
from tests.workers import Worker, running_worker, wait_for

log = logging.getLogger(__name__)
ALERTMANAGER, WEBHOOK = "/api/v2/alerts", "/hook"
MOST_SECONDS = 120.0  # until a message; the longest window of a rule here is a minute


class Message(NamedTuple):
    """What a channel got about one alert."""

    kind: str
    state: str
    text: str


class Live:
    """One cluster, its record, and the listener to which both channels send."""

    def __init__(self, broker: str, store: Store, there: Listener, folder: Path) -> None:
        self.broker = broker
        self.store = store
        self.there = there
        self.folder = folder
        self._worker: Worker | None = None
        self._workers = ExitStack()

    @property
    def worker(self) -> Worker:
        """The worker that stories share; started again after it was killed."""
        if self._worker is None or self._worker.process.poll() is not None:
            self._worker = self._workers.enter_context(self.working())
        return self._worker

    @contextmanager
    def working(self, **given: Any) -> Iterator[Worker]:
        """A worker that is in the record."""
        with running_worker(self.broker, **given) as worker:
            wait_for(lambda: self.is_up(worker), what=f"{worker.hostname} in the record")
            yield worker

    def is_up(self, worker: Worker) -> bool:
        return any(
            (each.hostname, each.pid) == (worker.hostname, worker.pid) for each in read_workers(self.store, CLUSTER)
        )

    def run(self, name: str, count: int, *args: Any) -> None:
        """Runs so many tasks on the shared worker, a few at a time, so that they hardly wait."""
        for begin in range(0, count, 20):
            ids = [self.worker.send(name, *args) for _ in range(min(20, count - begin))]
            wait_for(lambda: all(map(self._has_ended, ids)), what=f"the ends of {name}")  # noqa: B023 - called at once

    def state(self, task_id: str) -> TaskState | None:
        try:
            return read_task(self.store, task_id, CLUSTER).state
        except NotFound:
            return None

    def _has_ended(self, task_id: str) -> bool:
        state = self.state(task_id)
        return state is not None and state.finished

    def rule(self, kind: str, **fields: Any) -> None:
        save_rule(self.store, Rule(name=kind, kind=kind, severity=Severity.CRITICAL, cooldown=0.0, **fields))

    def resolve_failures(self) -> None:
        """As somebody does on the page of the failures."""
        for group in read_failure_groups(self.store, since=0.0, states=UNRESOLVED):
            set_failure_state(self.store, group.id, FailureState.RESOLVED, time.time())

    def messages(self, path: str) -> list[Message]:
        """What came to a channel, the oldest first."""
        found = [each.json for each in list(self.there.requests) if each.path == path]
        if path != ALERTMANAGER:
            return [Message(a["kind"], a["state"], a["text"]) for each in found for a in each["alerts"]]
        return [
            Message(each["labels"]["kind"], _state(each), each["annotations"]["summary"])
            for posted in found
            for each in posted
        ]

    @contextmanager
    def channels(self) -> Iterator[str]:
        """A new webhook and an Alertmanager; the path of the former. Of a new one, no digest waits."""
        path = f"{WEBHOOK}/{uuid4().hex}"
        self.there.requests.clear()
        given = (("webhook", f"{self.there.address}{path}"), ("alertmanager", self.there.address))
        added = [add_channel(self.store, Channel(name=kind, kind=kind, url=url)) for kind, url in given]  # type: ignore[arg-type]
        try:
            yield path
        finally:
            for each in added:
                delete_channel(self.store, each.id)

    @contextmanager
    def _without_rule(self, kind: str) -> Iterator[None]:
        """Without the rule of the story afterwards, so its alert ends without a message."""
        try:
            yield
        finally:
            if any(each.name == kind for each in read_rules(self.store)):
                delete_rule(self.store, kind)

    def wait_for(self, path: str, kind: str, state: str, words: str) -> str:
        """The sentence of the message once it is with both channels."""

        def arrived() -> str | None:
            texts = [
                next((m.text for m in self.messages(each) if m[:2] == (kind, state) and words in m.text), None)
                for each in (path, ALERTMANAGER)
            ]
            return texts[0] if all(texts) else None

        try:
            text: str = wait_for(arrived, MOST_SECONDS, f"{kind}, {state}: {words!r}")
        except TimeoutError as error:
            raise AssertionError(f"{error}; sent: {self.messages(path)}") from None
        return text

    def tell(self, story: "Story") -> None:
        """The alert fires and resolves, each with one message; the log has the seconds since the cause."""
        kind = story.__name__.replace("_", " ")
        with self.channels() as path, self._without_rule(kind), closing(story(self)) as told:
            words, began = next(told), time.time()
            text = self.wait_for(path, kind, "firing", words)
            fired, began = time.time() - began, time.time()
            next(told, None)
            self.wait_for(path, kind, "resolved", "")
            log.info("%s fires after %.1f s, resolves after %.1f s: %s", kind, fired, time.time() - began, text)
            sent = [each[:2] for each in self.messages(path) if words in each.text]
            assert sent.count((kind, "firing")) == 1


Story = Callable[[Live], Generator[str, None, None]]


def _state(posted: dict[str, Any]) -> str:
    over = datetime.fromisoformat(posted["endsAt"]).timestamp() <= time.time()
    return "resolved" if over else "firing"


@contextmanager
def running(broker: str, folder: Path) -> Iterator[Live]:
    """A receiver that leads, and whose record is old enough to accuse somebody. Nobody uses a dashboard."""
    database = empty_record(folder)
    with ExitStack() as stack:
        there = stack.enter_context(listening())
        store = stack.enter_context(closing(open_store(database)))
        with store.begin() as connection:
            put_value(store, connection, f"{BEGAN}{CLUSTER}", "0.0")
        for rule in DEFAULT_RULES.values():  # each story has a rule of its own, without patience
            save_rule(store, Rule(name=rule.name, kind=rule.kind, enabled=False))
        options = ("--sample-seconds", "0.5", "--inspect-seconds", "2", "--public-url", "https://m.example.com")
        program = stack.enter_context(receiving(broker, database, folder, "receiver", *options))
        Record(store).wait_for_leader(program)
        live = Live(broker, store, there, folder)
        stack.enter_context(live._workers)
        yield live
