"""Users, their sessions and the API tokens: for admins."""

from collections.abc import Mapping
from typing import TypeVar

from celery_monitor.control.users import (
    AddUser,
    ChangeRole,
    ChangeScope,
    DisableUser,
    EnableUser,
    EndSession,
    EndSessions,
    MakeToken,
    RemoveUser,
    ResetPassword,
    RevokeToken,
    UserCommand,
)
from celery_monitor.errors import Forbidden, MonitorError
from celery_monitor.records.user import ROLES, Role
from celery_monitor.store.accounts.users import read_sessions, read_tokens, read_users
from celery_monitor.web.pages import Act, Context, FormRequest, Page, Result, View, command_of, fields
from celery_monitor.web.security.auth import named

PATH = "/users"
MOST_SESSIONS = 500
CommandT = TypeVar("CommandT", bound=UserCommand)


def context(view: View) -> Context:
    if view.role < Role.ADMIN:
        raise Forbidden("Users, sessions and API tokens are for admins.")
    sessions = read_sessions(view.store)
    return {
        "users": read_users(view.store),
        "setting_users": named(view.settings.basic_auth),
        "sessions": sessions[:MOST_SESSIONS],
        "more_sessions": len(sessions) - MOST_SESSIONS,
        "tokens": read_tokens(view.store),
        "roles": tuple(name for name, role in ROLES.items() if role > Role.METRICS),
        "token_roles": tuple(ROLES),
        "may_change": view.may("user.add"),
        "secret": None,
    }


def _act(command: type[CommandT]) -> Act:
    def act(_: View, request: FormRequest) -> Result:
        try:
            performed = request.controller.perform(request.actor, command_of(command, fields(request.form)))
        except MonitorError as error:
            return Result(PATH, {}, error.message, "bad")
        if performed.secret is not None:
            return Result(context={"secret": performed.secret})
        return Result(PATH, {}, performed.message)

    return act


ACTIONS: Mapping[str, type[UserCommand]] = {
    "add": AddUser,
    "role": ChangeRole,
    "scope": ChangeScope,
    "disable": DisableUser,
    "enable": EnableUser,
    "password": ResetPassword,
    "remove": RemoveUser,
    "end-session": EndSession,
    "end-sessions": EndSessions,
    "make-token": MakeToken,
    "revoke-token": RevokeToken,
}

PAGE = Page(
    PATH,
    "users.html",
    context,
    title="Users",
    actions={name: _act(command) for name, command in ACTIONS.items()},
)
