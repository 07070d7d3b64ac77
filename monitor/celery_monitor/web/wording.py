"""Numbers, durations, times, tracebacks and untrusted text as people read them; names as parts of a URL.

A task, queue or worker name in a URL is any text, line ends and slashes included. A traceback is shown in parts:
frames of the application, and runs of library frames to be folded.
"""

import math
import re
import unicodedata
from datetime import UTC, datetime
from typing import NamedTuple

from markupsafe import Markup, escape
from starlette.convertors import Convertor, register_url_convertor

from celery_monitor.core.failures import is_library
from celery_monitor.records.page import Count
from celery_monitor.records.task import TaskState, WorkflowState
from celery_monitor.records.worker import WorkerStatus


class NameConvertor(Convertor[str]):
    """Like Starlette's ``path``, but matches line ends too."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def register_names() -> None:
    """Registers the convertor of ``{id:name}`` in routes."""
    register_url_convertor("name", NameConvertor())


_FRAME = re.compile(r'  File "(?P<path>[^"\n]*)", line (?P<line>\d+)(?:, in (?P<function>.*))?')
MOST_FRAMES = 400


class TracebackPart(NamedTuple):
    """``kind``: ``frame`` (of the application), ``library`` (one or more frames), ``text`` (the rest)."""

    kind: str
    text: str
    frames: int = 0


def parts(text: str) -> list[TracebackPart]:
    """The traceback in order; adjacent library frames, and adjacent text, are joined."""
    groups: list[tuple[str, list[str]]] = []
    for kind, lines in _pieces(text):
        if groups and groups[-1][0] == kind != "frame":
            groups[-1][1].append(lines)
        else:
            groups.append((kind, [lines]))
    return [TracebackPart(kind, "\n".join(each), 0 if kind == "text" else len(each)) for kind, each in groups]


def _pieces(text: str) -> list[tuple[str, str]]:
    pieces: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        frame = _FRAME.match(line)
        if frame and len(pieces) < MOST_FRAMES:
            pieces.append(("library" if is_library(frame["path"]) else "frame", [line]))
        elif pieces and (pieces[-1][0] == "text" or line.startswith("    ")):
            pieces[-1][1].append(line)
        else:
            pieces.append(("text", [line]))
    return [(kind, "\n".join(lines)) for kind, lines in pieces]


THIN = "\u202f"  # a narrow space that does not break
UNKNOWN = "unknown"
SEPARATED_FROM = 10_000
LARGEST_NUMBER = 10**15
MOST_DAYS = 100_000

GLYPHS: dict[TaskState, str] = {
    TaskState.SUCCESS: "✓",
    TaskState.FAILURE: "✕",
    TaskState.RETRY: "↻",
    TaskState.STARTED: "▶",
    TaskState.RECEIVED: "●",
    TaskState.PENDING: "○",
    TaskState.SCHEDULED: "◷",
    TaskState.REVOKED: "⊘",
    TaskState.REJECTED: "⤫",
    TaskState.LOST: "?",
}
# The task state whose colour and glyph a workflow state uses.
WORKFLOW_TASK_STATES: dict[WorkflowState, TaskState] = {
    WorkflowState.RUNNING: TaskState.STARTED,
    WorkflowState.WAITING: TaskState.PENDING,
    WorkflowState.LOST: TaskState.LOST,
    WorkflowState.FAILED: TaskState.FAILURE,
    WorkflowState.REJECTED: TaskState.REJECTED,
    WorkflowState.REVOKED: TaskState.REVOKED,
    WorkflowState.SUCCEEDED: TaskState.SUCCESS,
}
WORKER_GLYPHS: dict[WorkerStatus, str] = {
    WorkerStatus.ONLINE: "●",
    WorkerStatus.SILENT: "◐",
    WorkerStatus.OFFLINE: "○",
}

# Bidi controls reorder the text around them, and format characters hide; both are shown as code points.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_JOINER = "\u200d"  # holds emoji together: 👩‍🚀 is three characters


def _is_nan(value: float) -> bool:
    return isinstance(value, float) and math.isnan(value)


def number(value: float | None) -> str:
    """A count, with thin separators from five digits on; rounded where it is beyond all counts."""
    if value is None or _is_nan(value):
        return UNKNOWN
    if not -LARGEST_NUMBER < value < LARGEST_NUMBER:
        return f"{'−' if value < 0 else ''}over {LARGEST_NUMBER:.0e}".replace("e+", "e")
    text = f"{value:.0f}"
    return re.sub(r"\B(?=(\d{3})+$)", THIN, text) if abs(value) >= SEPARATED_FROM else text


def brief(value: int) -> str:
    """A count in at most five characters: ``731``, ``9.7 k``, ``12 k``, ``1.2 M``."""
    if value < 0:
        return f"−{brief(-value)}"
    if value >= 1000 * 10**9:
        return ">999 G"
    for size, unit in ((10**9, "G"), (10**6, "M"), (1000, "k")):
        if value >= size:
            return f"{value * 10 // size / 10:.1f} {unit}" if value < 10 * size else f"{value // size} {unit}"
    return str(value)


def counted(count: Count | None) -> str:
    """A Count, with a + if counting stopped early."""
    if count is None:
        return UNKNOWN
    return number(count.value) if count.exact else f"{number(count.value)}+"


SINCE_RECEIPT = "Counted from receipt by the worker: the time before that is unknown"


def since_receipt(share: float) -> str:
    """``, since receipt``, ``, 12 % since receipt``; empty if no wait is counted from receipt."""
    if share >= 0.9995:
        return ", since receipt"
    if share <= 0.0:
        return ""
    return f", {100 * share:.0f} % since receipt" if share >= 0.01 else ", <1 % since receipt"


def duration(seconds: float | None) -> str:
    """``340 ms``, ``2.1 s``, ``3 m 12 s``, ``2 h 5 m``, ``3 d 4 h``."""
    if seconds is None or _is_nan(seconds):
        return UNKNOWN
    if seconds < 0:
        return f"−{duration(-seconds)}"
    if seconds < 0.0005:
        return "0 ms" if seconds == 0 else "<1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if seconds >= MOST_DAYS * 86400:
        return f"over {MOST_DAYS} d"
    return _long_duration(round(seconds))


def _long_duration(seconds: int) -> str:
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // part} {smaller}"
    return f"{seconds} s"


def iso(at: float) -> str:
    """The moment as ISO 8601 in UTC, to the millisecond.

    Raises ValueError, OverflowError or OSError where it is in no calendar.
    """
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(at: float | None, kind: str = "ago") -> Markup:
    """A ``<time>``, in UTC; times.js turns it into ``3 s ago``, with the absolute time on hover.

    ``kind``: ``ago`` relative, ``clock`` the time of day in the viewer's zone, ``since`` a running duration.
    """
    if at is None:
        return Markup('<span class="unknown">unknown</span>')
    try:
        date = datetime.fromtimestamp(at, UTC)
    except (ValueError, OverflowError, OSError):
        return Markup('<span class="unknown">impossible time</span>')
    shown = f"{date:%H:%M:%S}" if kind == "clock" else f"{date:%b %d %H:%M:%S}"
    return Markup(  # noqa: S704 - digits and names of months; Markup.format is ten times as slow
        f'<time datetime="{iso(at)}" data-time="{escape(kind)}" title="{date:%Y-%m-%d %H:%M:%S} UTC">{shown}</time>'
    )


def visible(text: str) -> str:
    """The text with control, bidi and other hidden characters made visible; line ends and tabs stay."""
    if text.isascii() and text.isprintable():  # nearly every text, and much faster than the regex
        return text
    return _HIDDEN.sub(_shown, text)


def _shown(match: re.Match[str]) -> str:
    character = match.group()
    if character == _JOINER and _joins(match.string, match.start()):
        return character
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟦U+{code:04X}⟧"


def _joins(text: str, at: int) -> bool:
    after = text[at + 1 : at + 2]
    return bool(after) and unicodedata.category(after) == "So"


def short(text: str | None, length: int = 80) -> str:
    """One line of at most ``length`` characters, with an ellipsis if cut."""
    if text is None:
        return UNKNOWN
    line = " ".join(text[: length * 4].split())
    return line if len(line) <= length and len(text) <= length * 4 else f"{line[: length - 1]}…"


def exception_line(text: str | None) -> tuple[str, str]:
    """Type and message of an exception's repr: ``KeyError('a')`` is ``("KeyError", "'a'")``."""
    if not text:
        return UNKNOWN, ""
    match = re.match(r"([A-Za-z_][\w.]*)\((.*?)\)?$", text, re.DOTALL)
    if not match:
        return text, ""
    message = match.group(2).rstrip(",")
    if len(message) > 1 and message[0] == message[-1] and message[0] in "'\"":
        message = message[1:-1]
    return match.group(1), message
