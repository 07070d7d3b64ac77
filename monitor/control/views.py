"""Saved views: kept, renamed and deleted for everybody. Nothing reaches a broker."""

import re
import time
from collections.abc import Callable
from functools import partial
from urllib.parse import parse_qsl
from urllib.parse import quote
from urllib.parse import urlencode

from monitor.access import Role
from monitor.control.commands import Command
from monitor.control.commands import Performed
from monitor.errors import InvalidInput
from monitor.records import SavedView
from monitor.settings import Settings
from monitor.store import views
from monitor.store.engine import Store

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
        view = views.save_view(store, name, _checked_path(self.path), query, by, time.time())
        return _performed(view, f"Saved as {name!r}, for everybody.")


class RenameView(ViewCommand, frozen=True, kw_only=True):
    """Give a saved view another name."""

    action = "view.rename"
    subject = "view {0.view}"
    route = "views/{id:int}/rename"
    view: int
    name: str

    def change(self, store: Store, _: str) -> Performed:
        before = views.saved_view(store, self.view).name
        view = views.rename_view(store, self.view, _name(self.name))
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
        view = views.delete_view(store, self.view)
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
