"""What a captured message says, read without the user's code and without unpickling. No I/O."""

import bz2
import json
import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from celery_monitor.core.sanitize import NAME_LENGTH, Redactor
from celery_monitor.records.event import KEPT_BY_BROKER, Message
from celery_monitor.records.task import Task

JSON = "application/json"
MAX_READ = 4 * 1024 * 1024  # bytes of a body that are unpacked in order to show it


class Unreadable(ValueError):
    """A message, or a part of it, that is no use to us; the text says why."""


class MessageFacts(NamedTuple):
    """What events leave out of a task. ``None``: the message does not say."""

    name: str | None  # the task's own, which events replace by its shadow
    shadow: str | None
    priority: int | None
    group: str | None
    group_index: int | None
    beat: str | None  # name of the schedule's entry that sent it
    stamps: Mapping[str, object]
    expires: str | None
    eta: str | None


def facts(message: Message) -> MessageFacts:
    """Raises Unreadable where the headers are none."""
    headers = object_of(message.headers)
    properties = object_of(message.properties)
    stamps = headers.get("stamps")
    return MessageFacts(
        name=_text(headers.get("task")),
        shadow=_text(headers.get("shadow")),
        priority=_number(properties.get("priority")),
        group=_text(headers.get("group")),
        group_index=_number(headers.get("group_index")),
        beat=_text(headers.get("periodic_task_name")) or _text(headers.get("celery_beat_task")),
        stamps=stamps if isinstance(stamps, dict) else {},
        expires=_text(headers.get("expires")),
        eta=_text(headers.get("eta")),
    )


def stamps_of(known: MessageFacts, redactor: Redactor) -> dict[str, object]:
    """The stamps as they may be shown."""
    try:
        return object_of(redactor.text(json.dumps(known.stamps)))
    except Unreadable:
        return {}


def object_of(text: str) -> dict[str, object]:
    """A JSON object; raises Unreadable."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("its headers cannot be read") from None
    if not isinstance(value, dict):
        raise Unreadable("its headers are no object")
    return value


def with_links(message: Message) -> Message:
    """The message with what its body says behind the arguments, where that is JSON; else that it is not known."""
    try:
        document = json.loads(json_text(message))
        links = document[2]
        chord = links.get("chord")
        return msgspec.structs.replace(
            message,
            chain=len(links.get("chain") or ()),
            callbacks=len(links.get("callbacks") or ()),
            errbacks=len(links.get("errbacks") or ()),
            chord=str(chord.get("task")) if isinstance(chord, dict) else None,
            links=True,
        )
    except (Unreadable, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return msgspec.structs.replace(message, links=False)


def may_be_in_chord(message: Message) -> bool:
    """Whether it may be a member of a chord, though its body does not tell: those are members of a group."""
    try:
        return not message.links and facts(message).group is not None
    except Unreadable:
        return False


def why_not_exact(message: Message, task: Task) -> str | None:
    """Why a message cannot be sent again as it was; ``None`` where it can."""
    how = "found" if message.why in KEPT_BY_BROKER else "captured"
    if message.body is None:
        return f"its message was {how}, but its body of {message.size} bytes was too large to keep"
    try:
        headers = object_of(message.headers)
    except Unreadable as error:
        return f"its message was {how}, but {error}"
    if headers.get("id") != task.id or not _text(headers.get("task")):
        return f"its message was {how}, but is of another task"
    if other := _is_of_another_call(headers, task):
        return f"its message was {how}, but {other}"
    attempt = _number(headers.get("retries"))
    if attempt is not None and task.retries is not None and attempt < task.retries:
        return f"its message was {how} of attempt {attempt + 1} alone, and attempt {task.retries + 1} may differ"
    if not message.content_type or not (message.routing_key or message.queue):
        return f"its message was {how}, but its content type or its route is missing"
    return None


def _is_of_another_call(headers: Mapping[str, object], task: Task) -> str | None:
    """A task that was replaced, or sent again, has several messages under its id: why one is not the latest."""
    named = {_text(headers.get("task")), _text(headers.get("shadow"))}
    if task.name is not None and task.name not in named and len(task.name) < NAME_LENGTH:
        return f"of a call of {headers.get('task')}, and the latest is of {task.name}"
    run = task.run
    if run is not None and run.replacing and headers.get("replaced_task_nesting") == 0:
        return "of the call that was replaced"
    for field, header in ((task.args, "argsrepr"), (task.kwargs, "kwargsrepr")):
        text = headers.get(header)
        if isinstance(text, str) and field is not None and not _may_be_text(text, field):
            return "of a call with other arguments"
    return None


def _may_be_text(text: str, stored: str) -> bool:
    """Whether a text was stored so: secrets are masked then, and what cannot be stored is replaced or cut."""
    return text == stored or any(mark in stored for mark in ("***", "\ufffd", "…"))


def json_text(message: Message) -> str:
    """The body as JSON text; raises Unreadable for other serialisers, and for what is too large to look into."""
    if message.body is None:
        raise Unreadable("its body was too large to keep")
    if message.content_type != JSON:
        raise Unreadable(f"its body is {message.content_type or 'of unknown type'}, which is not opened here")
    compression = _text(object_of(message.headers).get("compression"))
    try:
        return _unpacked(message.body, compression).decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable("its body is no text") from None


def _unpacked(body: bytes, compression: str | None) -> bytes:
    if compression is None:
        return body
    unpack = UNPACKERS.get(compression)
    if unpack is None:
        raise Unreadable(f"its body is packed with {compression}, which is not opened here")
    try:
        data, rest = unpack(body)
    except (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError):
        raise Unreadable("its body cannot be unpacked") from None
    if rest:
        raise Unreadable("its body is too large to be shown")
    return data


def _zlib(body: bytes) -> tuple[bytes, bool]:
    unpacker = zlib.decompressobj()
    return unpacker.decompress(body, MAX_READ), not unpacker.eof


def _bz2(body: bytes) -> tuple[bytes, bool]:
    unpacker = bz2.BZ2Decompressor()
    return unpacker.decompress(body, MAX_READ), not unpacker.eof


def _lzma(body: bytes) -> tuple[bytes, bool]:
    unpacker = lzma.LZMADecompressor()
    return unpacker.decompress(body, MAX_READ), not unpacker.eof


# kombu's names (kombu/compression.py); its gzip is zlib. At most MAX_READ, so that no small body becomes a large one.
UNPACKERS: dict[str, Callable[[bytes], tuple[bytes, bool]]] = {
    "application/x-gzip": _zlib,
    "application/x-bz2": _bz2,
    "application/x-lzma": _lzma,
    "application/x-xz": _lzma,
}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
