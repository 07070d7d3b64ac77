"""A traceback's text in parts: frames of the application, and runs of library frames to be folded. No I/O."""

import re
from typing import NamedTuple

from monitor.frames import is_library

_FRAME = re.compile(r'  File "(?P<path>[^"\n]*)", line (?P<line>\d+)(?:, in (?P<function>.*))?')
MOST_FRAMES = 400


class Part(NamedTuple):
    """``kind``: ``frame`` (the application's), ``library`` (one or more frames), ``text`` (all else)."""

    kind: str
    text: str
    frames: int = 0


def parts(text: str) -> list[Part]:
    """The traceback in order; neighbours of one kind that is not the application's stand together."""
    found: list[Part] = []
    for kind, lines in _pieces(text):
        if found and found[-1].kind == kind != "frame":
            last = found.pop()
            found.append(Part(kind, f"{last.text}\n{lines}", last.frames + (kind == "library")))
        else:
            found.append(Part(kind, lines, int(kind != "text")))
    return found


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
