"""Which live view is read next. Users take turns, so that one with many views does not hold up the others."""

from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

View = TypeVar("View", bound=Hashable)


@dataclass(slots=True)
class _Queue(Generic[View]):
    """The views of one user that wait. Dictionaries, for their order and since a view waits once."""

    urgent: dict[View, None] = field(default_factory=dict)  # somebody has seen nothing of it yet
    later: dict[View, None] = field(default_factory=dict)

    def __iter__(self) -> Iterator[View]:
        yield from [*self.urgent, *self.later]

    def remove(self, view: View) -> None:
        self.urgent.pop(view, None)
        self.later.pop(view, None)


class Turns(Generic[View]):
    """Round robin over users; at most one view of a user is read at a time, and a view is read once for all users."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue[View]] = {}  # the user whose turn is next at the front
        self._waiting: set[View] = set()
        self._busy: dict[str, View] = {}

    def ask(self, view: View, users: Iterable[str], *, urgent: bool = False) -> None:
        """The view shall be read; the turn of any of these users will do."""
        self._waiting.add(view)
        for user in users:
            queue = self._queues.setdefault(user, _Queue())
            if urgent:
                queue.later.pop(view, None)
                queue.urgent[view] = None
            elif view not in queue.urgent:
                queue.later[view] = None

    def drop(self, view: View, user: str) -> None:
        """Nobody has the view open any more; ``user`` was the last."""
        self._waiting.discard(view)
        if (queue := self._queues.get(user)) is not None:
            queue.remove(view)

    def take(self) -> tuple[str, View] | None:
        """Whose turn it is, and the view to be read; ``None`` while nothing can be read."""
        for user in list(self._queues):
            if user in self._busy:
                continue
            view = self._next(self._queues[user])
            queue = self._queues.pop(user)
            if queue.urgent or queue.later:
                self._queues[user] = queue  # at the end
            if view is not None:
                self._waiting.discard(view)
                self._busy[user] = view
                return user, view
        return None

    def done(self, user: str) -> None:
        """The view that was taken for this user has been read."""
        del self._busy[user]

    def _next(self, queue: _Queue[View]) -> View | None:
        for view in queue:
            if view in self._waiting and view in self._busy.values():
                continue  # read just now, for another user; what has changed since must be read after that
            queue.remove(view)
            if view in self._waiting:  # else it was read in another user's turn
                return view
        return None
