"""Every task that matches, a chunk at a time: for exports, whose size nothing bounds.

Each chunk is a short read of its own. One long transaction would show one moment, and would keep the database from
tidying up for as long as somebody's browser takes; so a task that is received meanwhile may be left out.
"""

from collections.abc import Iterator

from monitor.filters import Filter
from monitor.records import Task
from monitor.store.engine import Store
from monitor.store.lists import find
from monitor.store.load import load_tasks
from monitor.store.paths import choose
from monitor.store.walk import Position
from monitor.store.walk import steer

CHUNK = 1000


def walk_tasks(store: Store, filter: Filter) -> Iterator[list[Task]]:  # noqa: A002
    """The tasks in the order of the list, newest first, as lists of at most CHUNK; without their tracebacks.

    A list may be empty: as many rows as one request may look at had no match, and the walk goes on behind them.
    """
    place: Position | None = None
    while True:
        tasks, place = _chunk(store, filter, place)
        yield tasks
        if place is None:
            return


def _chunk(store: Store, filter: Filter, after: Position | None) -> tuple[list[Task], Position | None]:  # noqa: A002
    with store.read() as connection:
        steer(connection)
        found = find(connection, choose(connection, filter, CHUNK + 1), CHUNK, after)
        return load_tasks(connection, [row for _, row in found.rows]), found.next
