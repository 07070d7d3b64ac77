"""What people install: built as a release is, and complete where nothing of the source tree is."""

import json
import os
import subprocess
import zipfile
from importlib.metadata import version
from pathlib import Path

from tests.installation.environments import ROOT, build
from tests.test_cli import ANSWER_SECONDS, fetch, running
from tests.workers import wait_for

IMPORT_ALL = """
import importlib, pkgutil
import celery_monitor
for module in pkgutil.walk_packages(celery_monitor.__path__, "celery_monitor."):
    if "migrations" not in module.name and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""
APPLICATION = """
from celery import Celery
app = Celery("kiosk", broker={url!r})
"""


def test_the_wheel_is_complete_and_holds_no_more(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "celery_monitor/templates/base.html",
        "celery_monitor/static/vendor/uPlot.esm.js",
        "celery_monitor/static/vendor/uPlot.min.css",
        "celery_monitor/static/vendor/idiomorph.js",
        "demo_workers/traffic.py",
    ):
        assert name in names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"celery_monitor", "demo_workers"}


def test_the_wheel_of_capture_has_the_products_version(wheel: Path, capture_wheel: Path) -> None:
    names = zipfile.ZipFile(capture_wheel).namelist()
    modules = {f"celery_monitor_capture/{name}.py" for name in ("__init__", "control", "events")}
    assert {name for name in names if ".dist-info/" not in name} == modules
    assert [each.name.split("-")[1] for each in (wheel, capture_wheel)] == [version("celery-monitor")] * 2


def test_the_wheel_of_the_source_distribution_is_the_wheel_of_the_repository(wheel: Path, tmp_path: Path) -> None:
    def contents(path: Path) -> dict[str, int]:
        return {
            each.filename: each.CRC for each in zipfile.ZipFile(path).infolist() if "__pycache__" not in each.filename
        }

    assert contents(build("wheel", ROOT, tmp_path)) == contents(wheel)


def test_the_wheel_brings_its_own_code(newest: Path, tmp_path: Path) -> None:
    code = "import celery_monitor as m, demo_workers; print(m.__file__, m.__version__, demo_workers.__file__)"
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([newest, "-c", code], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    package, version, shop = done.stdout.split()
    assert Path(package).is_relative_to(newest.parent.parent)
    assert Path(shop).is_relative_to(newest.parent.parent)
    assert version[0].isdigit()
    assert "unknown" not in version


def test_the_oldest_of_what_it_requires_has_all_that_it_imports(lowest: Path, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(lowest), "-c", IMPORT_ALL]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"celery_monitor.web.security.oidc", "celery_monitor.demo"} <= {*done.stdout.split()}


def test_the_demo_runs_with_the_oldest_broker_that_it_brings(lowest: Path, tmp_path: Path) -> None:
    empty = tmp_path / "bin"  # without redis-server
    empty.mkdir()
    command = ("celery_monitor", "demo", "--port", "0", "--dir", "demo")
    with running(command, tmp_path, lowest, PYTHONPATH="", PATH=str(empty)) as (_, address):
        wait_for(lambda: json.loads(fetch(f"{address}api/v1/tasks"))["items"], ANSWER_SECONDS)


def test_it_serves_pages_and_libraries_from_another_directory(newest: Path, tmp_path: Path) -> None:
    with running(("celery_monitor", "web", "--port", "0"), tmp_path, newest, PYTHONPATH="") as (_, address):
        assert "<html" in fetch(address)
        assert "Idiomorph" in fetch(f"{address}static/any/vendor/idiomorph.js")
        assert "uPlot" in fetch(f"{address}static/any/vendor/uPlot.esm.js")


def test_celery_monitor_watches_the_applications_broker(lowest: Path, redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "kiosk.py").write_text(APPLICATION.format(url=redis_url), encoding="utf-8")
    command = ("celery", "-A", "kiosk", "monitor", "--port", "0")
    with running(command, tmp_path, lowest, PYTHONPATH="") as (_, address):
        connected = lambda: json.loads(fetch(f"{address}api/v1/health"))["items"][0]["connected"]  # noqa: E731
        wait_for(connected, ANSWER_SECONDS)
