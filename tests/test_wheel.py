"""What people install: built as a release is, installed where nothing of the source tree is, started elsewhere."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import time
import venv
import zipfile
from pathlib import Path

import pytest

from tests.test_cli import ANSWER_SECONDS
from tests.test_cli import fetch
from tests.test_cli import running

ROOT = Path(__file__).parent.parent
APPLICATION = """
from celery import Celery
app = Celery("kiosk", broker={url!r})
"""


def build(target: str, source: Path, directory: Path) -> Path:
    """Builds with this environment's hatchling: the same back end that pip calls, without a download."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(directory)]
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True, timeout=100)
    return next(directory.glob("*.whl" if target == "wheel" else "*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, so that one which lacks something fails here."""
    workshop = tmp_path_factory.mktemp("release")
    with tarfile.open(build("sdist", ROOT, workshop)) as archive:
        # Python before 3.11.4 has no filters, and takes no argument for one.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(workshop)
    return build("wheel", next(workshop.glob("celery_monitor-*/")), workshop)


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an empty environment with the wheel, which finds its dependencies in this one."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, with_pip=False, system_site_packages=False)
    interpreter = home / "bin" / "python"
    install = ["--python", str(interpreter), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, timeout=100)
    site_packages = next((home / "lib").glob("python*/site-packages"))
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return interpreter


def test_the_wheel_is_complete_and_holds_no_more(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "monitor/templates/base.html",
        "monitor/static/vendor/uPlot.esm.js",
        "monitor/static/vendor/uPlot.min.css",
        "monitor/static/vendor/idiomorph.js",
        "demo_workers/traffic.py",
    ):
        assert name in names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"monitor", "demo_workers"}


def test_the_wheel_brings_its_own_code(python: Path, tmp_path: Path) -> None:
    code = "import monitor, demo_workers; print(monitor.__file__, monitor.__version__, demo_workers.__file__)"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    package, version, shop = done.stdout.split()
    assert Path(package).is_relative_to(python.parent.parent)
    assert Path(shop).is_relative_to(python.parent.parent)
    assert version[0].isdigit()
    assert "unknown" not in version


def test_it_serves_pages_and_libraries_from_another_directory(python: Path, tmp_path: Path) -> None:
    with running(("monitor", "web", "--port", "0"), tmp_path, python, PYTHONPATH="") as (_, address):
        assert "<html" in fetch(address)
        assert "Idiomorph" in fetch(f"{address}static/any/vendor/idiomorph.js")
        assert "uPlot" in fetch(f"{address}static/any/vendor/uPlot.esm.js")


def test_celery_monitor_watches_the_applications_broker(python: Path, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "kiosk.py").write_text(APPLICATION.format(url=redis_url), encoding="utf-8")
    command = ("celery", "-A", "kiosk", "monitor", "--port", "0")
    with running(command, tmp_path, python, PYTHONPATH="") as (_, address):
        deadline = time.monotonic() + ANSWER_SECONDS
        while not json.loads(fetch(f"{address}api/v1/health"))["items"][0]["connected"]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
