"""Child processes that are started, started again when they die, and ended with us.

Settings reach a child through a pipe (multiprocessing's spawn), never on its command line, where every user of the
machine could read a broker's password.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from multiprocessing import connection
from pathlib import Path
from threading import Event
from threading import Thread
from types import FrameType
from types import ModuleType
from typing import NamedTuple
from typing import Protocol

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.1
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0  # a child that lived so long starts again without a longer pause
STOP_SECONDS = 5.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None)


class Process(Protocol):
    """What multiprocessing.Process and Command have in common."""

    @property
    def pid(self) -> int | None: ...
    @property
    def exitcode(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...


class Job(NamedTuple):
    """Something to keep running: each call of ``start`` makes a new process of it.

    A ``foundation`` is what other jobs need even to end well: it ends after them.
    """

    name: str
    start: Callable[[], Process]
    foundation: bool = False


class Command:
    """A program in a session of its own, so that Ctrl-C reaches us alone and its children end with it."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        directory: Path,
        log: Path,
        ending: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._ending = ending
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the commands are our own
                command,
                env=dict(environ),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - it makes one system call
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        if self.exitcode is None:
            self._process.send_signal(self._ending)

    def kill(self) -> None:
        """Ends the program and everything that it left in its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def join(self, timeout: float | None = None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)


@dataclass
class _Keeper:
    job: Job
    process: Process
    began: float
    pause: float = FIRST_PAUSE_SECONDS
    again: float | None = None  # when to start it again

    def tend(self, now: float) -> None:
        """Notices a death, and starts the job again when its pause is over."""
        if self.again is None and self.process.exitcode is not None:
            self._mourn(now)
        elif self.again is not None and now >= self.again:
            self.process, self.began, self.again = _started(self.job), now, None

    def _mourn(self, now: float) -> None:
        steady = now - self.began >= STEADY_SECONDS
        self.pause = FIRST_PAUSE_SECONDS if steady else min(self.pause * 2, LONGEST_PAUSE_SECONDS)
        self.again = now + self.pause
        logger.warning("%s ended with %s; starting it again in %.0f s", self.job.name, self._cause(), self.pause)
        self.process.kill()  # what a killed worker left behind must not serve on beside the new one

    def _cause(self) -> str:
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@dataclass
class Supervisor:
    """Keeps jobs running between ``start`` and ``stop``; ends foundations last."""

    _keepers: list[_Keeper] = field(default_factory=list)

    def start(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._keepers.append(_Keeper(job, _started(job), time.monotonic()))

    def tend(self) -> None:
        for keeper in self._keepers:
            keeper.tend(time.monotonic())

    def stop(self) -> None:
        """Asks all to end, and kills what has not ended in time."""
        _end([each for each in self._keepers if not each.job.foundation])
        _end([each for each in self._keepers if each.job.foundation])


def _started(job: Job) -> Process:
    process = job.start()
    logger.info("%s runs as process %d", job.name, process.pid)
    return process


def _end(keepers: Sequence[_Keeper]) -> None:
    for keeper in keepers:
        keeper.process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for keeper in keepers:
        keeper.process.join(max(0.0, deadline - time.monotonic()))
    for keeper in keepers:
        if keeper.process.exitcode is None:
            logger.warning("%s did not end within %.0f s and is killed", keeper.job.name, STOP_SECONDS)
        keeper.process.kill()
        keeper.process.join(STOP_SECONDS)


def supervise(
    jobs: Sequence[Job],
    stop: Event,
    ready: Callable[[], bool],
    announce: Callable[[], object],
    later: Sequence[Job] = (),
) -> None:
    """Runs the jobs until ``stop`` is set. Once, as soon as ``ready`` is true, starts ``later`` and announces."""
    supervisor = Supervisor()
    announced = False
    try:
        supervisor.start(jobs)
        while not stop.wait(TICK_SECONDS):
            supervisor.tend()
            if not announced and ready():
                announced = True
                supervisor.start(later)
                announce()
    finally:
        supervisor.stop()


def python_job(name: str, log_level: str, target: Callable[..., None], *arguments: object) -> Job:
    """A job that calls ``target(*arguments, stop)`` in a fresh interpreter; ``stop`` is an Event to end by."""
    context = multiprocessing.get_context("spawn")

    def start() -> Process:
        process = context.Process(target=_child, args=(log_level, target, arguments), name=name)
        with _nothing_to_import():
            process.start()
        return process

    return Job(name, start)


@contextmanager
def _nothing_to_import() -> Iterator[None]:
    """A spawned child imports its parent's main module again: the command line, and with it what any process needs.

    Ours find what they run by its own name, so they need none of it: a receiver no web framework.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def stop_on_signals() -> Event:
    """An Event that SIGTERM and SIGINT set."""
    stop = Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        # In a thread: the signal may interrupt stop.wait() while it holds the lock that set() needs.
        Thread(target=stop.set, daemon=True).start()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop


def configure_logging(level: str) -> None:
    """Log lines go to standard error."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)


def _child(log_level: str, target: Callable[..., None], arguments: tuple[object, ...]) -> None:
    configure_logging(log_level)
    stop = stop_on_signals()
    Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
    target(*arguments, stop)


def _stop_with_parent(stop: Event) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        stop.set()


def _end_with_parent() -> None:
    # Not a polite signal: what the program needs to end well, such as its broker, is dying at the same moment.
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
