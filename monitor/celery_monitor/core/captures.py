"""Whether captured messages agree with the events of their task, and which one a retry may send. No I/O, no clock.

Whoever can publish an event can announce a message for any task. So a message is exact only where everything that a
retry would use of it agrees with what the task's own events said; docs/capture.md has the rule, field by field.
Nothing is unpickled: of a body that is not JSON, only the text of its arguments in the headers is compared. That text
is ``saferepr(maxlen=1024, maxlevels=3)`` (celery/utils/saferepr.py), read back.

A signature is HMAC-SHA256 with a key that the workers and this monitor have. ``capture/celery_monitor_capture`` signs,
with the same text; a test compares both.
"""

import ast
import hashlib
import hmac
import json
import math
import re
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import NamedTuple

import msgspec

from celery_monitor.core.message import JSON, Unreadable, is_opaque, json_text, object_of, why_not_exact
from celery_monitor.core.sanitize import NAME_LENGTH
from celery_monitor.core.untrusted import storable
from celery_monitor.records.event import READ_BY_US, Message
from celery_monitor.records.task import Run, Task

MAX_REPR = 1040  # longest text that is not truncated: the limit of saferepr, quotes, and closing brackets
MAX_LEVELS = 3  # brackets within brackets that saferepr shows

REPLACEMENT = "\ufffd"  # stored in the place of NUL and lone surrogates
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MASK = "***"
# CPython 3.11 and 3.12 share the recursion depth of ast among threads, and raise SystemError (cpython #106905).
_parsing = Lock()


class Lossy(ValueError):
    """A repr that may have lost something. The message is a predicate: ``contain a backslash``."""


def read_repr(text: str) -> object:
    """The only JSON value for which saferepr gives this text; raises Lossy.

    Without a backslash no string can contain an apostrophe, so quotes pair up as they look; without dots in a row
    nothing was left out; and if the repr of the value is the same text, no other value fits.
    """
    _check_text(text)
    try:
        with _parsing:
            value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise Lossy("contain something other than plain values, or were truncated") from None
    if text_of(value, 0) != text:
        raise Lossy("cannot be rebuilt exactly from the event text")
    return value


def _check_text(text: str) -> None:
    if "..." in text or "…" in text:
        raise Lossy("were shortened by the sender: too long or nested too deeply for an event")
    if len(text) > MAX_REPR:
        raise Lossy("are longer than Celery's limit, so the text is not Celery's")
    if _MASK in text:
        raise Lossy("contain a masked secret")
    if "\\" in text:
        raise Lossy("contain a backslash, which the event text does not escape")
    if _CONTROL.search(text):
        raise Lossy("contain a control character")
    if REPLACEMENT in text:
        raise Lossy("contain a character that could not be stored")


