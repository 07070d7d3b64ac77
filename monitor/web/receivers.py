"""What the receivers say of themselves, and what they cannot say: that the record takes no writing."""

import time
from threading import Lock
from weakref import WeakKeyDictionary

import msgspec

from monitor.errors import StoreUnavailable
from monitor.records import UNSAID_SECONDS
from monitor.records import FailingHelper
from monitor.records import ReceiverEnding
from monitor.records import ReceiverHealth
from monitor.records import StandbyReceiver
from monitor.store import journal
from monitor.store import queries
from monitor.store.engine import Store

STANDBY_SECONDS = 10.0  # one that stands by says so every other second
UNWRITTEN_SECONDS = 4.0  # a receiver writes its health every second
RECEIVER = "receiver"  # among the helpers: its process
FEWEST_ENDINGS = 2
ENDING_SECONDS = 120.0  # after the last one; one that keeps ending is started again after 30 s at most
PROVE_SECONDS = 2.0  # between two tries to write

_proved: WeakKeyDictionary[Store, tuple[float, str | None]] = WeakKeyDictionary()
_lock = Lock()


def read_health(store: Store, now: float) -> list[ReceiverHealth]:
    """The health of every receiver.

    One that has not written for seconds may be dead, or have a database that takes nothing: it cannot write
    which. So we try to write ourselves. One whose process keeps ending may never have written.
    """
    spoken = {health.cluster: _judged(store, health, now) for health in queries.health(store)}
    for ending in queries.endings(store, now - ENDING_SECONDS):
        if ending.failures >= FEWEST_ENDINGS:
            spoken[ending.cluster] = _with_ending(spoken.get(ending.cluster), ending)
    return list(spoken.values())


def _with_ending(health: ReceiverHealth | None, ending: ReceiverEnding) -> ReceiverHealth:
    found = health or ReceiverHealth(cluster=ending.cluster, connected=False, error=ending.error)
    helper = FailingHelper(name=RECEIVER, error=ending.error, since=ending.since, failures=ending.failures)
    return msgspec.structs.replace(found, helpers=(helper, *found.helpers))


def known_until(store: Store, now: float) -> dict[str, float]:
    """The clusters whose receiver does not run, hears nothing or is behind, and until when it can tell; 0: never.

    What it was not seen to send, beat may have sent since.
    """
    health = {each.cluster: each for each in read_health(store, now)}
    found = {}
    for cluster in queries.clusters(store):
        receiver = health.get(cluster)
        if receiver is None or not receiver.is_level(now, UNSAID_SECONDS):
            found[cluster] = receiver.known_until(now) if receiver is not None else 0.0
    return found


def read_standbys(store: Store, now: float) -> dict[str, list[StandbyReceiver]]:
    """The receivers that would take over now, by cluster."""
    found: dict[str, list[StandbyReceiver]] = {}
    for each in queries.standbys(store, now - STANDBY_SECONDS):
        found.setdefault(each.cluster, []).append(each)
    return found


def _judged(store: Store, health: ReceiverHealth, now: float) -> ReceiverHealth:
    if health.updated_at is None or now - health.updated_at <= UNWRITTEN_SECONDS:
        return health
    return msgspec.structs.replace(health, unwritten=_why_unwritable(store))


def _why_unwritable(store: Store) -> str | None:
    with _lock:
        tried_at, error = _proved.get(store, (0.0, None))
        if not tried_at or time.monotonic() - tried_at > PROVE_SECONDS:
            error = _try(store)
            _proved[store] = (time.monotonic(), error)
        return error


def _try(store: Store) -> str | None:
    try:
        journal.prove_writable(store)
    except StoreUnavailable as error:
        return error.message
    return None
