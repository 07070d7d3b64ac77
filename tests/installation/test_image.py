"""What deploy/Dockerfile does, without a container engine: its files build the wheel, and its environment serves."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.installation.environments import ROOT, build
from tests.servers import free_port
from tests.test_cli import fetch_patiently

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
IGNORE = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()


def environment() -> dict[str, str]:
    """The variables of ENV."""
    (lines,) = re.findall(r"^ENV (.*?[^\\])$", DOCKERFILE, re.MULTILINE | re.DOTALL)
    return dict(each.split("=", 1) for each in lines.replace("\\\n", " ").split())


def test_the_files_of_the_build_make_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in (each[1:] for each in IGNORE if each.startswith("!")):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    made = build("wheel", source, tmp_path)

    def contents(path: Path) -> dict[str, int]:
        return {each.filename: each.CRC for each in ZipFile(path).infolist() if "__pycache__" not in each.filename}

    assert contents(made) == contents(wheel)


@pytest.fixture
def served(newest: Path, redis_url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """ENTRYPOINT and CMD with ENV and what a person must add, in a folder of its own. Yields the environment."""
    command = [*json.loads(_line("ENTRYPOINT")), *json.loads(_line("CMD"))]
    users = tmp_path / "users"
    users.write_text("ada:admin:a-long-password\n", encoding="utf-8")
    ours = {name: value.replace("/data", str(tmp_path)) for name, value in environment().items()}
    ours |= {"CELERY_MONITOR_PORT": str(free_port()), "CELERY_MONITOR_BROKER": redis_url}
    ours |= {"CELERY_MONITOR_BASIC_AUTH_FILE": str(users), "CELERY_MONITOR_URL_PREFIX": "/monitor"}
    ours |= {"PATH": f"{newest.parent}:/usr/bin:/bin", "HOME": str(tmp_path), "CELERY_MONITOR_HOST": "127.0.0.1"}
    server = subprocess.Popen(command, env=ours, cwd=tmp_path, executable=newest.parent / command[0])
    try:
        fetch_patiently(f"http://127.0.0.1:{ours['CELERY_MONITOR_PORT']}/monitor/livez")
        yield ours
    finally:
        server.terminate()
        server.wait(60)


def _line(instruction: str) -> str:
    return str(re.findall(rf"^{instruction} (.*)$", DOCKERFILE, re.MULTILINE)[-1])


def health(environ: dict[str, str]) -> int:
    (check,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (.*)$", DOCKERFILE, re.MULTILINE)
    program, *arguments = json.loads(check)
    assert program == "python"
    done = subprocess.run([sys.executable, *arguments], env=environ, timeout=60, check=False, capture_output=True)
    return done.returncode


def test_the_image_serves_and_is_found_healthy(served: dict[str, str], tmp_path: Path) -> None:
    assert health(served) == 0
    assert health(served | {"CELERY_MONITOR_PORT": str(free_port())}) == 1
    assert (tmp_path / "celery-monitor.db").stat().st_mode & 0o077 == 0
