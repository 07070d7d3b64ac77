"""The receiver's process: receives one broker's events, samples its queues and workers, finds lost tasks, alerts."""

import gc
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import NamedTuple

from celery_monitor.alerts.judge import Judge
from celery_monitor.alerts.sender import AlertSender
from celery_monitor.brokers.remote import Remote
from celery_monitor.brokers.transports import make_probe
from celery_monitor.errors import LeaseLost, StoreUnavailable
from celery_monitor.receiver.helper_failures import (
    ALERT_SENDER,
    ALERTS,
    QUEUE_SAMPLER,
    RECONCILER,
    SAMPLER,
    SCHEDULES,
    HelperFailures,
)
from celery_monitor.receiver.ingest import Receiver
from celery_monitor.receiver.pace import Pace
from celery_monitor.receiver.reconcile import Reconciler
from celery_monitor.receiver.sampler import Sampler
from celery_monitor.receiver.sources import make_source
from celery_monitor.receiver.sources.base import Source
from celery_monitor.receiver.standby import Standby
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.lease import Lease, make_lease

log = logging.getLogger(__name__)

OPEN_AGAIN_SECONDS = 2.0
END_SECONDS = 10.0
SWITCH_SECONDS = 0.001  # until the thread that stores yields to the one that reads the socket; Python's default: 0.005
# A batch creates and drops many small objects without reference cycles: a collection every 700 objects, Python's
# default, costs a sixth of the time.
COLLECT_AFTER = (50_000, 20, 20)


def run(settings: Settings, broker: Broker, stop: threading.Event) -> None:
    """Receives, samples and reconciles until ``stop`` is set, or stands by while another receiver does.

    Waits until the database can be opened.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    store = _open(settings.database, stop)
    if store is None:
        return
    with closing(store):
        helpers = HelperFailures()
        source = make_source(broker, settings, helpers)
        lease = make_lease(store, broker.cluster)
        standby = Standby(store, source, broker.cluster, lease)
        with closing(lease), closing(standby):
            while standby.wait(stop):
                try:
                    _lead(Leadership(store, source, lease, standby, helpers), settings, broker, stop)
                except LeaseLost as error:
                    log.warning("%s", error)
                    standby.step_down()


class Leadership(NamedTuple):
    """The resources of a receiver while it leads."""

    store: Store
    source: Source
    lease: Lease
    standby: Standby
    helpers: HelperFailures


def _lead(term: Leadership, settings: Settings, broker: Broker, stop: threading.Event) -> None:
    """Receives, samples and reconciles until ``stop`` is set. Raises LeaseLost."""
    store, helpers = term.store, term.helpers
    over, pace = threading.Event(), Pace(store)
    with ExitStack() as ending:
        receiver = Receiver(term.lease.store, term.source, broker.cluster, settings, term.standby, helpers, pace)
        remote = Remote(broker, settings)
        probe = make_probe(broker, settings)
        notice, senders = receiver.notice, receiver.senders
        sampler = Sampler(store, broker.cluster, probe, remote, settings, notice, helpers, senders, pace)
        judge = Judge(store, broker.cluster, settings, helpers, pace)
        alert_sender = AlertSender(store, broker.cluster, settings, helpers, pace)
        judge.on_message(alert_sender.wake)
        receiver.on_new_worker(sampler.wake, judge.wake)
        reconciler = Reconciler(
            store,
            broker.cluster,
            remote,
            lambda: receiver.health,
            receiver.conclude,
            helpers,
            pace,
            receiver.last_heartbeat,
        )
        reconciler.on_change(judge.wake)
        beside = {
            RECONCILER: reconciler.run,
            SAMPLER: sampler.run,
            QUEUE_SAMPLER: sampler.run_queues,
            SCHEDULES: sampler.run_schedules,
            ALERTS: judge.run,
            ALERT_SENDER: alert_sender.run,
        }
        for name, run_it in beside.items():
            ending.callback(start_beside(name, run_it, over, helpers).join, END_SECONDS)
        ending.callback(pace.close)
        ending.callback(pace.wake)
        ending.callback(over.set)  # also when an error ends the receiver
        receiver.run(stop)


def _open(url: str, stop: threading.Event) -> Store | None:
    while not stop.is_set():
        try:
            return open_store(url)
        except StoreUnavailable as error:
            log.error("%s", error)
            stop.wait(OPEN_AGAIN_SECONDS)
    return None


def start_beside(
    name: str, run: Callable[[threading.Event], None], stop: threading.Event, helpers: HelperFailures
) -> threading.Thread:
    """A thread that runs beside the receiver, and is restarted after an unexpected error."""

    def keep_running() -> None:
        while not stop.is_set():
            try:
                run(stop)
            except Exception as error:
                helpers.failed(name, error)
                log.exception("the %s failed and starts again in %.0f s", name, helpers.pause(name))
                stop.wait(helpers.pause(name))

    thread = threading.Thread(target=keep_running, name=name, daemon=True)
    thread.start()
    return thread
