"""Commands that change only the record: saved views, and the states of failure groups. No broker is involved."""

import re
import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar
from urllib.parse import parse_qsl, quote, urlencode

from celery_monitor.control.commands import ClusterCommand, Command, Performed, Target, done
from celery_monitor.errors import Conflict, InvalidInput, NotFound
from celery_monitor.records.failure import FailureState
from celery_monitor.records.page import SavedView
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.rollups.failures import UNRESOLVED, read_failure_group, set_failure_state
from celery_monitor.store.views import delete_view, read_view, rename_view, save_view

LONGEST_NAME = 80
LONGEST_PATH = 500
LONGEST_QUERY = 4000
MOST_FIELDS = 100
NOT_SAVED = frozenset({"cursor", "panel"})  # the position in a list, which is not part of the view
_path = re.compile(r"/(?!/)[\w./~%:@!$&'()*+,;=-]*", re.ASCII)  # of this dashboard: "//host" would lead to another site


class ViewCommand(Command, frozen=True, kw_only=True):
    """A command for saved views, which belong to no cluster."""

    role = Role.OPERATOR
    in_part = True
    note = "for everybody, on all clusters; a read-only dashboard refuses it; with a scope, of one's own views"

    def prepare(self, store: Store, _: Settings, by: str) -> Callable[[], Performed]:
        return partial(self.change, store, by)

    def change(self, store: Store, by: str) -> Performed:
        """Raises InvalidInput, NotFound, and Conflict where the name is taken."""
        raise NotImplementedError


class SaveView(ViewCommand, frozen=True, kw_only=True):
    """Save a list under a name, for everybody.

    ``query_string`` is the part of its address after ``?``.
    """

    action = "view.save"
    subject = "{0.name}"
    route = "views/save"
    name: str
    path: str
    query_string: str = ""

    def change(self, store: Store, by: str) -> Performed:
        name, query = _name(self.name), canonical(self.query_string)
        view = save_view(store, name, _checked_path(self.path), query, by, time.time())
        return _performed(view, f"Saved as {name!r}, for everybody.")


class RenameView(ViewCommand, frozen=True, kw_only=True):
    """Rename a saved view."""

    action = "view.rename"
    subject = "view {0.view}"
    route = "views/{id:int}/rename"
    view: int
    name: str

    def change(self, store: Store, _: str) -> Performed:
        before = read_view(store, self.view).name
        view = rename_view(store, self.view, _name(self.name))
        return _performed(view, f"{before!r} is now {view.name!r}.")


class DeleteView(ViewCommand, frozen=True, kw_only=True):
    """Delete a saved view, for everybody.

    Why the view is deleted.
    """

    action = "view.delete"
    subject = "view {0.view}"
    route = "views/{id:int}/delete"
    body = "DeleteViewBody"
    address = ("cluster", "view")
    view: int

    def change(self, store: Store, _: str) -> Performed:
        view = delete_view(store, read_view(store, self.view).id)
        return _performed(view, f"Deleted {view.name!r}.")


VIEW_COMMANDS: tuple[type[ViewCommand], ...] = (SaveView, RenameView, DeleteView)


def _performed(view: SavedView, message: str) -> Performed:
    details = {"view": view.id, "name": view.name, "address": f"{view.path}?{view.query}"}
    return Performed(outcome="done", message=message, details=details)


def _name(text: str) -> str:
    name = " ".join(text.split())
    if not 0 < len(name) <= LONGEST_NAME:
        raise InvalidInput(f"A name has 1 to {LONGEST_NAME} characters, not {len(name)}.", field="name")
    return name


def _checked_path(path: str) -> str:
    if len(path) > LONGEST_PATH or not _path.fullmatch(path):
        raise InvalidInput(f"{path[:LONGEST_PATH]!r} is not a path of this dashboard, such as /tasks.", field="path")
    return path


def canonical(text: str) -> str:
    """The canonical form of a query, without the position in the list. Raises InvalidInput."""
    try:
        given = parse_qsl(text.removeprefix("?"), max_num_fields=MOST_FIELDS)
    except ValueError:
        raise InvalidInput(f"The query has more than {MOST_FIELDS} fields.", field="query") from None
    query = urlencode([(name, value) for name, value in given if name not in NOT_SAVED], quote_via=quote)
    if len(query) > LONGEST_QUERY:
        raise InvalidInput(f"The query is longer than {LONGEST_QUERY} characters.", field="query")
    return query


ON_FAILURE = "failures/{id}/"


class ChangeFailure(ClusterCommand, frozen=True, kw_only=True):
    """Set the state of a failure group."""

    role = Role.OPERATOR
    in_part = True
    subject = "failure group {0.group}"
    body = "FailureBody"
    address = ("cluster", "group")
    note = "only marks the group"
    state: ClassVar[FailureState]
    message: ClassVar[str]
    group: int

    def run(self, target: Target) -> Performed:
        """Raises NotFound, and Conflict if the group is already in that state."""
        group = read_failure_group(target.store, self.group)
        if group.cluster != target.cluster:
            raise NotFound(f"failure group {group.id} does not belong to cluster {target.cluster}", id=group.id)
        unresolved = self.state is FailureState.OPEN and group.state in UNRESOLVED
        if group.state is self.state or unresolved:
            raise Conflict(f"Failure group {group.id} is already {group.state}.", state=group.state)
        set_failure_state(target.store, group.id, self.state, target.now())
        details = {"before": group.state, "name": group.name, "exception_type": group.exception_type}
        return Performed.of_one(done(str(group.id), self.message), details)


class ResolveFailure(ChangeFailure, frozen=True, kw_only=True):
    """Mark a failure group as resolved; its next failure is a regression.

    Why the state is changed.
    """

    action = "failure.resolve"
    route = ON_FAILURE + "resolve"
    note = "only marks the group; one that fails again is *regressed*"
    state = FailureState.RESOLVED
    message = "Resolved. A new failure of this kind is shown as regressed."


class MuteFailure(ChangeFailure, frozen=True, kw_only=True):
    """Mute a failure group: it leaves the list of open failures."""

    action = "failure.mute"
    route = ON_FAILURE + "mute"
    state = FailureState.MUTED
    message = "Muted. Still counted, but not in the list of open failures."


class ReopenFailure(ChangeFailure, frozen=True, kw_only=True):
    """Reopen a resolved or muted failure group."""

    action = "failure.reopen"
    route = ON_FAILURE + "reopen"
    state = FailureState.OPEN
    message = "Reopened."


FAILURE_COMMANDS: tuple[type[ChangeFailure], ...] = (ResolveFailure, MuteFailure, ReopenFailure)
