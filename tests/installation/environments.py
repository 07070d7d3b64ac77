"""Environments that hold what a stranger's would: an interpreter, and what one requirement brings."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parent.parent.parent
CAPTURE = ROOT / "capture"
INSTALL_SECONDS = 300
EXTRA = "postgresql"
# Celery of December 2021 to May 2022, beside what was current then: no resolver gives these any more.
OLDEST_WORKER = ("celery==5.2.7", "kombu==5.2.4", "redis==4.1.4", "amqp==5.1.1", "vine==5.0.0", "click==8.1.3")
OLDEST_WORKER_PYTHONS = ("3.8", "3.9", "3.10", "3.11")  # Celery 5.2 does not start on 3.12
NEWEST_WORKER = ("celery[redis]",)


def find_python(versions: Sequence[str]) -> str:
    """The first of these that is here, on PATH or of pyenv; else the interpreter that runs the tests."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    for version in versions:
        candidates = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True)]
        for each in candidates:
            if each is not None and _is_version(str(each), version):
                return str(each)
    return sys.executable


def _is_version(python: str, version: str) -> bool:
    """A shim of pyenv stands on PATH also for versions that it does not start."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode == 0 and done.stdout.strip() == version


def build(target: str, source: Path, directory: Path) -> Path:
    """Builds with this environment's hatchling: the same back end that pip calls, without a download."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(directory)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True, timeout=100)
    return next(directory.glob("*.whl" if target == "wheel" else "*.tar.gz"))


def build_from_sdist(source: Path, directory: Path) -> Path:
    """A wheel of the source distribution, so that one which lacks something fails here."""
    with tarfile.open(build("sdist", source, directory)) as archive:
        # Python before 3.11.4 has no filters, and takes no argument for one.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(directory)
    return build("wheel", next(each for each in directory.iterdir() if each.is_dir()), directory)


def requirements(wheel: Path) -> list[str]:
    """What the wheel asks for, with all extras, as a resolver reads it on a command line."""
    with ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist", [])
    return [re.sub(r"(;| and) extra == '\w+'", "", line) for line in lines]


def make_environment(home: Path, python: str, *packages: str, lowest: bool = False) -> Path:
    """The interpreter of a new environment with these packages and what they require, and nothing else.

    ``lowest``: each package in the oldest version that its requirement admits.
    """
    _uv("venv", "--python", python, str(home))
    interpreter = home / "bin" / "python"
    if packages:
        resolution = ["--resolution", "lowest-direct"] if lowest else []
        _uv("pip", "install", "--python", str(interpreter), *resolution, *packages)
    return interpreter


def install_alone(interpreter: Path, wheel: Path) -> None:
    """Adds a wheel, and checks that what it requires is there already."""
    _uv("pip", "install", "--python", str(interpreter), "--no-deps", str(wheel))
    _uv("pip", "check", "--python", str(interpreter))


def _uv(*arguments: str) -> None:
    """Quick, and able to resolve to the lowest versions; it heeds the index and the certificates given for pip."""
    given = {"UV_DEFAULT_INDEX": "PIP_INDEX_URL", "SSL_CERT_FILE": "PIP_CERT"}
    environ = {name: os.environ[pip] for name, pip in given.items() if pip in os.environ} | os.environ
    done = subprocess.run(
        [sys.executable, "-m", "uv", "--quiet", *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"uv {' '.join(arguments)}\n{done.stderr}"
