"""Basic authentication against argon2 hashes.

An entry is ``user:password``, ``user:hash``, ``user:role:password`` or ``user:role:hash``; without a role the user is
a viewer. A role may have a scope: ``user:operator[queue:emails]:hash``. Without any entry everybody is ``anonymous``,
and only this machine is listened to.
"""

import binascii
import hashlib
import hmac
import math
import re
import secrets
import time
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import argon2
from anyio import CapacityLimiter, to_thread

from celery_monitor.core.filters.scope import parse_scope
from celery_monitor.errors import InvalidInput, SettingsError, TooManyRequests, Unauthenticated
from celery_monitor.records.user import ROLES, Actor, Role, User
from celery_monitor.web.security.attempts import LONGEST_NAME, Doors, FailedSignIns, network_of

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
                f"basic_auth: the hash of {actor.name!r} is not argon2; make one with the argon2 command"
            )
        if actor.name in found:
            raise SettingsError(f"basic_auth: two entries name the user {actor.name!r}; leave one")
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
