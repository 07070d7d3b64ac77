"""Basic authentication against argon2 hashes, and how long one waits after failed attempts.

An entry is ``user:password``, ``user:hash``, ``user:role:password`` or ``user:role:hash``; without a role the user is
a viewer. A role may have a scope: ``user:operator[queue:emails]:hash``. Without any entry everybody is ``anonymous``,
and only this machine is listened to.
"""

import binascii
import hashlib
import hmac
import logging
import math
import re
import secrets
import threading
import time
from base64 import b64decode, b64encode
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv6Address, ip_address, ip_network

import argon2
from anyio import CapacityLimiter, to_thread

from celery_monitor.core.filters.scope import parse_scope
from celery_monitor.errors import InvalidInput, MonitorError, SettingsError, TooManyRequests, Unauthenticated
from celery_monitor.records.page import Action
from celery_monitor.records.user import ROLES, Actor, Role, User

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


FOREIGN_HASH = re.compile(r"\$(2[abxy]?|[156]|apr1|y|scrypt|pbkdf2[\w-]*)\$|\{S?SHA\d*\}")
SIGN_IN = "Sign in first."
_role = re.compile(rf"(?P<role>{'|'.join(ROLES)})(\[(?P<scope>[^\]]*)\])?:(?P<password>.*)", re.DOTALL)
MOST_WAITING = 32  # attempts at argon2, of which two are in work
MOST_WAITING_OF_ADDRESS = 8
_hasher = argon2.PasswordHasher()


@dataclass(frozen=True, slots=True)
class Account:
    """A name, the role it gives, and the argon2 hash of its password."""

    actor: Actor
    hash: str


def _entry(entry: str) -> tuple[Actor, str]:
    """Who an entry of basic_auth names, and the password or hash. Raises SettingsError, which never repeats it."""
    name, separator, rest = entry.partition(":")
    role, scope, password = Role.VIEWER, "", rest
    if (given := _role.match(rest)) and given["password"]:
        role, scope, password = ROLES[given["role"]], given["scope"] or "", given["password"]
    if not name or not separator or not password:
        raise SettingsError("basic_auth: write user:password, user:argon2-hash or user:role:argon2-hash")
    try:
        return Actor(name, role, str(parse_scope(scope))), password
    except InvalidInput as error:
        raise SettingsError(f"basic_auth: {name}: {error.message}") from None


def named(entries: Sequence[str]) -> list[Actor]:
    """The users of the setting basic_auth, without a look at their passwords."""
    return [_entry(entry)[0] for entry in entries]


def check_accounts(entries: Sequence[str]) -> dict[str, tuple[Actor, str]]:
    """Users with their passwords or hashes, by name, none hashed yet.

    Raises SettingsError for an entry that cannot be used, or two for one name; it never repeats a password.
    """
    found: dict[str, tuple[Actor, str]] = {}
    for entry in entries:
        actor, password = _entry(entry)
        if password.startswith("$argon2"):
            _check_hash(actor.name, password)
        elif FOREIGN_HASH.match(password):
            raise SettingsError(
                f"basic_auth: the hash of {actor.name!r} is not argon2; create one with the argon2 command"
            )
        if actor.name in found:
            raise SettingsError(f"basic_auth: two entries name the user {actor.name!r}; remove one")
        found[actor.name] = actor, password
    return found


def _check_hash(name: str, text: str) -> None:
    try:
        argon2.extract_parameters(text)
    except argon2.exceptions.InvalidHashError:
        raise SettingsError(f"basic_auth: the argon2 hash of {name!r} is damaged; was a $ lost in a shell?") from None


def parse_accounts(entries: Sequence[str]) -> dict[str, Account]:
    """Accounts by name; hashes plain passwords. Raises SettingsError as ``check_accounts`` does."""
    return {
        name: Account(actor, text if text.startswith("$argon2") else _hasher.hash(text))
        for name, (actor, text) in check_accounts(entries).items()
    }


def parse_header(header: str) -> tuple[str, str]:
    """User name and password of an Authorization header. Raises Unauthenticated."""
    scheme, _, encoded = header.partition(" ")
    try:
        text = b64decode(encoded.strip(), validate=True).decode() if scheme.lower() == "basic" else ""
    except (binascii.Error, UnicodeDecodeError):
        text = ""
    name, separator, password = text.partition(":")
    if not separator:
        raise Unauthenticated(SIGN_IN)
    return name, password


