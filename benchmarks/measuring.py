"""What the benchmarks share: processes looked at from outside, the head and the rows of a table."""

import argparse
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).parent.parent
PATIENCE_SECONDS = 300.0
TICKS = os.sysconf("SC_CLK_TCK")
MEGABYTE = 1_000_000
LIBRARIES = ("celery", "kombu", "redis", "hiredis", "amqp", "msgspec", "SQLAlchemy", "flower")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
T = TypeVar("T")
SWITCHES = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


def options(text: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the module's own text, with the addresses of the brokers."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redis", default=os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/15"))
    parser.add_argument("--amqp", default=os.environ.get("TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//"))
    return parser


def urls(given: argparse.Namespace) -> list[str]:
    """The brokers to measure: both, or ``--only`` one."""
    return [each for each in (given.redis, given.amqp) if not given.only or each.startswith(given.only)]


def load() -> str:
    return " ".join(f"{each:.1f}" for each in os.getloadavg())


def machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    python, sqlite = platform.python_version(), sqlite3.sqlite_version
    return f"{os.cpu_count()} cores, Linux {platform.release()}, Python {python}, SQLite {sqlite}, {versions}"


def headed(title: str) -> None:
    """Says what is measured: when, where, by which command, beside what load."""
    command = " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    print(f"\n## {title}\n\n`{command}`, {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}")
    print(f"{machine()}; load before: {load()}\n", flush=True)


def columns(*names: str) -> None:
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)


def row(*values: object) -> None:
    print(f"| {' | '.join(str(each) for each in values)} |", flush=True)


def ended() -> None:
    print(f"\nload after: {load()}", flush=True)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share lies: of what was measured, never between two values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(each) for each in (task / "children").read_text().split()]
    return found


def cpu_seconds(pid: int) -> float:
    """Of a process and its living children; on Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS + sum(cpu_seconds(each) for each in children(pid))


def memory(pid: int, field: str = "VmRSS") -> float:
    """MB that a process has in memory; its largest ever is ``VmHWM``."""
    line = next(each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith(field))
    return int(line.split()[1]) * 1024 / MEGABYTE


@contextmanager
def running(command: list[str], directory: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program with its output in ``directory/log``, ended with all that it started."""
    paths = {"PYTHONPATH": f"{ROOT}:{directory}"}
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=directory, env=os.environ | paths | environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def until(done: Callable[[], object], what: str, pause: float = 0.1, patience: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + patience
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} took more than {patience:.0f} s")
        time.sleep(pause)


def text_at(address: str) -> str:
    """What is there; nothing while nobody answers."""
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


@contextmanager
def sampling(look: Callable[[], T], seconds: float) -> Iterator[list[T]]:
    """Calls ``look`` again and again beside the block; its error is the block's error at the end."""
    found: list[T] = []
    over = threading.Event()
    failed: list[Exception] = []

    def keep_looking() -> None:
        due = time.monotonic()
        while not over.wait(max(0.0, due - time.monotonic())):
            try:
                found.append(look())
            except Exception as error:  # noqa: BLE001 - it is raised below
                failed.append(error)
                return
            due = max(due + seconds, time.monotonic())

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join(30)
    if failed:
        raise failed[0]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        raise RuntimeError(f"none of {', '.join(BROWSERS)} is on PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=SWITCHES)
        yield browser
        browser.close()
