"""Celery's integration suite: taken from the package index, unpacked outside of the repository, run as it is."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

MODULES = ("t/integration/test_canvas.py", "t/integration/test_tasks.py")
SAME_VERSIONS = ("celery", "kombu", "billiard", "vine", "amqp", "redis")  # as in the environment of the product
TEST_SECONDS = 200  # two tests of chords wait 10 s seven times
SUITE_SECONDS = 1500
STOP_SECONDS = 60
INSTALL_SECONDS = 600
PLUGIN = Path(__file__).parent / "sender.py"


@dataclass
class Suite:
    """The unpacked suite, and the Python that runs it."""

    directory: Path
    python: Path


@dataclass(frozen=True)
class Outcome:
    """How one test of the suite ended: passed, failed, skipped; with the first line of why."""

    test: str
    result: str
    reason: str = ""


def prepare(cache: Path) -> Suite:
    """The suite of the installed Celery. What the cache holds already is not fetched again."""
    release = version("celery")
    directory = cache / f"celery-{release}"
    if not (directory / "t" / "integration").is_dir():
        _unpack(_download(cache, release), directory)
    python = _environment(cache / f"environment-{release}", directory)
    return Suite(directory, python)


def _download(cache: Path, release: str) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "celery"]
    subprocess.run([*command, "--dest", str(cache), f"celery=={release}"], check=True, timeout=INSTALL_SECONDS)
    return cache / f"celery-{release}.tar.gz"


def _unpack(archive: Path, directory: Path) -> None:
    """Just the tests: what they import as celery is the installed package."""
    with tarfile.open(archive) as opened:
        top = directory.name
        wanted = (f"{top}/t/", f"{top}/requirements/test.txt", f"{top}/pyproject.toml")
        members = [each for each in opened.getmembers() if each.name.startswith(wanted)]
        opened.extractall(directory.parent, members, filter="data")
    # Read by the suite's own conftest.py. Without these two settings nobody sends events.
    settings = {"worker_send_task_events": True, "task_send_sent_event": True}
    (directory / "integration-tests-config.json").write_text(json.dumps(settings), encoding="utf-8")


def _environment(directory: Path, suite: Path) -> Path:
    """An environment with the plug-ins that the suite names, and the versions that the product runs with."""
    named = (suite / "requirements" / "test.txt").read_text(encoding="utf-8").splitlines()
    plugins = [each for each in named if each.startswith("pytest") and not each.startswith("pytest-celery")]
    wanted = [*(f"{each}=={version(each)}" for each in SAME_VERSIONS), *plugins, "kombu[redis]", "pydantic", "tblib"]
    done = directory / "installed.txt"
    python = directory / "bin" / "python"
    if not done.exists() or done.read_text(encoding="utf-8").splitlines() != wanted:
        shutil.rmtree(directory, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True, timeout=INSTALL_SECONDS)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True, timeout=INSTALL_SECONDS)
        done.write_text("\n".join(wanted), encoding="utf-8")
    return python


def run(
    suite: Suite,
    directory: Path,
    broker_url: str,
    redis_url: str,
    tests: Sequence[str],
    most_seconds: float = SUITE_SECONDS,
) -> list[Outcome]:
    """How each test ended. Its worker is part of it; what was sent is in ``sent.ndjson`` of ``directory``."""
    redis = urlsplit(redis_url)
    shutil.copy(PLUGIN, directory / "conformance_sender.py")
    report = directory / "suite.xml"
    report.unlink(missing_ok=True)
    command = [str(suite.python), "-m", "pytest", *tests, "-v", "-p", "no:cacheprovider", "-p", "celery.contrib.pytest"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "PYTEST_"))}
    environment |= {
        "TEST_BROKER": broker_url,
        "TEST_BACKEND": redis_url,
        "REDIS_HOST": redis.hostname or "127.0.0.1",
        "REDIS_PORT": str(redis.port or 6379),
        "WORKER_LOGLEVEL": "INFO",  # two tests read what the worker logs
        "PYTHONPATH": str(directory),
        "CONFORMANCE_SENT": str(directory / "sent.ndjson"),
        "CONFORMANCE_TEST_SECONDS": str(TEST_SECONDS),
    }
    with (directory / "suite.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-p", "conformance_sender", f"--junitxml={report}"],
            cwd=suite.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(most_seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest then still writes its report
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return outcomes(report)


def outcomes(report: Path) -> list[Outcome]:
    """What pytest says of each test; a test that ran again because it is flaky counts once."""
    found: dict[str, Outcome] = {}
    for case in ET.parse(report).iter("testcase"):
        folder, integration, module, *classes = case.get("classname", "").split(".")
        test = "::".join([f"{folder}/{integration}/{module}.py", *classes, case.get("name", "")])
        failures = [each for each in case if each.tag in {"failure", "error"}]
        skips = [each for each in case if each.tag == "skipped"]
        reasons = [(each.get("message") or "").partition("\n")[0] for each in failures or skips]
        result = "failed" if failures else "skipped" if skips else "passed"
        if found.get(test, Outcome(test, "passed")).result == "passed":
            found[test] = Outcome(test, result, reasons[0] if reasons else "")
    return list(found.values())
