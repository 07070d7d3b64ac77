"""What an event must be before it is stored: sane numbers, bounded text, no secrets. No I/O.

Nearly every event has nothing to clean. So names and numbers are looked at by the decoder, and the texts of several
events at once; only where something is found is it looked for field by field.
"""

import math
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Annotated
from typing import NamedTuple

import msgspec

from monitor.records import Event
from monitor.records import Message
from monitor.redact import Redactor

LATEST_TIME = 32_503_680_000.0  # the year 3000; a later stamp is no time
_LARGEST_INT = 2**31 - 1
CUT = "…"  # behind a text that was cut: fidelity.py knows it


class Fields(NamedTuple):
    """What is looked at in an event: names, longer texts, numbers."""

    names: tuple[str, ...]
    texts: tuple[str, ...] = ()
    ints: tuple[str, ...] = ()


_ENDED = Fields(("uuid", "hostname"), ("result", "exception", "traceback"), ("pid",))
_MESSAGE = ("uuid", "hostname", "name", "root_id", "parent_id", "queue", "exchange", "routing_key")
_ALL = Fields(
    (*_MESSAGE, "type", "sw_ident", "sw_ver", "sw_sys"),
    ("args", "kwargs", "result", "exception", "traceback"),
    ("pid", "retries", "active", "processed"),
)
# Of these types, only what fold takes from them; of all others, everything.
_FIELDS = {
    "task-sent": Fields(_MESSAGE, ("args", "kwargs"), ("pid", "retries")),
    "task-received": Fields(_MESSAGE, ("args", "kwargs"), ("pid", "retries")),
    "task-started": Fields(("uuid", "hostname"), (), ("pid",)),
    "task-succeeded": Fields(("uuid", "hostname"), ("result",), ("pid",)),
    "task-failed": _ENDED,
    "task-retried": _ENDED,
}
NAME_LENGTH = 512
MAX_HEADERS = 1_000_000  # characters of a captured message's headers; beyond, they are no message's
AT_ONCE = 25  # events whose texts are looked at together
_Name = Annotated[str, msgspec.Meta(max_length=NAME_LENGTH)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST_INT)]


class Checked(Event, frozen=True, gc=False, kw_only=True):
    """An event whose names and numbers need no cleaning: the JSON decoder looks at them in C.

    Only of a body without NUL. A captured message is never such an event. Its texts are not looked at.
    """

    type: _Name
    timestamp: Annotated[float, msgspec.Meta(gt=0, lt=LATEST_TIME)]
    hostname: _Name
    uuid: _Name | None = None
    name: _Name | None = None
    root_id: _Name | None = None
    parent_id: _Name | None = None
    queue: _Name | None = None
    exchange: _Name | None = None
    routing_key: _Name | None = None
    sw_ident: _Name | None = None
    sw_ver: _Name | None = None
    sw_sys: _Name | None = None
    pid: _Count | None = None
    retries: _Count | None = None
    active: _Count | None = None
    processed: _Count | None = None
    runtime: Annotated[float, msgspec.Meta(ge=0)] | None = None
    message: None = None


class Intake:
    """Cleans events; gives the same event back where there is nothing to clean."""

    def __init__(self, max_text: int, redact: Sequence[str], max_message: int = 1024 * 1024) -> None:
        self._max_message = max_message
        self._max_text = max_text
        self._redactor = Redactor(redact)

    def clean_all(self, events: Sequence[Event]) -> Iterator[Event | None]:
        """Each event as it may be stored; ``None`` in the place of one whose time or task id is none."""
        for start in range(0, len(events), AT_ONCE):
            some = events[start : start + AT_ONCE]
            if self._are_clean(some):
                yield from some
            else:
                yield from map(self.clean, some)

    def _are_clean(self, events: Sequence[Event]) -> bool:
        """For certain; False only means that they must be looked at closely."""
        if set(map(type, events)) != {Checked}:
            return False
        given = [t for e in events for t in (e.args, e.kwargs, e.result, e.exception, e.traceback) if t]
        texts = "\n".join(given)
        return len(texts) <= self._max_text and not self._redactor.suspects(texts)

    def clean(self, event: Event) -> Event | None:
        """The event as it may be stored; ``None`` for one whose time or task id is none."""
        if not 0 < event.timestamp < LATEST_TIME or (event.uuid is None and event.type.startswith("task-")):
            return None
        return self._cleaned(event)

    def _cleaned(self, event: Event) -> Event:
        changes: dict[str, object] = {}
        fields = _FIELDS.get(event.type, _ALL)
        for field in fields.names:
            value = getattr(event, field)
            if value is not None and (len(value) > NAME_LENGTH or not plain(value)):
                changes[field] = storable(value)[:NAME_LENGTH]
        for field in fields.texts:
            value = getattr(event, field)
            if value:
                text = self.text(value)
                if text is not value:
                    changes[field] = text
        for field in fields.ints:
            number = getattr(event, field)
            if number is not None and not 0 <= number <= _LARGEST_INT:
                changes[field] = None
        if event.runtime is not None and not 0 <= event.runtime < math.inf:
            changes["runtime"] = None
        if event.message is not None:
            changes["message"] = self._message(event.message)
        return msgspec.structs.replace(event, **changes) if changes else event

    def _message(self, message: Message) -> Message | None:
        """Bounded. Nothing in it is masked, or it could not be sent again: so it is stored apart, and not shown."""
        if len(message.headers) + len(message.properties) > MAX_HEADERS:
            return None
        names = ("why", "content_type", "content_encoding", "exchange", "routing_key", "queue", "chord")
        given = {name: getattr(message, name) for name in names}
        short = {name: storable(text)[:NAME_LENGTH] for name, text in given.items() if text is not None}
        body = message.body if message.body is None or len(message.body) <= self._max_message else None
        return msgspec.structs.replace(message, body=body, **short)

    def text(self, text: str) -> str:
        """A text with its secrets masked, then cut to what is kept."""
        if not plain(text):
            text = storable(text)
        masked = self._redactor.text(text)
        if len(masked) <= self._max_text:
            return masked
        return masked[: self._max_text - len(CUT)] + CUT


def plain(text: str) -> bool:
    """Any database stores it as it is."""
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def storable(text: str) -> str:
    """NUL and lone surrogates, which databases refuse, as U+FFFD."""
    return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
