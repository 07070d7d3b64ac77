"""The Jinja environment for pages, regions and rows; the files of ``static/``, each read and compressed once.

The URL of static files changes with their content, so that browsers may cache them for ever.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from mimetypes import guess_type
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_plus

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from celery_monitor.core.filters.parser import UNHANDLED
from celery_monitor.records.task import TaskState
from celery_monitor.web.wording import (
    GLYPHS,
    SINCE_RECEIPT,
    WORKER_GLYPHS,
    WORKFLOW_TASK_STATES,
    counted,
    duration,
    exception_line,
    moment,
    number,
    short,
    since_receipt,
    visible,
)

FOREVER = "public, max-age=31536000, immutable"
_IMPORT = re.compile(rb'@import "([\w./-]+)";\n?')
_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml", ".css": "text/css"}
_COMPRESS_FROM_BYTES = 512


class Assets:
    """Every file below a folder, in memory."""

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self._plain = {path.relative_to(folder).as_posix(): _content(path) for path in files}

    def serve(self, request: Request) -> Response:
        """``/static/{version}/{path}``; an older version gets the current file, uncached."""
        name = request.path_params["path"]
        if name not in self._plain:
            raise HTTPException(404)
        headers = {"Vary": "Accept-Encoding"}
        if request.path_params["version"] == request.app.state.static_version:
            headers["Cache-Control"] = FOREVER
        body = self._plain[name]
        if len(body) >= _COMPRESS_FROM_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
            body = _compressed(body)
            headers["Content-Encoding"] = "gzip"
        return Response(body, headers=headers, media_type=_media_type(name))


@cache
def _compressed(content: bytes) -> bytes:
    """When it is first asked for: not every file is, and a start waits for nothing that can be later."""
    return gzip.compress(content, 9, mtime=0)


def _content(path: Path) -> bytes:
    """A file's bytes; in a style sheet, each ``@import`` of one of our files is replaced by that file."""
    content = path.read_bytes()
    if path.suffix != ".css":
        return content
    return _IMPORT.sub(lambda match: (path.parent / match.group(1).decode()).read_bytes() + b"\n", content)


def _media_type(name: str) -> str:
    suffix = Path(name).suffix
    return _TYPES.get(suffix) or guess_type(name)[0] or "application/octet-stream"


ONE_LINE = 88
_PACKAGE = Path(__file__).parent.parent


def assets(name: str) -> Path:
    """The folder ``templates`` or ``static``: inside the package in a wheel, beside it in a source tree."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent.parent / name


def content_hash(folder: Path) -> str:
    """One short hash over all files below, for their URL."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def verbatim(value: object) -> Markup:
    """For form values and data attributes: escaped, hidden characters unchanged."""
    return escape(value)


def path_part(value: object) -> str:
    """A string as one part of a path."""
    return _quoted(str(value))


def unquoted(text: str) -> str:
    """A query string, decoded."""
    return unquote_plus(text, errors="replace")


def link(base: str, path: str, query: Mapping[str, object] | None = None) -> str:
    """A path below ``base`` with a query; None and empty values are left out, a list is repeated."""
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
    """JSON for people: on one line if short, else indented; without ASCII escapes."""
    line = json.dumps(value, ensure_ascii=False)
    return line if len(line) <= ONE_LINE else json.dumps(value, indent=2, ensure_ascii=False)


def _finalize(value: Any) -> Any:
    """Makes hidden characters visible in every string of a page, in text and attributes."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def make_environment() -> Environment:
    """Autoescape is always on; an undefined name is an error."""
    environment = Environment(
        loader=FileSystemLoader(assets("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "counted": counted,
        "duration": duration,
        "moment": moment,
        "since_receipt": since_receipt,
        "short": short,
        "visible": visible,
        "verbatim": verbatim,
        "path_part": path_part,
        "unquoted": unquoted,
        "pretty_json": pretty_json,
        "exception_line": exception_line,
    }
    environment.globals |= {
        "GLYPHS": GLYPHS,
        "WORKFLOW_TASK_STATES": WORKFLOW_TASK_STATES,
        "WORKER_GLYPHS": WORKER_GLYPHS,
        "STATES": tuple(TaskState),
        "SINCE_RECEIPT": SINCE_RECEIPT,
        "UNHANDLED": UNHANDLED,
        "static": f"/static/{content_hash(assets('static'))}",
    }
    return environment
