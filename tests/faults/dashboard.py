"""The whole product as a user runs it: ``python -m celery_monitor serve`` as a process, looked at from outside."""

import html
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.receiver.sources.conftest import delete_queue
from tests.test_cli import await_end, environ
from tests.workers import wait_for

START_SECONDS = 120
STOP_SECONDS = 60


@dataclass
class Dashboard:
    """A running ``serve`` and what it says: in its pages, in its API, in its log."""

    process: subprocess.Popen[bytes]
    log_file: Path
    url: str
    database: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, timeout: float = 60) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=timeout) as answer:
            return str(answer.read().decode())

    def page(self, path: str = "/") -> str:
        """The text that a reader of a page sees."""
        shown = re.sub(r"<(script|style)\b.*?</\1>", " ", self.get(path), flags=re.DOTALL)
        return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", shown)).split())

    def says(self, *words: str, path: str = "/") -> str:
        """Waits until the page has all these words; gives its text."""
        text = ""

        def seen() -> bool:
            nonlocal text
            with suppress(OSError):
                text = self.page(path)
            return all(word in text for word in words)

        try:
            wait_for(seen, what=f"{words} on {path}")
        except TimeoutError as error:
            raise AssertionError(f"{error}; the page says: {text[:3000]}\n{self.log[-3000:]}") from None
        return text

    def no_longer_says(self, word: str) -> None:
        wait_for(lambda: word not in self.page(), what=f"the end of {word!r}")

    def json(self, path: str, **query: object) -> Any:
        return json.loads(self.get(f"{path}?{urllib.parse.urlencode(query)}"))

    def health(self) -> dict[str, Any]:
        """What the API says of the only cluster."""
        (item,) = self.json("/api/v1/health")["items"]
        return dict(item)

    def connected(self) -> bool:
        return bool(self.health()["connected"])

    def counts(self, *states: str) -> dict[str, int]:
        return {each: self.json("/api/v1/tasks", q=f"state:{each}", limit=1)["count"]["value"] for each in states}

    def task(self, task_id: str) -> dict[str, Any] | None:
        try:
            return dict(self.json(f"/api/v1/tasks/{task_id}"))
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:
                return None
            raise

    def wait_for_state(self, task_id: str, state: str) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            task = self.task(task_id)
            return task if task is not None and task["state"] == state else None

        try:
            found: dict[str, Any] = wait_for(reached, what=f"{state} of {task_id}")
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.task(task_id)}\n{self.log[-3000:]}") from None
        return found

    def pid(self, job: str) -> int:
        """The process that does this job now, by the log: ``web`` or ``receiver``."""
        return int(re.findall(rf"{job}[^:\n]* runs as process (\d+)", self.log)[-1])

    def kill(self, job: str) -> int:
        """``kill -9`` for one of its processes."""
        pid = self.pid(job)
        os.kill(pid, signal.SIGKILL)
        return pid

    def unexpected(self) -> list[str]:
        """Tracebacks in the log: a fault is said in one line."""
        return re.findall(r"^Traceback.*(?:\n(?!\d{4}-).*)*", self.log, re.MULTILINE)


@contextmanager
def serving(
    broker_url: str, directory: Path, *options: str, log: Path | None = None, direct_url: str | None = None
) -> Iterator[Dashboard]:
    """The dashboard of one broker, with its record in ``directory``; ended with all its processes.

    ``direct_url`` is the broker's own address where the dashboard's leads through something that may be gone.
    """
    node_id = f"test-{uuid4().hex[:10]}"
    database = directory / "record.db"
    log_file = (log or directory) / f"{node_id}.log"
    command = [sys.executable, "-m", "celery_monitor", "serve", "--broker", f"shop={broker_url}", "--port", "0"]
    command += ["--database", f"sqlite:///{database}", "--node-id", node_id, "--inspect-seconds", "3", *options]
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environ(PYTHONUNBUFFERED="1"),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    dashboard = Dashboard(process, log_file, "", database)
    try:
        found = wait_for(
            lambda: process.poll() is not None or re.search(r"is at (http://\S+?)/ ", dashboard.log), START_SECONDS
        )
        assert found is not True, dashboard.log
        dashboard.url = found.group(1)
        yield dashboard
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await_end(process.pid)
        if broker_url.startswith("amqp"):
            delete_queue(f"celeryev.{node_id}", direct_url or broker_url)
