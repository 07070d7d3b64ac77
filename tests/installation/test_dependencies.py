"""What the code imports is what the distribution asks for: nothing that only another package happens to bring."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from tests.installation.environments import CAPTURE, ROOT

FOLDERS = {"celery_monitor": "monitor/celery_monitor", "demo_workers": "demo_workers"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CAPTURE_PROJECT = tomllib.loads((CAPTURE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OF_CELERY = {"celery", "kombu"}  # every version of Celery requires the other


def declared() -> set[str]:
    """Names of distributions, as packages are compared (PEP 503)."""
    lines = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    return {canonical(re.split(r"[\[<>=!~;@ ]", line, maxsplit=1)[0]) for line in lines}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(path: Path) -> set[str]:
    """The top-level names that a module imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names


def test_every_package_that_is_imported_is_declared() -> None:
    names = {name for folder in FOLDERS.values() for path in (ROOT / folder).rglob("*.py") for name in imported(path)}
    strangers = names - set(sys.stdlib_module_names) - set(FOLDERS)
    assert {"kombu", "msgspec", "sqlalchemy"} <= strangers
    distributions = packages_distributions()
    brought = {name: {canonical(each) for each in distributions[name]} for name in strangers}
    undeclared = sorted(name for name, ways in brought.items() if not ways & declared())
    assert undeclared == []


def test_capture_needs_celery_alone() -> None:
    names = {name for path in CAPTURE.rglob("*.py") for name in imported(path)}
    assert names - set(sys.stdlib_module_names) - {"celery_monitor_capture"} == OF_CELERY
    assert CAPTURE_PROJECT["dependencies"] == ["celery>=5.2"]


def test_kombu_brings_what_its_transport_for_redis_needs() -> None:
    assert any(re.match(r"kombu\[redis\]", line) for line in PROJECT["dependencies"])
