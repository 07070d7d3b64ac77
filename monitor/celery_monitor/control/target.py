"""What a command works on: one cluster, its broker and the record."""

import time
from dataclasses import dataclass

from celery_monitor.brokers.application import configured_queues
from celery_monitor.brokers.remote import Remote
from celery_monitor.errors import NotFound
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.settings import Broker, Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import read_queues
from celery_monitor.store.tasks.unfinished import queue_names
from celery_monitor.store.workers import read_workers

ANSWER_SECONDS = 2.0  # of silence, after which a worker is taken not to answer


@dataclass(frozen=True, slots=True)
class Target:
    """One cluster as a command sees it, and in whose name the command acts."""

    store: Store
    settings: Settings
    broker: Broker
    actor: str = ""

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
        workers = read_workers(self.store, self.cluster)
        return [worker.hostname for worker in workers if worker.status is not WorkerStatus.OFFLINE]

    def queue_names(self) -> list[str]:
        """Queues of this cluster: sampled, consumed by a worker, named by its tasks, or the application's own."""
        sampled = {queue.name for queue in read_queues(self.store, self.cluster)}
        consumed = {name for worker in read_workers(self.store, self.cluster) for name in worker.queues or ()}
        named = queue_names(self.store, self.cluster)
        return sorted(sampled | consumed | named | configured_queues(self.broker, self.settings))


def find_broker(settings: Settings, cluster: str) -> Broker:
    """The broker of a cluster; NotFound lists those that are watched."""
    for broker in settings.broker:
        if broker.cluster == cluster:
            return broker
    raise NotFound(f"there is no cluster {cluster!r}; known are {', '.join(settings.clusters) or 'none'}")
