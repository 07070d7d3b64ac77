"""Commands for users, sessions and API tokens. They belong to the dashboard: no cluster, no broker."""

import re
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from getpass import getuser
from typing import Annotated, Any, ClassVar, Literal

import argon2
from msgspec import Meta

from celery_monitor.control.commands import Command, Performed
from celery_monitor.control.perform import Controller
from celery_monitor.core.filters.scope import LONGEST, parse_scope
from celery_monitor.core.words import counted
from celery_monitor.errors import Conflict, InvalidInput
from celery_monitor.records.user import ROLES, Actor, ApiToken, Role, User, of_scope
from celery_monitor.settings import Settings
from celery_monitor.store.accounts import users
from celery_monitor.store.engine import Store, open_store

DAY = 86400.0
SHORTEST_PASSWORD = 8
LONGEST_PASSWORD = 1024
LONGEST_DAYS = 3650
UserName = Annotated[str, Meta(min_length=1, max_length=200, extra={"bytes": True, "strip": True})]
TokenName = Annotated[str, Meta(min_length=1, max_length=200, extra={"bytes": True, "strip": True})]
RoleName = Literal["viewer", "operator", "admin"]
TokenRoleName = Literal["metrics", "viewer", "operator", "admin"]
ScopeText = Annotated[str, Meta(max_length=LONGEST, extra={"strip": True})]
_unprintable = re.compile(r"[\x00-\x1f\x7f:]")  # a colon ends the name in basic authentication
_hasher = argon2.PasswordHasher()


def hash_password(password: str) -> str:
    """An argon2 hash. Raises InvalidInput for a password that is too short or too long."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise InvalidInput(
            f"A password must have {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters.", field="password"
        )
    return _hasher.hash(password)


class UserCommand(Command, frozen=True, kw_only=True):
    """Something about users, sessions or API tokens; for admins."""

    note: ClassVar[str] = "of the dashboard, so it names no cluster; a read-only dashboard refuses it too"

    def prepare(self, store: Store, settings: Settings, by: str) -> Callable[[], Performed]:
        return partial(self.change, store, settings, by)

    def change(self, store: Store, settings: Settings, by: str) -> Performed:
        """Raises InvalidInput, NotFound and Conflict."""
        raise NotImplementedError


class AddUser(UserCommand, frozen=True, kw_only=True):
    """Add a user who can sign in."""

    action = "user.add"
    subject = "{0.name}"
    name: UserName
    role_name: RoleName = "viewer"
    password: str | None = None  # None: a trusted proxy or an identity provider says who signs in
    scope: ScopeText = ""  # what the user may see and act on; empty: everything

    def change(self, store: Store, settings: Settings, _: str) -> Performed:
        if _unprintable.search(self.name):
            raise InvalidInput("A user name can't contain a colon or a control character.", field="name")
        if self.name in names_of_setting(settings):
            raise Conflict(f"The setting basic_auth has a user {self.name!r} already.", name=self.name)
        user = User(
            name=self.name,
            role=ROLES[self.role_name],
            scope=str(parse_scope(self.scope)),
            password=None if self.password is None else hash_password(self.password),
            created_at=time.time(),
        )
        added = users.add_user(store, user, first=Role.ADMIN if not settings.basic_auth else None)
        return _performed(f"Added {added.name} as {added.role.name.lower()}{of_scope(added.scope)}.")


class ChangeRole(UserCommand, frozen=True, kw_only=True):
    """Change the role of a user."""

    action = "user.role"
    subject = "{0.name}"
    name: UserName
    role_name: RoleName

    def change(self, store: Store, settings: Settings, _: str) -> Performed:
        if ROLES[self.role_name] is not Role.ADMIN:
            _check_admin_left(store, settings, self.name)
        user = users.change_user(store, self.name, role=int(ROLES[self.role_name]))
        return _performed(f"{user.name} is now {user.role.name.lower()}.")


class ChangeScope(UserCommand, frozen=True, kw_only=True):
    """Change what a user may see and act on."""

    action = "user.scope"
    subject = "{0.name}"
    name: UserName
    scope: ScopeText = ""  # everything

    def change(self, store: Store, settings: Settings, _: str) -> Performed:
        scope = str(parse_scope(self.scope))
        if scope:
            _check_admin_left(store, settings, self.name)
        user = users.change_user(store, self.name, scope=scope)
        return _performed(f"{user.name} is {user.role.name.lower()}{of_scope(user.scope) or ' of everything'}.")


class DisableUser(UserCommand, frozen=True, kw_only=True):
    """Disable a user and end all of the user's sessions."""

    action = "user.disable"
    subject = "{0.name}"
    name: UserName

    def change(self, store: Store, settings: Settings, _: str) -> Performed:
        _check_admin_left(store, settings, self.name)
        user = users.change_user(store, self.name, disabled=1)
        ended = users.end_sessions(store, user.name)
        return _performed(f"Disabled {user.name}; {counted(ended, 'session')} ended.")


