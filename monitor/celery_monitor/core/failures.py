"""The signature of a failure, which groups failures by their likely cause.

Numbers, ids, hex, quoted values, paths, addresses and times are masked in the message. The frame is the deepest one in
the application's own code: not in the standard library, an installed package, or a bundled Celery. A directory name
alone does not decide, as an application may be in ``/srv/celery/app``. The work is bounded for any size of text: texts
are truncated before matching, and no pattern can backtrack over more than a bounded piece.
"""

import re
from hashlib import blake2b
from typing import NamedTuple

_LIBRARY = re.compile(
    r"/(?:site|dist)-packages/"
    r"|^<frozen "
    r"|/(?:lib|lib64)/(?:python|pypy)\d\.\d+t?/"  # the standard library
    r"|/python\d+\.zip/"
    r"|^[a-z]:/(?:.*/)?python[\d.]*/lib/"  # the standard library on Windows
    r"|\.(?:whl|egg)/",  # a package inside an archive, or unpacked beside others (pex)
    re.IGNORECASE,
)
_ARCHIVE = re.compile(r"\.(?:zip|pyz|pex|par)/", re.IGNORECASE)
_BUNDLED = re.compile(r"/(?:celery|kombu|billiard|amqp|vine)/", re.IGNORECASE)


MOST_PATH = 4096  # characters, as a file system has them


def is_library(path: str) -> bool:
    """Whether the file of a frame belongs to a library, by its path in a traceback."""
    path = path[:MOST_PATH].replace("\\", "/")
    if _LIBRARY.search(path):
        return True
    archive = _ARCHIVE.search(path)
    return archive is not None and _BUNDLED.search(path, archive.end() - 1) is not None


UNKNOWN_EXCEPTION = "unknown exception"
_MESSAGE_READ = 2048  # characters of a message
_MESSAGE_KEPT = 500
_TRACEBACK_READ = 16_384  # characters at its end and at its start

# The pool and the serialiser wrap exceptions in these; only the traceback names the real one.
_WRAPPERS = frozenset({"ExceptionWithTraceback", "UnpickleableExceptionWrapper", "RemoteTraceback"})
# Celery's own exceptions in words (billiard/exceptions.py, celery/exceptions.py).
_IN_WORDS = {
    "TimeLimitExceeded": "ran over its hard time limit and was killed",
    "SoftTimeLimitExceeded": "ran over its soft time limit",
    "Terminated": "was terminated while it ran",
}
_WORKER_LOST_CAUSE = re.compile(r"signal \d+ \(\w+\)|exitcode \d+")

_ERRNO = re.compile(r"-?\d{1,9}, (?=['\"])")  # of an OSError, whose text has the same meaning
_NAMED = re.compile(r"<?([A-Za-z_][\w.]{0,200})")
_HEADER = re.compile(r"[ |]{0,40}([A-Za-z_][\w.]{0,200})(?:: ?|$)")
_FRAME = re.compile(r'File "([^"\n]{1,1000})", line \d+(?:, in ([^\n]{1,200}))?')
_FRAME_START = 'File "'
_INDENT = frozenset(" |+-")
_RELEASE = re.compile(r"\d{4}|^[0-9a-f]{7,40}$")  # a directory that changes with every deployment

_NEEDS_MASK = re.compile(r"[\d'\"/\\@]")
_CLOCK = r"\d\d:\d\d:\d\d(?:[.,]\d+)?"
_MASKS = {
    "url": r"[A-Za-z][A-Za-z+]{1,15}://[^\s'\"<>]++",
    "email": r"[\w.+-]{1,64}+@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}",
    "value": r"(?<![\w\\])[bru]?(?:'(?:[^'\\\n]|\\.)*+'|\"(?:[^\"\\\n]|\\.)*+\")(?!\w)",
    "path": r"(?<![\w.<>/\\])(?:~|\.{1,2}|[A-Za-z]:)?[/\\][^\s'\",:;()<>]++",
    "time": rf"\b\d{{4}}-\d\d-\d\d(?:[T ](?:{_CLOCK}|\d\d:\d\d)(?:Z|[+-]\d\d:?\d\d)?)?|\b{_CLOCK}",
    "id": r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b|\b0[xX][0-9a-fA-F]+|\b(?=\w{0,32}?\d)\w{12,}+",
    "address": r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?\b|(?<![\w:])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{1,4}\b",
    "n": r"[-+]?\d++(?:[_.,]++\d++)*+(?:[eE][-+]?\d++)?",
}
_MASK = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _MASKS.items()))


