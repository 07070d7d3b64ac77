"""Commands that change the record alone: saved views, and the states of failure groups. Nothing reaches a broker."""

import re
import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar
from urllib.parse import parse_qsl, quote, urlencode

from celery_monitor.control.commands import ClusterCommand, Command, Performed, TaskResult
from celery_monitor.control.target import Target
from celery_monitor.errors import Conflict, InvalidInput, NotFound
from celery_monitor.records.failure import FailureState
from celery_monitor.records.page import SavedView
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.failures import UNRESOLVED, read_failure_group, set_failure_state
from celery_monitor.store.views import delete_view, read_view, rename_view, save_view

LONGEST_NAME = 80
LONGEST_PATH = 500
LONGEST_QUERY = 4000
MOST_FIELDS = 100
PASSING = frozenset({"cursor", "panel"})  # where somebody stands in a list, which is no part of the list
_path = re.compile(r"/(?!/)[\w./~%:@!$&'()*+,;=-]*", re.ASCII)  # of this dashboard: "//host" would be another's


class ViewCommand(Command, frozen=True, kw_only=True):
    """Something about saved views. They belong to the dashboard: no cluster, no broker."""

    role = Role.OPERATOR
    note = "for everybody; of the dashboard, so it names no cluster, and a read-only dashboard refuses it too"

    def prepare(self, store: Store, _: Settings, by: str) -> Callable[[], Performed]:
        return partial(self.change, store, by)

    def change(self, store: Store, by: str) -> Performed:
        """Raises InvalidInput, NotFound, and Conflict where the name is taken."""
        raise NotImplementedError


class SaveView(ViewCommand, frozen=True, kw_only=True):
    """Keep a list under a name, for everybody.

    ``query_string`` is what stands behind the ``?`` of its address.
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
    """Give a saved view another name."""

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
    """Take a saved view away from everybody.

    Why a view is taken away.
    """

    action = "view.delete"
    subject = "view {0.view}"
    route = "views/{id:int}/delete"
    body = "DeleteViewBody"
    address = ("cluster", "view")
    view: int

    def change(self, store: Store, _: str) -> Performed:
        view = delete_view(store, self.view)
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
        raise InvalidInput(f"{path[:LONGEST_PATH]!r} is no path of this dashboard, such as /tasks.", field="path")
    return path


def canonical(text: str) -> str:
    """A query in one form, without what only says where somebody stands. Raises InvalidInput."""
    try:
        given = parse_qsl(text.removeprefix("?"), max_num_fields=MOST_FIELDS)
    except ValueError:
        raise InvalidInput(f"The query has more than {MOST_FIELDS} fields.", field="query") from None
    query = urlencode([(name, value) for name, value in given if name not in PASSING], quote_via=quote)
    if len(query) > LONGEST_QUERY:
        raise InvalidInput(f"The query is longer than {LONGEST_QUERY} characters.", field="query")
    return query


ON_FAILURE = "failures/{id}/"


class ChangeFailure(ClusterCommand, frozen=True, kw_only=True):
    """Another state of a failure group."""

    role = Role.OPERATOR
    subject = "failure group {0.group}"
    body = "FailureBody"
    address = ("cluster", "group")
    note = "only marks the group"
    state: ClassVar[FailureState]
    message: ClassVar[str]
    group: int

    def run(self, target: Target) -> Performed:
        """Raises NotFound, and Conflict where the group is in that state already."""
        group = read_failure_group(target.store, self.group)
        if group.cluster != target.cluster:
            raise NotFound(f"failure group {group.id} is not of the cluster {target.cluster}", id=group.id)
        unresolved = self.state is FailureState.OPEN and group.state in UNRESOLVED
        if group.state is self.state or unresolved:
            raise Conflict(f"Failure group {group.id} is {group.state} already.", state=group.state)
        set_failure_state(target.store, group.id, self.state, target.now())
        details = {"before": group.state, "name": group.name, "exception_type": group.exception_type}
        result = TaskResult(id=str(group.id), outcome="done", message=self.message)
        return Performed(outcome="done", message=self.message, results=(result,), details=details)


class ResolveFailure(ChangeFailure, frozen=True, kw_only=True):
    """Call a kind of failure mended; its next failure is a regression.

    Why the state of a failure group is changed.
    """

    action = "failure.resolve"
    route = ON_FAILURE + "resolve"
    note = "only marks the group; one that fails again is *regressed*"
    state = FailureState.RESOLVED
    message = "Resolved. When it fails again, it is shown as regressed."


class MuteFailure(ChangeFailure, frozen=True, kw_only=True):
    """Leave a kind of failure out of the open ones."""

    action = "failure.mute"
    route = ON_FAILURE + "mute"
    state = FailureState.MUTED
    message = "Muted. It is still counted, and left out of the list of open failures."


class ReopenFailure(ChangeFailure, frozen=True, kw_only=True):
    """Take a resolved or muted kind of failure back."""

    action = "failure.reopen"
    route = ON_FAILURE + "reopen"
    state = FailureState.OPEN
    message = "Open again."


FAILURE_COMMANDS: tuple[type[ChangeFailure], ...] = (ResolveFailure, MuteFailure, ReopenFailure)
