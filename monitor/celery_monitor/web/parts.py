"""Parts of a page that fail alone: a region that cannot be read or rendered becomes a note in its place.

What a record holds was written by many: workers, publishers, and older versions of this program. One value that a
chart cannot draw must not hide the list beside it. A MonitorError is about the whole page, and passes.
"""

import logging
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

from jinja2 import StrictUndefined, TemplateRuntimeError
from jinja2.runtime import Context as TemplateContext
from markupsafe import Markup

from celery_monitor.errors import MonitorError

log = logging.getLogger(__name__)

MOST_LOGGED = 200
_NOTE = Markup(
    '<section id="region-{name}" class="panel empty failed-part" role="status">'
    "<h2>This part cannot be shown: {title}</h2>"
    "<p>{error} The other parts of the page are not affected. The log of the web process has the details.</p></section>"
)

Block = Callable[[TemplateContext], Iterator[str]]


class PartFailed(TemplateRuntimeError):
    """A template used a value that could not be read; already logged."""


class FailureLog:
    """Logs each kind of failure once, as a page is rendered every second."""

    def __init__(self) -> None:
        self._logged: set[tuple[str, str]] = set()
        self._lock = Lock()

    def note(self, part: str, error: Exception) -> None:
        kind = (part, type(error).__name__)
        with self._lock:
            if kind in self._logged or len(self._logged) >= MOST_LOGGED:
                return
            self._logged.add(kind)
        log.error("cannot show %s; this is logged once", part, exc_info=error)


_failures = FailureLog()


def read_part(read: Callable[[], dict[str, Any]], *names: str) -> dict[str, Any]:
    """The part of a page's context with these names. Where it cannot be read, only the regions that use it fail."""
    try:
        return read()
    except MonitorError:
        raise
    except Exception as error:  # noqa: BLE001 - logged; the regions show it
        _failures.note(", ".join(names), error)
        hint = f"{type(error).__name__}."
        return {name: StrictUndefined(hint=hint, name=name, exc=PartFailed) for name in names}


def guarded(page: str, name: str, block: Block) -> Block:
    """The block of a region; it renders a note if it fails."""

    def render(context: TemplateContext) -> Iterator[str]:
        try:
            yield "".join(block(context))
        except MonitorError:
            raise
        except PartFailed as error:
            yield _note(name, str(error))
        except Exception as error:  # noqa: BLE001 - logged; the note shows it
            _failures.note(f"{name} of {page}", error)
            yield _note(name, f"{type(error).__name__}.")

    return render


def _note(name: str, error: str) -> str:
    return str(_NOTE.format(name=name, title=name.replace("_", " "), error=error))
