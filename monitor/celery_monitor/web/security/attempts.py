"""Failed sign-ins: how long the next one must wait, and the lines of log and trail that speak of them."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network

from anyio import to_thread

from celery_monitor.errors import MonitorError
from celery_monitor.records.page import Action

log = logging.getLogger(__name__)

FREE_FAILURES = 5  # typing errors: these cost nothing
LONGEST_DELAY_SECONDS = 60.0
FORGOTTEN_SECONDS = 900.0
MOST_KEYS = 10_000  # of a table; the one that failed longest ago goes
LONGEST_NAME = 100
WINDOW_SECONDS = 60.0
MOST_WINDOWS = 200  # users and addresses of a minute that get a row of their own
MOST_NAMES_OF_ADDRESS = 5
OTHER_USERS = "other users"
OTHER_ADDRESSES = "other addresses"


def network_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 that an IPv6 client can choose its addresses from."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    return str(parsed.ipv4_mapped or ip_network((parsed, 64), strict=False))


@dataclass(slots=True)
class _Failures:
    count: int
    last: float
    until: float  # before it no other attempt is allowed


class Delays:
    """A delay for each key, doubled with every failure after the free ones. Pure: the caller gives the time."""

    def __init__(self, most: int = MOST_KEYS) -> None:
        self._most = most
        self._failures: OrderedDict[str, _Failures] = OrderedDict()  # the one that failed last at the end

    def __len__(self) -> int:
        return len(self._failures)

    def seconds_left(self, key: str, now: float) -> float:
        """How long the next attempt has to wait."""
        found = self._failures.get(key)
        return 0.0 if found is None else max(0.0, found.until - now)

    def fail(self, key: str, now: float) -> None:
        found = self._failures.pop(key, None)
        count = 1 if found is None or now - found.last > FORGOTTEN_SECONDS else found.count + 1
        exponent = min(count - FREE_FAILURES, 16)
        delay = 0.0 if exponent < 0 else min(LONGEST_DELAY_SECONDS, 2.0**exponent)
        self._failures[key] = _Failures(count, now, now + delay)
        if len(self._failures) > self._most:
            self._failures.popitem(last=False)

    def forget(self, key: str) -> None:
        self._failures.pop(key, None)


class Doors:
    """The delays of password sign-ins: by address, and by user name.

    A user who has signed in from an address is judged there by the failures of this user from this address alone:
    others who guess cannot keep the user out.
    """

    def __init__(self) -> None:
        self._addresses = Delays()
        self._names = Delays()
        self._pairs = Delays()
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def seconds_left(self, name: str, network: str, now: float) -> float:
        if (name, network) in self._known:
            return self._pairs.seconds_left(_pair(name, network), now)
        return max(self._addresses.seconds_left(network, now), self._names.seconds_left(name, now))

    def fail(self, name: str, network: str, now: float) -> None:
        if (name, network) in self._known:
            self._pairs.fail(_pair(name, network), now)
        else:
            self._names.fail(name, now)
            self._addresses.fail(network, now)

    def succeed(self, name: str, network: str) -> None:
        """The address stays delayed: else somebody with a password could go on guessing those of others."""
        self._known[name, network] = None
        self._known.move_to_end((name, network))
        if len(self._known) > MOST_KEYS:
            self._known.popitem(last=False)
        self._pairs.forget(_pair(name, network))
        self._names.forget(name)


def _pair(name: str, network: str) -> str:
    return f"{network} {name}"


@dataclass(slots=True)
class _Window:
    """The failures of a user from an address that no row speaks of yet."""

    began: float
    why: str  # of the last one
    count: int = 0


class FailedSignIns:
    """Writes failed sign-ins to the log and the trail: the first at once, the others of a minute as one row.

    However many names and addresses are tried, the rows of a minute are bounded: beyond the bounds they are counted
    as other users, from other addresses.
    """

    def __init__(self, write: Callable[[Action], object]) -> None:
        self._write = write
        self._windows: dict[tuple[str, str], _Window] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    async def note(self, name: str, address: str, why: str) -> None:
        """``name``: the user, as it was given; what was tried instead, where no user is named."""
        name = name[:LONGEST_NAME].replace("\0", "�").encode(errors="replace").decode()
        key = self._count(name, network_of(address), why, time.time())
        if key is not None:
            await to_thread.run_sync(self._report, key, 1, why)

    def flush(self) -> None:
        """Writes what was counted and is in no row yet. Called at the end of each minute, and at the end."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._end_windows(time.time())

    def _count(self, name: str, address: str, why: str, now: float) -> tuple[str, str] | None:
        """The key to be reported at once, if this is the first failure of its minute."""
        with self._lock:
            key = self._key(name, address, now)
            window = self._windows.get(key)
            if window is None or (window.count == 0 and now - window.began >= WINDOW_SECONDS):
                self._windows[key] = _Window(now, why)
                return key
            window.count += 1
            window.why = why
            if self._timer is None:
                self._timer = threading.Timer(WINDOW_SECONDS, self.flush)
                self._timer.daemon = True
                self._timer.start()
            return None

    def _key(self, name: str, address: str, now: float) -> tuple[str, str]:
        """Of the row that counts this failure."""
        if (name, address) in self._windows:
            return name, address
        over = [key for key, each in self._windows.items() if not each.count and now - each.began >= WINDOW_SECONDS]
        for key in over:
            del self._windows[key]
        if len(self._windows) >= MOST_WINDOWS:
            return OTHER_USERS, OTHER_ADDRESSES
        names = sum(1 for _, other in self._windows if other == address)
        return (OTHER_USERS if names >= MOST_NAMES_OF_ADDRESS else name), address

    def _end_windows(self, now: float) -> None:
        with self._lock:
            counted = {key: each for key, each in self._windows.items() if each.count}
            # One that had failures stays for a minute: those who go on get no row at once.
            self._windows = {key: _Window(now, each.why) for key, each in counted.items()}
        for key, each in counted.items():
            self._report(key, each.count, each.why)

    def _report(self, key: tuple[str, str], count: int, why: str) -> None:
        name, address = key[0], key[1] or "an unknown address"
        failed = "1 failed sign-in" if count == 1 else f"{count} failed sign-ins"
        log.warning("%s of %r from %s (%s)", failed, name, address, why)
        try:
            self._write(
                Action(
                    at=time.time(),
                    actor=name,
                    action="session.sign_in",
                    cluster=None,
                    target=name,
                    count=count,
                    outcome="denied",
                    message=f"{failed} from {address}: {why}.",
                )
            )
        except MonitorError as error:
            log.warning("the trail of actions lacks the line above: %s", error.message)