class EnableUser(UserCommand, frozen=True, kw_only=True):
    """Let a disabled user sign in again."""

    action = "user.enable"
    subject = "{0.name}"
    name: UserName

    def change(self, store: Store, _: Settings, __: str) -> Performed:
        return _performed(f"{users.change_user(store, self.name, disabled=0).name} can sign in again.")


class ResetPassword(UserCommand, frozen=True, kw_only=True):
    """Set a new password for a user and end all of the user's sessions."""

    action = "user.password"
    subject = "{0.name}"
    name: UserName
    password: str

    def change(self, store: Store, _: Settings, __: str) -> Performed:
        user = users.change_user(store, self.name, password=hash_password(self.password))
        ended = users.end_sessions(store, user.name)
        return _performed(f"{user.name} has a new password; {counted(ended, 'session')} ended.")


class RemoveUser(UserCommand, frozen=True, kw_only=True):
    """Remove a user and end all of the user's sessions."""

    action = "user.remove"
    subject = "{0.name}"
    name: UserName

    def change(self, store: Store, settings: Settings, _: str) -> Performed:
        _check_admin_left(store, settings, self.name)
        user = users.remove_user(store, self.name)
        ended = users.end_sessions(store, user.name)
        return _performed(f"Removed {user.name}; {counted(ended, 'session')} ended.")


class EndSession(UserCommand, frozen=True, kw_only=True):
    """End one session: that browser must sign in again."""

    action = "session.end"
    subject = "session {0.session}"
    session: Annotated[str, Meta(min_length=1, max_length=64)]

    def change(self, store: Store, _: Settings, __: str) -> Performed:
        users.end_session(store, self.session)
        return _performed("The session has ended.")


class EndSessions(UserCommand, frozen=True, kw_only=True):
    """End all sessions of a user."""

    action = "session.end_all"
    subject = "{0.name}"
    name: UserName

    def change(self, store: Store, _: Settings, __: str) -> Performed:
        return _performed(
            f"{counted(users.end_sessions(store, self.name), 'session').capitalize()} of {self.name} ended."
        )


class MakeToken(UserCommand, frozen=True, kw_only=True):
    """Create an API token for a script."""

    action = "token.make"
    subject = "{0.name}"
    name: TokenName
    role_name: TokenRoleName = "viewer"
    scope: ScopeText = ""
    days: Annotated[float, Meta(gt=0, le=LONGEST_DAYS, extra={"unit": " days"})] | None = None

    def change(self, store: Store, _: Settings, by: str) -> Performed:
        if _unprintable.search(self.name):
            raise InvalidInput("A token name can't contain a colon or a control character.", field="name")
        now = time.time()
        token = ApiToken(
            id=0,
            name=self.name,
            role=ROLES[self.role_name],
            scope=str(parse_scope(self.scope)),
            actor=by,
            created_at=now,
            expires_at=None if self.days is None else now + self.days * DAY,
        )
        made, secret = users.make_token(store, token)
        return Performed(outcome="done", message=f"Created the API token {made.name!r}.", secret=secret)


class RevokeToken(UserCommand, frozen=True, kw_only=True):
    """Revoke an API token: it opens nothing any more."""

    action = "token.revoke"
    subject = "{0.name}"
    name: TokenName

    def change(self, store: Store, _: Settings, __: str) -> Performed:
        return _performed(f"Revoked the API token {users.revoke_token(store, self.name).name!r}.")


USER_COMMANDS: tuple[type[UserCommand], ...] = (
    AddUser, ChangeRole, ChangeScope, DisableUser, EnableUser, ResetPassword, RemoveUser, EndSession, EndSessions,
    MakeToken, RevokeToken,
)  # fmt: skip


def perform_locally(settings: Settings, action: str, **fields: Any) -> Performed:
    """Performs a command as the user of this machine who runs the command line, also on a read-only dashboard."""
    command = next(each for each in USER_COMMANDS if each.action == action)
    actor = Actor(f"{getuser()} (command line)", Role.ADMIN)
    with closing(open_store(settings.database)) as store:
        return Controller(store, replace(settings, read_only=False)).perform(actor, command(**fields))


def names_of_setting(settings: Settings) -> frozenset[str]:
    """The users of the setting basic_auth."""
    return frozenset(entry.partition(":")[0] for entry in settings.basic_auth)


def _check_admin_left(store: Store, settings: Settings, name: str) -> None:
    """Raises Conflict where nobody but ``name`` could manage users afterwards."""
    if settings.basic_auth:
        return  # whoever starts the dashboard can name an admin there
    others = [user for user in users.read_users(store) if user.name != name]
    if not any(user.role is Role.ADMIN and not user.disabled and not user.scope for user in others):
        raise Conflict(f"{name} is the only admin; make another user admin first.", name=name)


def _performed(message: str) -> Performed:
    return Performed(outcome="done", message=message)
