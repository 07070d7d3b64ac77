"""Real Celery workers for tests: a process of its own, waited for, and ended with all its children."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from amqp.exceptions import ChannelError
from celery import Celery
from kombu.exceptions import OperationalError

from tests.apps.basic import BROKER_VARIABLE, CONFIG_VARIABLE, make_app

ROOT = Path(__file__).parent.parent
STOP_SECONDS = 15


@dataclass
class Worker:
    """A running worker, the queue it serves, and an application that can send to it."""

    process: subprocess.Popen[bytes]
    hostname: str
    queue: str
    app: Celery
    log_file: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def send(self, name: str, *args: Any, **options: Any) -> str:
        """Publish ``basic.<name>`` to this worker's queue (or ``queue=``); return the task's id."""
        options.setdefault("queue", self.queue)
        result = self.app.send_task(name if "." in name else f"basic.{name}", args, **options)
        return str(result.id)

    def stop(self) -> None:
        """Warm shutdown; killed when it takes too long."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the worker and its pool at once, as kill -9 does. Its process group is its own."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)

    def kill_main(self) -> None:
        """``kill -9`` for the worker's main process alone; its pool finds out by itself."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)


@contextmanager
def running_worker(
    broker_url: str,
    *,
    app: str = "tests.apps.basic",
    queue: str | None = None,
    hostname: str | None = None,
    pool: str = "prefork",
    concurrency: int = 2,
    events: bool = True,
    options: Sequence[str] = ("--without-gossip", "--without-mingle"),
    config: dict[str, Any] | None = None,
) -> Iterator[Worker]:
    """A worker of ``app`` that is ready, on a queue of its own that is deleted afterwards.

    ``config`` (JSON-able) is Celery configuration for the worker and for ``Worker.app``, for example
    ``{"result_backend": url, "broker_transport_options": {...}}``.
    """
    queue = queue or f"test-{uuid4().hex[:12]}"
    hostname = hostname or f"{queue}@shop"
    given = {"task_default_queue": queue, **(config or {})}
    with TemporaryDirectory(prefix="worker-") as directory:
        log_file = Path(directory) / "worker.log"
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-Q", queue, "-n", hostname]
        command += ["-P", pool, "-c", str(concurrency), "-l", "INFO", *(["-E"] if events else []), *options]
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, BROKER_VARIABLE: broker_url, CONFIG_VARIABLE: json.dumps(given)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = Worker(process, hostname, queue, make_app(broker_url, **given), log_file)
        try:
            _wait_until_ready(worker)
            yield worker
        finally:
            worker.stop()
            _delete_queue(worker)
            worker.app.close()


def _wait_until_ready(worker: Worker) -> None:
    def ready() -> bool:
        if worker.process.poll() is not None:
            raise RuntimeError(f"the worker ended with {worker.process.returncode}:\n{worker.log}")
        return f"{worker.hostname} ready." in worker.log

    try:
        wait_for(ready, what=f"the readiness of {worker.hostname}")
    except TimeoutError as error:
        raise TimeoutError(f"{error}:\n{worker.log}") from None


def _delete_queue(worker: Worker) -> None:
    with (
        suppress(OSError, ChannelError, OperationalError),
        worker.app.connection_for_write(connect_timeout=2) as connection,
    ):
        channel = connection.default_channel
        channel.queue_delete(worker.queue)


async def happens(condition: Callable[[], object]) -> None:
    """``wait_for`` in an event loop."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def wait_for(condition: Any, seconds: float = 60, what: str = "the condition") -> Any:
    """What ``condition()`` returns once it is true; TimeoutError after ``seconds``.

    It is asked less often the longer it takes: to read a page all the time keeps a processor busy.
    """
    began = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - began
        if waited > seconds:
            raise TimeoutError(f"{what} did not come true within {seconds} s")
        time.sleep(min(max(waited / 10, 0.01), 0.2))
    return value
