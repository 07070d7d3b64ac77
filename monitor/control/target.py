"""What a command works on: one cluster, its broker and the record."""

import time
from collections.abc import Collection
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from monitor.brokers.application import configured_queues
from monitor.brokers.remote import Remote
from monitor.control.commands import MAX_TASKS
from monitor.control.commands import Performed
from monitor.control.commands import TaskResult
from monitor.errors import InvalidInput
from monitor.errors import NotFound
from monitor.filters import Filter
from monitor.records import WorkerStatus
from monitor.settings import Broker
from monitor.settings import Settings
from monitor.store import queries
from monitor.store.engine import Store

ANSWER_SECONDS = 2.0  # of silence, after which a worker is taken not to answer


@dataclass(frozen=True, slots=True)
class Target:
    """One cluster as a command sees it."""

    store: Store
    settings: Settings
    broker: Broker

    @property
    def cluster(self) -> str:
        return self.broker.cluster

    @property
    def remote(self) -> Remote:
        return Remote(self.broker, self.settings)

    @staticmethod
    def now() -> float:
        return time.time()

    def living_workers(self) -> list[str]:
        """Workers that may hold or take a task: online, or silent because busy."""
        workers = queries.workers(self.store, self.cluster)
        return [worker.hostname for worker in workers if worker.status is not WorkerStatus.OFFLINE]

    def queue_names(self) -> list[str]:
        """Queues of this cluster: sampled, consumed by a worker, named by its tasks, or the application's own."""
        sampled = {queue.name for queue in queries.queues(self.store, self.cluster)}
        consumed = {name for worker in queries.workers(self.store, self.cluster) for name in worker.queues or ()}
        mine = Filter().in_cluster(self.cluster)
        named = {facet.value for facet in queries.facets(self.store, mine, ("queue",))["queue"] if facet.value}
        return sorted(sampled | consumed | named | configured_queues(self.broker, self.settings))


def find_broker(settings: Settings, cluster: str) -> Broker:
    """The broker of a cluster; NotFound lists those that are watched."""
    for broker in settings.broker:
        if broker.cluster == cluster:
            return broker
    raise NotFound(f"there is no cluster {cluster!r}; known are {', '.join(settings.clusters) or 'none'}")


def distinct(ids: Sequence[str]) -> list[str]:
    """Each id once, in order; InvalidInput for none or too many."""
    once = list(dict.fromkeys(ids))
    if not 0 < len(once) <= MAX_TASKS:
        raise InvalidInput(f"{len(once)} tasks were named; name 1 to {MAX_TASKS}")
    return once


def summary(verb: str, results: Sequence[TaskResult], **details: object) -> Performed:
    """One outcome for many: failed if anything failed or nothing was done, else unconfirmed if anything is."""
    outcomes = [result.outcome for result in results]
    counted = {word: outcomes.count(word) for word in ("done", "unconfirmed", "skipped", "failed") if word in outcomes}
    message = f"{verb}: " + ", ".join(f"{number} {word}" for word, number in counted.items())
    return Performed(outcome=_overall(counted.keys()), message=message, results=tuple(results), details=details)


def _overall(words: Collection[str]) -> Literal["done", "unconfirmed", "failed"]:
    if "failed" in words or not {"done", "unconfirmed"} & set(words):
        return "failed"
    return "unconfirmed" if "unconfirmed" in words else "done"
