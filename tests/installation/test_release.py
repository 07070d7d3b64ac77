"""``make release`` as a person runs it, and one version for both distributions."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

from tests.installation.environments import CAPTURE, ROOT

RELEASE_SECONDS = 280


def project(folder: Path) -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def test_the_version_stands_in_one_place() -> None:
    assert "version" in project(ROOT)
    assert project(CAPTURE)["dynamic"] == ["version"]


def test_a_release_is_reproducible_checked_and_installed(tmp_path: Path) -> None:
    command = [str(ROOT / ".ci" / "release"), str(tmp_path / "dist")]
    environ = os.environ | {"SOURCE_DATE_EPOCH": "1790000000"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environ, timeout=RELEASE_SECONDS, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    version = project(ROOT)["version"]
    built = {
        f"{name}-{version}{end}"
        for name in ("celery_monitor", "celery_monitor_capture")
        for end in (".tar.gz", "-py3-none-any.whl")
    }
    assert {each.name for each in (tmp_path / "dist").iterdir()} == built
    assert done.stdout.count("PASSED") == len(built)
    assert set(re.findall(r"^(\S+): installed, .*$", done.stdout, re.MULTILINE)) == built
    assert done.stdout.count(f"installed, celery-monitor, version {version}") == 2