# After these, a capitalised word is a term of the program rather than a name.
_BEFORE_TERMS = frozenset(
    re.findall(
        r"\w+",
        "a an are attribute be class code column enum error exception expected expecting field function got index "
        "instance is key method model module not object state status table type types value was were",
    )
)
_TERMS = frozenset(
    re.findall(
        r"\w+",
        "Array Bool Boolean Bytes Celery Date Datetime Decimal Dict Django Docker Elasticsearch False Flask Float Http "
        "Https Integer Json Kafka Linux List Map None Null Number Object Postgres Python Rabbit Redis Set String "
        "Timestamp True Unicode Windows Xml",
    )
)
_PREPOSITIONS = frozenset(("about", "against", "at", "by", "for", "from", "in", "of", "on", "to", "via", "with"))
_ENDS = ".,;:!?)"


class FailureSignature(NamedTuple):
    """The identity of a failure group. ``digest`` is 16 bytes over the task's name, type, message and frame.

    ``variant`` is the message with the names that are left out of ``message``; equal if there are none.
    """

    exception_type: str
    message: str
    frame: str | None
    digest: bytes
    variant: str


def signature(name: str | None, exception: str | None, traceback: str | None) -> FailureSignature:
    """The signature of a task's name, and the exception (a repr) and traceback of its failure event."""
    header, frame = _read_traceback(traceback or "")
    exception_type, message = _read_exception(exception or "", header)
    if exception_type == "WorkerLostError":
        message = _worker_lost(message)
    else:
        message = _IN_WORDS.get(exception_type) or mask(message)
    loose = loosen(message)
    return FailureSignature(exception_type, loose, frame, digest_of(name, exception_type, loose, frame), message)


def digest_of(name: str | None, exception_type: str, message: str, frame: str | None) -> bytes:
    """The digest that identifies a failure group."""
    identity = "\0".join((name or "", exception_type, message, frame or ""))
    return blake2b(identity.encode(errors="surrogatepass"), digest_size=16).digest()


def unwrapped(exception: str | None, traceback: str | None) -> str | None:
    """The repr of the exception inside a wrapper, if the traceback names it; any other exception unchanged.

    The pool ends a killed task with a bare ``ExceptionWithTraceback()`` (billiard/einfo.py).
    """
    named = _NAMED.match(exception or "")
    if named is None or _last_part(named[1]) not in _WRAPPERS:
        return exception
    found = _read_header(_header_line((traceback or "")[-_TRACEBACK_READ:]))
    if found is None or found[0] in _WRAPPERS:
        return exception
    inner, message = found
    return message if message.startswith(f"{inner}(") else f"{inner}({message!r})" if message else f"{inner}()"


def mask(message: str) -> str:
    """The message without values that differ between failures of one kind; one line, at most 500 characters."""
    text = " ".join(message[:_MESSAGE_READ].split())
    if _NEEDS_MASK.search(text):
        text = _MASK.sub(_placeholder, text)
    return text if len(text) <= _MESSAGE_KEPT else text[: _MESSAGE_KEPT - 1] + "…"


def loosen(message: str) -> str:
    """A masked message without names: ``price list of <name> cannot be read``.

    A name is one or more capitalised words inside a sentence: after a lower-case word, and before another one or,
    after a preposition, at the end. Possible terms of the program stay, so that two errors do not become one.
    """
    words = message.split(" ")
    kept: list[str] = []
    at = 0
    while at < len(words):
        end = _end_of_name(words, at)
        if end == at:
            kept.append(words[at])
            at += 1
            continue
        kept.append("<name>" + words[end - 1][len(words[end - 1].rstrip(_ENDS)) :])
        at = end
    return " ".join(kept)


def names_in(message: str) -> list[str]:
    """The names that ``loosen`` replaces."""
    words = message.split(" ")
    found = []
    at = 0
    while at < len(words):
        end = _end_of_name(words, at)
        if end > at:
            found.append(" ".join(words[at:end]).rstrip(_ENDS))
        at = max(end, at + 1)
    return found


def _end_of_name(words: list[str], at: int) -> int:
    """The index after the last word of the name that starts at ``at``; ``at`` if there is none."""
    before = words[at - 1] if at else ""
    if not (before.isalpha() and before.islower()) or before in _BEFORE_TERMS:
        return at
    end = at
    while end < len(words) and _is_name(words[end].rstrip(_ENDS)):
        end += 1
        if words[end - 1][-1] in _ENDS:
            break
    if end == at:
        return at
    closed = end == len(words) or words[end - 1][-1] in _ENDS
    continues = not closed and words[end].rstrip(_ENDS).isalpha() and words[end].islower()
    return end if continues or before in _PREPOSITIONS else at


