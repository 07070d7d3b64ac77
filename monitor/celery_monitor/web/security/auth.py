"""Basic authentication against argon2 hashes.

An entry is ``user:password``, ``user:hash``, ``user:role:password`` or ``user:role:hash``; without a role the user is
admin. Without any entry every client is ``anonymous``, and only this machine may connect.
"""

import binascii
import hashlib
import hmac
import re
import secrets
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass

import argon2
from anyio import CapacityLimiter, to_thread

from celery_monitor.control.commands import Actor, Role
from celery_monitor.errors import SettingsError, Unauthenticated

ROLES = {role.name.lower(): role for role in Role}
FOREIGN_HASH = re.compile(r"\$(2[abxy]?|[156]|apr1|y|scrypt|pbkdf2[\w-]*)\$|\{S?SHA\d*\}")
SIGN_IN = "Sign in with a user name and password from the setting basic_auth."
_hasher = argon2.PasswordHasher()


@dataclass(frozen=True, slots=True)
class User:
    """One entry of the setting ``basic_auth``, its password hashed."""

    actor: Actor
    hash: str


def parse_user(entry: str) -> User:
    """Parses one entry; hashes a plain password. Raises SettingsError, which never contains the password."""
    name, separator, rest = entry.partition(":")
    word, _, after = rest.partition(":")
    role, password = (ROLES[word], after) if word in ROLES and after else (Role.ADMIN, rest)
    if not name or not separator or not password:
        raise SettingsError("basic_auth: write user:password, user:argon2-hash or user:role:argon2-hash")
    if password.startswith("$argon2"):
        return User(Actor(name, role), _checked_hash(name, password))
    if FOREIGN_HASH.match(password):
        raise SettingsError(f"basic_auth: the hash of {name!r} is not argon2; make one with the argon2 command")
    return User(Actor(name, role), _hasher.hash(password))


def _checked_hash(name: str, text: str) -> str:
    try:
        argon2.extract_parameters(text)
    except argon2.exceptions.InvalidHashError:
        raise SettingsError(f"basic_auth: the argon2 hash of {name!r} is damaged; was a $ lost in a shell?") from None
    return text


def parse_users(entries: Sequence[str]) -> dict[str, User]:
    """Users by name. Raises SettingsError, also for a repeated name."""
    users: dict[str, User] = {}
    for entry in entries:
        user = parse_user(entry)
        if user.actor.name in users:
            raise SettingsError(f"basic_auth: two entries for the user {user.actor.name!r}; remove one")
        users[user.actor.name] = user
    return users


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

    def __init__(self, users: dict[str, User]) -> None:
        self.users = users
        self._nobody = _hasher.hash(secrets.token_hex())
        self._key = secrets.token_bytes(32)
        self._digests: dict[str, bytes] = {}
        self._limiter = CapacityLimiter(2)

    async def admit(self, header: str) -> Actor:
        """The user of an Authorization header. Raises Unauthenticated."""
        name, password = parse_header(header)
        digest = hmac.digest(self._key, password.encode(), hashlib.sha256)
        if not self._is_verified(name, digest) and not await to_thread.run_sync(
            self._verify, name, password, digest, limiter=self._limiter
        ):
            raise Unauthenticated(SIGN_IN)
        return self.users[name].actor

    def _is_verified(self, name: str, digest: bytes) -> bool:
        return hmac.compare_digest(self._digests.get(name, b""), digest)

    def _verify(self, name: str, password: str, digest: bytes) -> bool:
        """An unknown user takes as long as a wrong password, so that timing reveals no names."""
        if self._is_verified(name, digest):
            return True
        user = self.users.get(name)
        try:
            _hasher.verify(user.hash if user else self._nobody, password)
        except argon2.exceptions.VerificationError:
            return False
        if user is None:
            return False
        self._digests[name] = digest
        return True
