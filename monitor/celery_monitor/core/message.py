"""The content of a captured message, read without the user's code and without unpickling. No I/O."""

import bz2
import json
import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from celery_monitor.core.sanitize import NAME_LENGTH, Redactor
from celery_monitor.records.event import KEPT_BY_BROKER, Message
from celery_monitor.records.task import Task

JSON = "application/json"
MAX_READ = 4 * 1024 * 1024  # bytes of a decompressed body


class Unreadable(ValueError):
    """A message, or a part of one, that cannot be used; the text says why."""


class MessageFacts(NamedTuple):
    """Facts of a task that events leave out; ``None``: not in the message."""

    name: str | None  # the real name, which events replace with its shadow
    shadow: str | None
    priority: int | None
    group: str | None
    group_index: int | None
    beat: str | None  # name of the schedule entry that sent it
    stamps: Mapping[str, object]
    expires: str | None
    eta: str | None


def facts(message: Message) -> MessageFacts:
    """Raises Unreadable if the headers cannot be read."""
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


def stamps_of(facts: MessageFacts, redactor: Redactor) -> dict[str, object]:
    """The stamps, with secrets masked."""
    try:
        return object_of(redactor.text(json.dumps(facts.stamps)))
    except Unreadable:
        return {}


def object_of(text: str) -> dict[str, object]:
    """A JSON object; raises Unreadable."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("its headers cannot be read") from None
    if not isinstance(value, dict):
        raise Unreadable("its headers are not an object")
    return value


def with_links(message: Message) -> Message:
    """The message with the links (chain, callbacks, chord) in its body; ``links`` False where the body is not JSON."""
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
    """Whether it may be a member of a chord that its body does not show: such a task is a member of a group."""
    try:
        return not message.links and facts(message).group is not None
    except Unreadable:
        return False


def why_not_exact(message: Message, task: Task) -> str | None:
    """Why a message cannot be resent unchanged; ``None`` if it can."""
    how = "found" if message.why in KEPT_BY_BROKER else "captured"
    if message.body is None:
        return f"its message was {how}, but its body of {message.size} bytes was too large to keep"
    try:
        headers = object_of(message.headers)
    except Unreadable as error:
        return f"its message was {how}, but {error}"
    if headers.get("id") != task.id or not _text(headers.get("task")):
        return f"its message was {how}, but belongs to another task"
    if other := _is_of_another_call(headers, task):
        return f"its message was {how}, but {other}"
    attempt = _number(headers.get("retries"))
    if attempt is not None and task.retries is not None and attempt < task.retries:
        return f"its message was {how} only for attempt {attempt + 1}, and attempt {task.retries + 1} may differ"
    if not message.content_type or not (message.routing_key or message.queue):
        return f"its message was {how}, but has no content type or no route"
    return None


def _is_of_another_call(headers: Mapping[str, object], task: Task) -> str | None:
    """Why a message is not the latest of its id: a task that was replaced or resent has several."""
    named = {_text(headers.get("task")), _text(headers.get("shadow"))}
    if task.name is not None and task.name not in named and len(task.name) < NAME_LENGTH:
        return f"is from a call of {headers.get('task')}, and the latest is of {task.name}"
    run = task.run
    if run is not None and run.replacing and headers.get("replaced_task_nesting") == 0:
        return "is from the call that was replaced"
    for field, header in ((task.args, "argsrepr"), (task.kwargs, "kwargsrepr")):
        text = headers.get(header)
        if isinstance(text, str) and field is not None and not _may_be_text(text, field):
            return "is from a call with other arguments"
    return None


def _may_be_text(text: str, stored: str) -> bool:
    """Whether a text may be stored like this: with secrets masked, characters replaced, or truncated."""
    return text == stored or any(mark in stored for mark in ("***", "\ufffd", "…"))


def is_opaque(message: Message) -> bool:
    """Whether the body is in a format that is not opened here."""
    if message.content_type != JSON:
        return True
    compression = _text(object_of(message.headers).get("compression"))
    return compression is not None and compression not in DECOMPRESSORS


def json_text(message: Message) -> str:
    """The body as JSON text; raises Unreadable for other serialisers, and for a body that is too large."""
    if message.body is None:
        raise Unreadable("its body was too large to keep")
    if message.content_type != JSON:
        raise Unreadable(f"its body is {message.content_type or 'of unknown type'}, which is not opened here")
    compression = _text(object_of(message.headers).get("compression"))
    try:
        return _decompressed(message.body, compression).decode("utf-8")
    except UnicodeDecodeError:
        raise Unreadable("its body is not text") from None


# A few kilobytes may contain gigabytes, and kombu's own decompress has no limit. What a library cannot stop in time is
# not opened.
MOST_MEMORY = 64 * 1024 * 1024  # bytes: an LZMA header may ask for four gigabytes

# kombu's names and aliases (kombu/compression.py); its gzip is zlib.
_GZIP = ("application/x-gzip", "gzip", "zlib")
_BZ2 = ("application/x-bz2", "bzip2", "bzip")
_LZMA = ("application/x-lzma", "application/x-xz", "lzma", "xz")
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(_GZIP, zlib.decompressobj),
    **dict.fromkeys(_BZ2, bz2.BZ2Decompressor),
    **dict.fromkeys(_LZMA, lambda: lzma.LZMADecompressor(memlimit=MOST_MEMORY)),
}


class ContentTooLarge(ValueError):
    """The content is larger than the limit."""


def decompressed(body: bytes, compression: str, most: int) -> bytes:
    """The content, of at most ``most`` bytes.

    Raises ContentTooLarge, ValueError for damaged data, and KeyError for a format that is not among DECOMPRESSORS.
    """
    decompressor = DECOMPRESSORS[compression]()
    try:
        data: bytes = decompressor.decompress(body, most)
    except (zlib.error, OSError, EOFError, lzma.LZMAError) as error:
        raise ValueError(f"not {compression}: {error}") from None
    if not decompressor.eof:
        raise ContentTooLarge(f"more than {most} bytes, or incomplete")
    return data


def _decompressed(body: bytes, compression: str | None) -> bytes:
    """At most MAX_READ bytes, against decompression bombs."""
    if compression is None:
        return body
    try:
        return decompressed(body, compression, MAX_READ)
    except KeyError:
        raise Unreadable(f"its body is compressed with {compression}, which is not opened here") from None
    except ContentTooLarge:
        raise Unreadable("its body is too large to be shown") from None
    except ValueError:
        raise Unreadable("its body cannot be decompressed") from None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