def _fitting_nothing() -> str:
    """A hash that no password fits, which takes as long to check as any other. To hash one would slow each start."""
    salt, digest = (
        b64encode(secrets.token_bytes(size)).rstrip(b"=").decode() for size in (_hasher.salt_len, _hasher.hash_len)
    )
    cost = f"m={_hasher.memory_cost},t={_hasher.time_cost},p={_hasher.parallelism}"
    return f"$argon2id$v={argon2.low_level.ARGON2_VERSION}${cost}${salt}${digest}"


class Gate:
    """Checks passwords. argon2 takes about 50 ms and 64 MB by design, so it runs in two threads, never in the event
    loop, and once per user: after that, a keyed digest of the password is compared, which nothing holds up.

    The queue for argon2 is bounded, for each address too, and who guesses has to wait longer and longer.
    """

    def __init__(
        self,
        accounts: Mapping[str, Account],
        find: Callable[[str], User | None] = lambda _: None,
        failed: FailedSignIns | None = None,
    ) -> None:
        self.accounts = accounts  # of the setting basic_auth
        self.failed = failed or FailedSignIns(lambda _: None)
        self._find = find  # those that are stored
        self._nobody = _fitting_nothing()
        self._key = secrets.token_bytes(32)
        self._verified: dict[str, tuple[bytes, str]] = {}  # digest of the password, and the hash that it fits
        self._waiting: Counter[str] = Counter()  # attempts by network, those in work included
        self._doors = Doors()

    @cached_property
    def _limiter(self) -> CapacityLimiter:
        return CapacityLimiter(2)  # anyio before 4.5 makes one only where an event loop runs

    async def admit(self, header: str, address: str = "") -> Actor:
        """The actor whom an Authorization header proves. Raises Unauthenticated and TooManyRequests."""
        name, password = parse_header(header)
        return await self.check(name, password, address)

    async def check(self, name: str, password: str, address: str) -> Actor:
        """The actor whom a name and a password prove; ``address`` is the client's.

        Raises Unauthenticated; TooManyRequests where the password was not looked at.
        """
        digest = hmac.digest(self._key, password.encode(errors="replace"), hashlib.sha256)
        account = self.accounts.get(name) or await to_thread.run_sync(self._stored, name)
        if account is not None and self._was_verified(account, digest):
            return account.actor
        try:
            return await self._try(name, account, password, digest, network_of(address))
        except (Unauthenticated, TooManyRequests):
            await self.failed.note(name, address, "password")
            raise

    async def _try(self, name: str, account: Account | None, password: str, digest: bytes, network: str) -> Actor:
        key = name[:LONGEST_NAME]
        left = self._doors.seconds_left(key, network, time.monotonic())
        if left > 0:
            raise _too_many(math.ceil(left))
        if self._waiting[network] >= MOST_WAITING_OF_ADDRESS or self._waiting.total() >= MOST_WAITING:
            raise _too_many(1)
        self._waiting[network] += 1
        try:
            right = await to_thread.run_sync(self._verify, account, password, digest, limiter=self._limiter)
        finally:
            self._waiting[network] -= 1
            if not self._waiting[network]:
                del self._waiting[network]
        if account is None or not right:
            self._doors.fail(key, network, time.monotonic())
            raise Unauthenticated(SIGN_IN)
        self._doors.succeed(key, network)
        return account.actor

    def _stored(self, name: str) -> Account | None:
        user = self._find(name) if name.isprintable() else None
        if user is None or user.disabled or user.password is None:
            return None
        return Account(Actor(user.name, user.role, user.scope), user.password)

    def _was_verified(self, account: Account, digest: bytes) -> bool:
        verified, fits = self._verified.get(account.actor.name, (b"", ""))
        return fits == account.hash and hmac.compare_digest(verified, digest)

    def _verify(self, account: Account | None, password: str, digest: bytes) -> bool:
        """An unknown user takes as long as a wrong password, so that names cannot be guessed by the clock."""
        if account is not None and self._was_verified(account, digest):
            return True
        try:
            _hasher.verify(account.hash if account else self._nobody, password)
        except argon2.exceptions.VerificationError:
            return False
        if account is None:
            return False
        self._verified[account.actor.name] = (digest, account.hash)
        return True


def _too_many(seconds: int) -> TooManyRequests:
    return TooManyRequests(f"Too many failed sign-ins; try again in {seconds} s.", seconds)
