"""Saved views: kept, renamed and deleted for everybody. Nothing reaches a broker."""

import re
import time
from urllib.parse import parse_qsl
from urllib.parse import quote
from urllib.parse import urlencode

from monitor.control.commands import Performed
from monitor.control.view_commands import DeleteView
from monitor.control.view_commands import RenameView
from monitor.control.view_commands import SaveView
from monitor.control.view_commands import ViewCommand
from monitor.errors import InvalidInput
from monitor.store import views
from monitor.store.engine import Store

LONGEST_NAME = 80
LONGEST_PATH = 500
LONGEST_QUERY = 4000
MOST_FIELDS = 100
PASSING = frozenset({"cursor", "panel"})  # where somebody stands in a list, which is no part of the list
_path = re.compile(r"/(?!/)[\w./~%:@!$&'()*+,;=-]*", re.ASCII)  # of this dashboard: "//host" would be another's


def change_view(store: Store, command: ViewCommand, actor: str) -> Performed:
    """Raises InvalidInput, NotFound, and Conflict where the name is taken."""
    match command:
        case SaveView():
            name, query = _name(command.name), canonical(command.query_string)
            view = views.save_view(store, name, _checked_path(command.path), query, actor, time.time())
            said = f"Saved as {name!r}, for everybody."
        case RenameView():
            before = views.saved_view(store, command.view).name
            view = views.rename_view(store, command.view, _name(command.name))
            said = f"{before!r} is now {view.name!r}."
        case DeleteView():
            view = views.delete_view(store, command.view)
            said = f"Deleted {view.name!r}."
    details = {"view": view.id, "name": view.name, "address": f"{view.path}?{view.query}"}
    return Performed(outcome="done", message=said, details=details)


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