def text_of(value: object, level: int) -> str:
    """The text of saferepr for an accepted value; raises Lossy for any other."""
    if isinstance(value, str):
        return f"'{value}'"
    if value is None or isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, float):
        return _float(value)
    if level >= MAX_LEVELS:
        raise Lossy("are nested deeper than the event text shows")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)}: {text_of(each, level + 1)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(text_of(each, level + 1) for each in value) + "]"
    if isinstance(value, tuple):
        return _tuple(value, level)
    raise Lossy(f"contain a {type(value).__name__}, which JSON cannot represent")


def _tuple(value: tuple[object, ...], level: int) -> str:
    # The outermost tuple is the arguments. JSON turns an inner one into a list, pickle does not.
    if level:
        raise Lossy("contain a tuple, which the worker may have received as a list")
    inner = ", ".join(text_of(each, 1) for each in value)
    return f"({inner},)" if len(value) == 1 else f"({inner})"


def _float(value: float) -> str:
    if not math.isfinite(value):
        raise Lossy("contain an infinite number, which JSON cannot represent")
    return str(value)


def _key(key: object) -> str:
    # JSON turns {1: ...} into {"1": ...}, pickle does not.
    if not isinstance(key, str):
        raise Lossy(f"contain the key {key!r}, which is not a string")
    return f"'{key}'"


VERSION = "celery-monitor-capture 1"


def signed_text(message: Message, task_id: str) -> bytes:
    """The text to sign: all that the monitor uses of a message, whom it is from, and when it was signed."""
    signature = message.signature
    fields = [
        VERSION,
        task_id,
        message.worker,
        None if signature is None else repr(float(signature.time)),
        message.why,
        message.headers,
        message.properties,
        message.content_type,
        message.content_encoding,
        message.exchange,
        message.routing_key,
        message.queue,
        message.as_sent,
        [message.chain, message.callbacks, message.errbacks, message.chord],
        message.size,
        None if message.body is None else hashlib.sha256(message.body).hexdigest(),
    ]
    return json.dumps(fields, separators=(",", ":")).encode()


def is_signed(message: Message, task_id: str, keys: Sequence[str]) -> bool:
    """Whether one of the keys has signed it. Compares in constant time."""
    if message.signature is None:
        return False
    text = signed_text(message, task_id)
    given = message.signature.mac.encode("utf-8", "replace")
    macs = [hmac.new(key.strip().encode(), text, hashlib.sha256).hexdigest().encode() for key in keys]
    return any(hmac.compare_digest(mac, given) for mac in macs)


# Native delayed delivery puts these in front of a routing key: kombu/transport/native_delayed_delivery.py.
DELAY = re.compile(r"^(?:[01]\.){28}")
DELAYED_EXCHANGE_PREFIX = "celery_delayed_"
# Headers that brokers add to a message that was delivered before.
DELIVERY_HEADERS = ("redelivered", "x-delivery-count", "x-acquired-count", "x-opt-")
DEAD_LETTER = re.compile(r"^x-(?:first-|last-)?death")
CHANGED_BY_RETRY = frozenset({"id", "retries", "eta", "expires", "root_id", "parent_id"})
MOST_KEPT = 4  # different messages of one task
EARLY_SECONDS = 60.0  # by which a signature may be older than the receipt of the run
QUOTED_LENGTH = 80
_LEVELS = 100  # compared of a text that was cut
# Properties to resend. Others belong to one delivery, or (user_id) to the first sender.
PROPERTIES = ("priority", "delivery_mode", "reply_to", "message_id", "timestamp", "type", "app_id", "MessageGroupId")

# In the text of arguments: the beginning of what JSON carries in another form than the sender had it.
_NOT_JSON = re.compile(r"\\|[\w.]\(|<|\bb'|\{[^'}]")
_OPEN, _CLOSE = re.compile(r"\("), re.compile(r",?\)")


class Trust(NamedTuple):
    """What is known beside the task: keys that sign captures, and the queues that its worker says it consumes."""

    keys: Sequence[str] = ()
    queues: Sequence[str] = ()


class Doubt(NamedTuple):
    """Why a message is not exact. ``differs``: it contradicts the events; else they do not say enough."""

    text: str
    differs: bool = True


class RetryMessage(NamedTuple):
    """The message that a retry may send unchanged, or why there is none. ``warning``: one differs from the events."""

    message: Message | None
    why_not: str | None = None
    warning: str | None = None


NO_TRUST = Trust()
_NO_EVENT = "it cannot be checked: no event"


def choose(message: Message, task: Task, trust: Trust = NO_TRUST) -> RetryMessage:
    """Decides among all messages of a task that are kept. The first one that agrees counts."""
    everything = (message, *message.others)
    doubts = [(each, _doubt(each, task, trust)) for each in everything]
    agreeing = [each for each, doubt in doubts if doubt is None]
    differing = [(each, doubt) for each, doubt in doubts if doubt and doubt.differs and not _is_of_earlier(each, task)]
    if not agreeing:
        _, doubt = max(doubts, key=lambda each: attempt_of(each[0]) or 0)
        return RetryMessage(None, doubt.text if doubt else None, _warning(differing, message))
    if any(content_of(each) != content_of(agreeing[0]) for each in agreeing[1:]):
        why = "the message was captured, but two different ones were announced for this attempt"
        return RetryMessage(
            None, why, f"Two different messages were announced for this task, by {_senders(agreeing)}. {UNUSED}"
        )
    return RetryMessage(agreeing[0], None, _warning(differing, message))


UNUSED = "Neither is sent: check who can publish events."


def _warning(differing: Sequence[tuple[Message, Doubt]], first: Message) -> str | None:
    if not differing:
        return "More messages were announced for this task than are kept." if first.more else None
    other, doubt = differing[0]
    more = f" ({len(differing)} such messages)" if len(differing) > 1 else ""
    return (
        f"A message was announced for this task by {quoted(other.worker)}, which differs from its events{more}: "
        f"{doubt.text}. It is not sent: check who can publish events."
    )


def _senders(messages: Sequence[Message]) -> str:
    return " and ".join(dict.fromkeys(quoted(each.worker) for each in messages))


def quoted(text: object) -> str:
    """A text of a broker within a sentence: short, and without control characters."""
    plain = "".join(letter if letter.isprintable() else "\ufffd" for letter in storable(str(text))[:QUOTED_LENGTH])
    return f"{plain}…" if len(str(text)) > QUOTED_LENGTH else plain


def _doubt(message: Message, task: Task, trust: Trust) -> Doubt | None:
    if message.why in READ_BY_US and message.worker is None:
        why = why_not_exact(message, task)
        return None if why is None else Doubt(why, differs=False)
    try:
        doubt = _doubt_of_capture(message, task, trust, object_of(message.headers))
    except Unreadable as error:
        doubt = Doubt(str(error))
    return doubt and Doubt(f"the message was captured, but {doubt.text}", doubt.differs)


def _doubt_of_capture(message: Message, task: Task, trust: Trust, headers: Mapping[str, object]) -> Doubt | None:
    if message.body is None:
        return Doubt(f"its body of {message.size} bytes was too large to keep", differs=False)
    if headers.get("id") != task.id or not isinstance(headers.get("task"), str):
        return Doubt("belongs to another task")
    if message.worker is None:
        return Doubt("by an earlier version, which did not record who announced it", differs=False)
    attempt = attempt_of(message)
    if attempt is None:
        return Doubt("its number of retries is not a number")
    if task.retries is not None and attempt != task.retries:
        word = f"only for attempt {attempt + 1}, and attempt {task.retries + 1} may differ"
        return Doubt(word, differs=attempt > task.retries)
    if not message.content_type or not (message.routing_key or message.queue):
        return Doubt("has no content type or no route", differs=False)
    signed = bool(trust.keys) and is_signed(message, task.id, trust.keys)
    if trust.keys and not signed:
        given = "is not signed" if message.signature is None else "its signature is not valid"
        return Doubt(f"{given}, and capture_key is set")
    doubts = [
        _doubt_of_worker(message, task, attempt, signed=signed),
        _doubt_of_name(headers, task),
        _doubt_of_texts(message, task),
    ]
    if not signed:  # else the worker vouches for them
        doubts += [_doubt_of_route(message, task, trust), _doubt_of_type(message), _doubt_of_body(message, headers)]
    found = [each for each in doubts if each is not None and (each.differs or not signed)]
    return next((each for each in found if each.differs), found[0] if found else None)


def attempt_of(message: Message) -> int | None:
    """The number of retries before this message; 0 where it has none; ``None`` where it cannot be read."""
    try:
        given = object_of(message.headers).get("retries")
    except Unreadable:
        return None
    if given is None:
        return 0
    return given if isinstance(given, int) and not isinstance(given, bool) else None


def _doubt_of_worker(message: Message, task: Task, attempt: int, *, signed: bool) -> Doubt | None:
    """The worker that announced it must be one that received this attempt of the task."""
    runs = [run for run in task.runs if run.worker is not None and run.invocation is None]
    if not runs:
        return Doubt(f"{_NO_EVENT} names the worker of the task", differs=False)
    mine = [run for run in runs if run.retries in {None, attempt} and _is_from(message, run)]
    if not mine:
        process = f" (process {message.pid})" if message.pid is not None else ""
        ran = " and ".join(dict.fromkeys(f"{quoted(run.worker)} (process {run.pid})" for run in runs))
        return Doubt(f"was announced by {quoted(message.worker)}{process}, and the task ran on {ran}")
    if signed and message.signature is not None and all(_is_older(message.signature.time, run) for run in mine):
        return Doubt("was signed before the task was received: it is an earlier message, announced again")
    return None


def _is_from(message: Message, run: Run) -> bool:
    return run.worker == message.worker and (None in {run.pid, message.pid} or run.pid == message.pid)


def _is_older(signed_at: float, run: Run) -> bool:
    """By the same clock, the worker's."""
    return run.received is not None and signed_at < run.received - EARLY_SECONDS


def _doubt_of_name(headers: Mapping[str, object], task: Task) -> Doubt | None:
    """Workers report a task's shadow as its name; only task-sent has the real one."""
    name, shadow = headers.get("task"), headers.get("shadow")
    if task.name is None:
        return Doubt(f"{_NO_EVENT} names the task", differs=False)
    if len(task.name) >= NAME_LENGTH:
        return Doubt("it cannot be checked: the name in its events was shortened", differs=False)
    if task.name == storable(str(name)):
        replaced = task.run is not None and task.run.replacing and headers.get("replaced_task_nesting") == 0
        return Doubt("is from the call that was replaced", differs=False) if replaced else None
    if task.sent is None and isinstance(shadow, str) and task.name == storable(shadow):
        text = f"it cannot be checked: it is of {quoted(name)}, and events name only the shadow {quoted(shadow)}"
        return Doubt(text, differs=False)
    return Doubt(f"is from a call of {quoted(name)}, and the latest is of {quoted(task.name)}")


def _doubt_of_texts(message: Message, task: Task) -> Doubt | None:
    if task.args is None or task.kwargs is None:
        return Doubt(f"{_NO_EVENT} reported the arguments", differs=False)
    if (message.args or "", message.kwargs or "") != (task.args, task.kwargs):
        return Doubt("is from a call with other arguments")
    return None


def undelayed(routing_key: str | None) -> str:
    """The routing key without the delay of native delayed delivery."""
    return DELAY.sub("", routing_key or "")


def is_delayed(exchange: str | None, routing_key: str | None) -> bool:
    """Whether a route is one of native delayed delivery."""
    return undelayed(routing_key) != (routing_key or "") or DELAYED_EXCHANGE_PREFIX in (exchange or "")


def _doubt_of_route(message: Message, task: Task, trust: Trust) -> Doubt | None:
    key, exchange = undelayed(message.routing_key), message.exchange or ""
    delayed = is_delayed(message.exchange, message.routing_key)
    if task.sent is not None and task.routing_key is not None:
        sent_delayed = is_delayed(task.exchange, task.routing_key)
        same_exchange = delayed or sent_delayed or exchange == (task.exchange or "")
        same_queue = message.queue is None or task.queue is None or message.queue == task.queue
        if key == undelayed(task.routing_key) and same_exchange and same_queue:
            return None
        return Doubt(f"is for {_route(message)}, and the task was sent to {_route(task)}")
    if message.queue is not None and key and not exchange and message.queue != key:
        return Doubt(f"is for {_route(message)}, and names the queue {quoted(message.queue)}")
    if exchange and not delayed:
        return Doubt(f"{_NO_EVENT} names the exchange of the task: set task_send_sent_event", differs=False)
    if not trust.queues:
        return Doubt(f"{_NO_EVENT} names the queue of the task: set task_send_sent_event", differs=False)
    if (name := message.queue or key) not in trust.queues:
        consumed = ", ".join(map(quoted, trust.queues[:5]))
        return Doubt(f"is for the queue {quoted(name)}, and the task's worker consumes {consumed}")
    return None


def _route(of: Message | Task) -> str:
    exchange, key = of.exchange or "", undelayed(of.routing_key) or of.queue
    queue = f" (queue {quoted(of.queue)})" if of.queue and of.queue != key else ""
    return (
        f"the exchange {quoted(exchange)} with key {quoted(key)}{queue}"
        if exchange
        else f"the queue {quoted(key)}{queue}"
    )


def _doubt_of_type(message: Message) -> Doubt | None:
    """Events do not name the content type: it must fit the body, and the message's own properties."""
    given = object_of(message.properties).get("content_type")
    if given is not None and given != message.content_type:
        return Doubt(f"is {quoted(message.content_type)} in one place and {quoted(given)} in another")
    body = message.body or b""
    if message.content_type == JSON or not body.lstrip().startswith((b"[", b"{")):
        return None
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return None
    return Doubt(f"its body is JSON, and its content type {quoted(message.content_type)}")


def _doubt_of_body(message: Message, headers: Mapping[str, object]) -> Doubt | None:
    if is_opaque(message):
        return None
    try:
        document = json.loads(json_text(message))
    except (ValueError, RecursionError):
        return Doubt("its body cannot be read as JSON")
    match document:
        case [list() as args, dict() as kwargs, *_]:
            values: dict[str, object] = {"argsrepr": args, "kwargsrepr": kwargs}
        case _:
            return Doubt("its body has no arguments")
    texts = {name: text for name in values if isinstance(text := headers.get(name), str) and text}
    if all(_may_be_of(text, values[name]) for name, text in texts.items()):
        return None
    return Doubt("its body has other arguments than its headers say")


def _may_be_of(text: str, value: object) -> bool:
    """Whether a sender's text may be that of a value which JSON carried; compared as far as the text is whole."""
    try:
        known = read_repr(text)
    except Lossy:
        return _begins_alike(text, value)
    plain = list(known) if isinstance(known, tuple) else known
    return json.dumps(plain) == json.dumps(value)


def _begins_alike(text: str, value: object) -> bool:
    """Whether a text that was cut begins like that of the value, unless it shows what JSON carries in another form."""
    begin = text.partition("...")[0]
    if not begin.startswith(("(", "[", "{")) or _NOT_JSON.search(begin):
        return True
    try:
        whole = text_of(value, -_LEVELS)
    except Lossy:
        return True
    return _without_tuples(whole).startswith(_without_tuples(begin.rstrip(", ")))


def _without_tuples(text: str) -> str:
    return _CLOSE.sub("]", _OPEN.sub("[", text))


def _is_of_earlier(message: Message, task: Task) -> bool:
    """Whether an earlier run of the task explains a message: its id was replaced, or sent again."""
    attempt = attempt_of(message)
    for run in task.runs:
        said = run.invocation
        if said is None or run.retries != attempt or not _is_from(message, run):
            continue
        texts = zip((said.args, said.kwargs), (message.args, message.kwargs), strict=True)
        if all(one is None or (other or "").startswith(one[:1000]) for one, other in texts):
            return True
    return False


def is_of_delivery(header: str) -> bool:
    """Whether a broker added this header to a message that was delivered before."""
    return header.startswith(DELIVERY_HEADERS) or DEAD_LETTER.match(header) is not None


def content_of(message: Message) -> tuple[object, ...]:
    """What a retry would send of it."""
    try:
        headers, properties = object_of(message.headers), object_of(message.properties)
    except Unreadable:
        return (message.headers, message.properties, message.body)
    kept = {name: value for name, value in headers.items() if name not in CHANGED_BY_RETRY and not is_of_delivery(name)}
    sent = {name: properties.get(name) for name in (*PROPERTIES, "expiration")}
    route = (message.exchange or "", message.routing_key, message.queue)
    kind = (message.content_type, message.content_encoding)
    return (json.dumps([kept, sent], sort_keys=True), message.body, kind, route)


def merged(stored: Message, new: Message, retries: int | None = None) -> Message | None:
    """The stored message with one that arrived later beside it; ``None``: nothing changes.

    The first one of each attempt stays first. ``retries``: the latest attempt by the task's own events; only messages
    of attempts before it give way where there are too many.
    """
    kept = (stored, *stored.others)
    if any(_is_same(each, new) for each in kept):
        return None
    if len(kept) >= MOST_KEPT and retries is not None:
        kept = tuple(each for each in kept if (attempt_of(each) or 0) >= retries)
    if len(kept) >= MOST_KEPT:
        return None if stored.more else _first_of(kept, more=True)
    return _first_of((*kept, new), more=stored.more)


def _is_same(one: Message, other: Message) -> bool:
    if (one.worker, one.pid, attempt_of(one)) != (other.worker, other.pid, attempt_of(other)):
        return False
    return one.signature == other.signature and content_of(one) == content_of(other)


def _first_of(messages: Sequence[Message], *, more: bool) -> Message:
    return msgspec.structs.replace(messages[0], others=tuple(messages[1:]), more=more)
