"""Basic authentication against argon2 hashes.

An entry is ``user:password``, ``user:hash``, ``user:role:password`` or ``user:role:hash``; without a role the user is
a viewer. Without any entry everybody is ``anonymous``, and only this machine is listened to.
"""

import binascii
import hashlib
import hmac
import re
import secrets
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import argon2
from anyio import CapacityLimiter, to_thread

from celery_monitor.errors import SettingsError, Unauthenticated
from celery_monitor.records.user import ROLES, Actor, Role, User

FOREIGN_HASH = re.compile(r"\$(2[abxy]?|[156]|apr1|y|scrypt|pbkdf2[\w-]*)\$|\{S?SHA\d*\}")
SIGN_IN = "Sign in first."
_hasher = argon2.PasswordHasher()


@dataclass(frozen=True, slots=True)
class Account:
    """A name, the role it gives, and the argon2 hash of its password."""

    actor: Actor
    hash: str


def _entry(entry: str) -> tuple[Actor, str]:
    """Who an entry of basic_auth names, and the password or hash. Raises SettingsError, which never repeats it."""
    name, separator, rest = entry.partition(":")
    word, _, after = rest.partition(":")
    role, password = (ROLES[word], after) if word in ROLES and after else (Role.VIEWER, rest)
    if not name or not separator or not password:
        raise SettingsError("basic_auth: write user:password, user:argon2-hash or user:role:argon2-hash")
    return Actor(name, role), password


def named(entries: Sequence[str]) -> list[Actor]:
    """The users of the setting basic_auth, without a look at their passwords."""
    return [_entry(entry)[0] for entry in entries]


def parse_account(entry: str) -> Account:
    """Reads one entry; hashes a plain password. Raises SettingsError, which never repeats the password."""
    actor, password = _entry(entry)
    if password.startswith("$argon2"):
        return Account(actor, _checked_hash(actor.name, password))
    if FOREIGN_HASH.match(password):
        raise SettingsError(f"basic_auth: the hash of {actor.name!r} is not argon2; make one with the argon2 command")
    return Account(actor, _hasher.hash(password))


def _checked_hash(name: str, text: str) -> str:
    try:
        argon2.extract_parameters(text)
    except argon2.exceptions.InvalidHashError:
        raise SettingsError(f"basic_auth: the argon2 hash of {name!r} is damaged; was a $ lost in a shell?") from None
    return text


def parse_accounts(entries: Sequence[str]) -> dict[str, Account]:
    """Accounts by name. Raises SettingsError, also when two entries name one user."""
    accounts: dict[str, Account] = {}
    for entry in entries:
        account = parse_account(entry)
        if account.actor.name in accounts:
            raise SettingsError(f"basic_auth: two entries name the user {account.actor.name!r}; leave one")
        accounts[account.actor.name] = account
    return accounts


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


class Gate:
    """Checks passwords. argon2 takes about 50 ms and 64 MB by design, so it runs in two threads, never in the event
    loop, and once per user: after that, a keyed digest of the password is compared.
    """

    def __init__(self, accounts: Mapping[str, Account], find: Callable[[str], User | None] = lambda _: None) -> None:
        self.accounts = accounts  # of the setting basic_auth
        self._find = find  # those that are stored
        self._nobody = _hasher.hash(secrets.token_hex())
        self._key = secrets.token_bytes(32)
        self._verified: dict[str, tuple[bytes, str]] = {}  # digest of the password, and the hash that it fits
        self._limiter = CapacityLimiter(2)

    async def admit(self, header: str, address: str = "") -> Actor:
        """The actor whom an Authorization header proves. Raises Unauthenticated."""
        name, password = parse_header(header)
        return await self.check(name, password, address)

    async def check(self, name: str, password: str, address: str) -> Actor:
        """The actor whom a name and a password prove; ``address`` is the client's. Raises Unauthenticated."""
        account = self.accounts.get(name) or await to_thread.run_sync(self._stored, name)
        digest = hmac.digest(self._key, password.encode(errors="replace"), hashlib.sha256)
        if not self._was_verified(account, digest) and not await to_thread.run_sync(
            self._verify, account, password, digest, limiter=self._limiter
        ):
            raise Unauthenticated(SIGN_IN)
        if account is None:
            raise Unauthenticated(SIGN_IN)
        return account.actor

    def _stored(self, name: str) -> Account | None:
        user = self._find(name)
        if user is None or user.disabled or user.password is None:
            return None
        return Account(Actor(user.name, user.role), user.password)

    def _was_verified(self, account: Account | None, digest: bytes) -> bool:
        if account is None:
            return False
        verified, fits = self._verified.get(account.actor.name, (b"", ""))
        return fits == account.hash and hmac.compare_digest(verified, digest)

    def _verify(self, account: Account | None, password: str, digest: bytes) -> bool:
        """An unknown user takes as long as a wrong password, so that names cannot be guessed by the clock."""
        if self._was_verified(account, digest):
            return True
        try:
            _hasher.verify(account.hash if account else self._nobody, password)
        except argon2.exceptions.VerificationError:
            return False
        if account is None:
            return False
        self._verified[account.actor.name] = (digest, account.hash)
        return True
