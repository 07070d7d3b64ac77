"""The receiver's process: one broker's events, beside them its queues and workers sampled and its dead noticed."""

import gc
import logging
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from contextlib import closing

from monitor.brokers.depth import make_probe
from monitor.brokers.remote import Remote
from monitor.errors import StoreUnavailable
from monitor.receiver.ingest import Receiver
from monitor.receiver.reconcile import Reconciler
from monitor.receiver.sampler import Sampler
from monitor.receiver.sources.make import make_source
from monitor.settings import Broker
from monitor.settings import Settings
from monitor.store.engine import Store
from monitor.store.engine import open_store

log = logging.getLogger(__name__)

OPEN_AGAIN_SECONDS = 2.0
END_SECONDS = 10.0
SWITCH_SECONDS = (
    0.001  # how long the thread that empties the socket waits for the one that stores; Python's own is 0.005
)
# A batch makes many small objects and drops them, none in a circle: to look for circles every 700 objects costs a
# sixth of all the time.
COLLECT_AFTER = (50_000, 20, 20)


def run(settings: Settings, broker: Broker, stop: threading.Event) -> None:
    """Receives, samples and reconciles until told to stop; waits for a database that cannot be opened yet."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    store = _open(settings.database, stop)
    if store is None:
        return
    with closing(store), ExitStack() as ending:
        receiver = Receiver(store, make_source(broker, settings), broker.cluster, settings)
        remote = Remote(broker, settings)
        probe = make_probe(broker, settings)
        sampler = Sampler(store, broker.cluster, probe, remote, settings, receiver.notice)
        reconciler = Reconciler(store, broker.cluster, remote, lambda: receiver.health, receiver.conclude)
        for beside in (sampler.run, reconciler.run):
            ending.callback(start_beside(beside, stop).join, END_SECONDS)
        ending.callback(stop.set)  # also when the receiver itself ends by an error
        receiver.run(stop)


def _open(url: str, stop: threading.Event) -> Store | None:
    while not stop.is_set():
        try:
            return open_store(url)
        except StoreUnavailable as error:
            log.error("%s", error)
            stop.wait(OPEN_AGAIN_SECONDS)
    return None


def start_beside(run: Callable[[threading.Event], None], stop: threading.Event) -> threading.Thread:
    """A thread that runs beside the receiver, and starts again after an error that nobody foresaw."""
    name = type(getattr(run, "__self__", run)).__name__

    def keep_running() -> None:
        while not stop.is_set():
            try:
                run(stop)
            except Exception:
                log.exception("the %s failed and starts again", name.lower())
                stop.wait(OPEN_AGAIN_SECONDS)

    thread = threading.Thread(target=keep_running, name=name, daemon=True)
    thread.start()
    return thread