def _is_name(word: str) -> bool:
    """``Acme``, ``Müller-Lüdenscheidt``, ``O'Brien``; not ACME or OrderLine, which are terms of the program."""
    parts = re.split("[-'\u2019]", word)
    first = parts[0]
    titled = all(part.isalpha() and (part[1:].islower() or len(part) == 1) for part in parts)
    return titled and first[0].isupper() and len(word) > 1 and word not in _TERMS


def _placeholder(match: re.Match[str]) -> str:
    return f"<{match.lastgroup}>"


def _worker_lost(message: str) -> str:
    cause = _WORKER_LOST_CAUSE.search(message, 0, _MESSAGE_READ)
    return f"its worker process died: {cause[0]}" if cause else "its worker process died"


def _read_exception(exception: str, header: str) -> tuple[str, str]:
    """Type and message, from the repr, or from the traceback's header line if the repr has too little."""
    named = _NAMED.match(exception)
    exception_type = _last_part(named[1]) if named else ""
    if named is None or exception_type in _WRAPPERS:
        return _read_header(header) or (exception_type or UNKNOWN_EXCEPTION, exception)
    rest = exception[named.end() : named.end() + _MESSAGE_READ]
    return exception_type, _message(exception_type, rest)


def _read_header(header: str) -> tuple[str, str] | None:
    """``shop.errors.Declined: card 7`` as Declined and its message."""
    match = _HEADER.match(header)
    return (_last_part(match[1]), header[match.end() :]) if match else None


def _last_part(dotted: str) -> str:
    return dotted.rstrip(".").rpartition(".")[2]


def _message(exception_type: str, rest: str) -> str:
    """The message after the type in a repr: ``('no stock')``, ``(2, 'No such file')``, ``: text>``."""
    text = rest.strip()
    if text.startswith("("):
        text = text[1:-1] if text.endswith(")") else text[1:]
    else:
        text = text.lstrip(": ").removesuffix(">")
    text = text.removesuffix(",")
    if exception_type == "KeyError":  # its argument is a value, not a sentence
        return text
    errno = _ERRNO.match(text)
    return _unquoted(text[errno.end() :] if errno else text)


def _unquoted(text: str) -> str:
    """The text without the quotes of a repr."""
    quote = text[:1]
    if quote not in {"'", '"'}:
        return text
    inner = text[1:-1] if len(text) > 1 and text[-1] == quote else text[1:]
    alone = quote not in inner.replace("\\" + quote, "")
    if not alone:
        return text
    return inner.replace("\\" + quote, quote).replace("\\n", " ").replace("\\t", " ").replace("\\\\", "\\")


def _read_traceback(traceback: str) -> tuple[str, str | None]:
    """The line that names the exception, and the deepest application frame (``shop/pay.py in charge``)."""
    tail = traceback[-_TRACEBACK_READ:]
    header, frame = _header_line(tail), _application_frame(tail)
    if frame is None and len(traceback) > _TRACEBACK_READ:
        frame = _application_frame(traceback[:_TRACEBACK_READ])
    return header, frame


def _header_line(text: str) -> str:
    """The first line after the last frame that is not a source line; else the last non-empty line.

    A message may have many lines, so the exception is not always on the last line of a traceback.
    """
    lines = text[max(0, _last_frame(text, len(text))) :].split("\n")
    for line in lines[1:]:
        content = line.lstrip("| ")
        if content and not line.startswith(("  ", "  |  ", "    |  ")):
            return content[:_MESSAGE_READ]
    filled = [line for line in lines if line.strip(' "')]
    return filled[-1].strip()[:_MESSAGE_READ] if filled else ""


def _application_frame(text: str) -> str | None:
    """The last frame that is not in a library."""
    at = _last_frame(text, len(text))
    while at >= 0:
        match = _FRAME.match(text, at)
        if match:
            path = match[1].replace("\\", "/")
            if not is_library(path):
                return f"{_short(path)} in {match[2]}" if match[2] else _short(path)
        at = _last_frame(text, at)
    return None


def _last_frame(text: str, end: int) -> int:
    """The index of the last frame before ``end``, or -1. Only an indented ``File "`` is a frame."""
    at = text.rfind(_FRAME_START, 0, end)
    while at > 0 and text[at - 1] not in _INDENT:
        at = text.rfind(_FRAME_START, 0, at)
    return at


def _short(path: str) -> str:
    """The file with its directory, unless the directory is named after a release."""
    parts = path.split("/")[-2:]
    if len(parts) == 2 and (not parts[0] or _RELEASE.search(parts[0])):
        return parts[1]
    return "/".join(parts)
