"""Flower, run as its users run it, on a broker of ours."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.measuring import children, cpu_seconds, memory, running, text_at, until
from benchmarks.stream import WORKERS, Publisher, heartbeat


class Flower(NamedTuple):
    """A Flower that has seen the workers of the stream."""

    process: subprocess.Popen[bytes]
    address: str

    @property
    def events(self) -> int:
        """How many it has counted, without its own workers' heartbeats."""
        lines = text_at(f"{self.address}/metrics").splitlines()
        counted = [line for line in lines if line.startswith("flower_events_total{") and "heartbeat" not in line]
        return round(sum(float(line.rpartition(" ")[2]) for line in counted))

    @property
    def cpu_seconds(self) -> float:
        return cpu_seconds(self.process.pid)

    def memory(self, field: str = "VmRSS") -> float:
        """MB of it and its children."""
        return sum(memory(each, field) for each in (self.process.pid, *children(self.process.pid)))


@contextmanager
def flower(url: str, publisher: Publisher, directory: Path, *, most_tasks: int) -> Iterator[Flower]:
    """Its queue is given a longer life, so that RabbitMQ keeps what it has not read yet."""
    (directory / "watched.py").write_text(
        f"from celery import Celery\napp = Celery(broker={url!r})\napp.conf.event_queue_ttl = 3600.0\n"
        "app.conf.event_queue_expires = 3600.0\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [f"--port={port}", "--address=127.0.0.1", f"--max_tasks={most_tasks}"]
    with running([sys.executable, "-m", "celery", "-A", "watched", "flower", *given], directory) as process:
        made = Flower(process, f"http://127.0.0.1:{port}")

        def sees_workers() -> bool:
            publisher.publish(heartbeat())
            metrics = text_at(f"{made.address}/metrics")
            return "flower_worker_online" in metrics and WORKERS[0] in metrics

        until(sees_workers, "Flower's start", 0.5)
        yield made


def settled(read: Callable[[], int], goal: int, quiet_seconds: float = 15.0) -> int:
    """Waits until a number reaches its goal, or stands still for so long; gives it."""
    last, changed = read(), time.monotonic()
    while last < goal and time.monotonic() - changed < quiet_seconds:
        time.sleep(0.25)
        now = read()
        if now != last:
            last, changed = now, time.monotonic()
    return last
