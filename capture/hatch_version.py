"""Both distributions have one version: that of the pyproject.toml above; in a source distribution, that of PKG-INFO."""

import re
from pathlib import Path

HERE = Path(__file__).parent
PLACES = ((HERE / "PKG-INFO", "^Version: (.+)$"), (HERE.parent / "pyproject.toml", '^version = "(.+)"$'))


def read() -> str:
    """Raises LookupError outside the repository and its source distributions."""
    for file, pattern in PLACES:
        found = re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE) if file.exists() else None
        if found:
            return found[1]
    raise LookupError(f"no version: {' and '.join(str(file) for file, _ in PLACES)} are missing")
