"""Jinja, and nothing but Jinja, renders: pages, regions of them, and their rows."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.parse import unquote_plus

from jinja2 import Environment
from jinja2 import FileSystemLoader
from jinja2 import StrictUndefined
from markupsafe import Markup
from markupsafe import escape

from monitor.filters import UNHANDLED
from monitor.records import TaskState
from monitor.web import wording

ONE_LINE = 88
_PACKAGE = Path(__file__).parent.parent


def assets(name: str) -> Path:
    """The folder ``templates`` or ``static``: inside the package in a wheel, beside it in a source tree."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def content_hash(folder: Path) -> str:
    """One short hash over every file below: part of the address of each, so that each may be cached for ever."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def verbatim(value: object) -> Markup:
    """For form values and data attributes: escaped, hidden characters kept as they are."""
    return escape(value)


def path_part(value: object) -> str:
    """A string as one part of a path."""
    return _quoted(str(value))


def unquoted(text: str) -> str:
    """A query as somebody would type it."""
    return unquote_plus(text, errors="replace")


def link(base: str, path: str, query: Mapping[str, object] | None = None) -> str:
    """A path of ours below ``base`` with a query; what is None or empty is left out, a list stands once per item."""
    given = [
        f"{_quoted(name)}={_quoted(str(each))}"
        for name, value in (query or {}).items()
        if value not in (None, "", [], ())
        for each in (value if isinstance(value, list | tuple) else (value,))
    ]
    return f"{base}{path}" + (f"?{'&'.join(given)}" if given else "")


@lru_cache(4096)  # the names on one page repeat in most of its links
def _quoted(text: str) -> str:
    return quote(text, safe="", errors="replace")


def pretty_json(value: object) -> str:
    """JSON for people: on one line where it is short, else indented; no escapes but the needed ones."""
    line = json.dumps(value, ensure_ascii=False)
    return line if len(line) <= ONE_LINE else json.dumps(value, indent=2, ensure_ascii=False)


def _finalize(value: Any) -> Any:
    """Every string that goes into a page shows its hidden characters, in text and attributes alike."""
    return wording.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def make_environment() -> Environment:
    """The one environment: autoescape always on, an undefined name is an error."""
    environment = Environment(
        loader=FileSystemLoader(assets("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": wording.number,
        "counted": wording.counted,
        "duration": wording.duration,
        "moment": wording.moment,
        "short": wording.short,
        "visible": wording.visible,
        "verbatim": verbatim,
        "path_part": path_part,
        "unquoted": unquoted,
        "pretty_json": pretty_json,
        "exception_line": wording.exception_line,
    }
    environment.globals |= {
        "GLYPHS": wording.GLYPHS,
        "WORKFLOW_TASK_STATES": wording.WORKFLOW_TASK_STATES,
        "WORKER_GLYPHS": wording.WORKER_GLYPHS,
        "STATES": tuple(TaskState),
        "UNHANDLED": UNHANDLED,
        "static": f"/static/{content_hash(assets('static'))}",
    }
    return environment
