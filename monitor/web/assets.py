"""The files of ``static/``: read once, compressed once, served under an address that changes with their content."""

import gzip
import re
from mimetypes import guess_type
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FOREVER = "public, max-age=31536000, immutable"
_IMPORT = re.compile(rb'@import "([\w./-]+)";\n?')
_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml", ".css": "text/css"}
_COMPRESS_FROM_BYTES = 512


class Assets:
    """Every file below a folder, in memory."""

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self._plain = {path.relative_to(folder).as_posix(): _content(path) for path in files}
        self._gzipped = {
            name: gzip.compress(content, 9, mtime=0)
            for name, content in self._plain.items()
            if len(content) >= _COMPRESS_FROM_BYTES
        }

    def serve(self, request: Request) -> Response:
        """``/static/{version}/{path}``; an older version gets today's file, which may not be kept."""
        name = request.path_params["path"]
        if name not in self._plain:
            raise HTTPException(404)
        headers = {"Vary": "Accept-Encoding"}
        if request.path_params["version"] == request.app.state.static_version:
            headers["Cache-Control"] = FOREVER
        body = self._plain[name]
        if name in self._gzipped and "gzip" in request.headers.get("accept-encoding", ""):
            body = self._gzipped[name]
            headers["Content-Encoding"] = "gzip"
        return Response(body, headers=headers, media_type=_media_type(name))


def _content(path: Path) -> bytes:
    """A file's bytes; in a style sheet, each ``@import`` of one of our files is replaced by that file."""
    content = path.read_bytes()
    if path.suffix != ".css":
        return content
    return _IMPORT.sub(lambda match: (path.parent / match.group(1).decode()).read_bytes() + b"\n", content)


def _media_type(name: str) -> str:
    suffix = Path(name).suffix
    return _TYPES.get(suffix) or guess_type(name)[0] or "application/octet-stream"
