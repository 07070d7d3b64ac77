"""Child processes that are started, started again when they die, and ended with us.

Settings reach a child through a pipe of multiprocessing, never on its command line, where every user of the machine
could read a broker's password. On Linux children are forked from one process that has loaded what they have in common
(multiprocessing's forkserver), so that each starts in a fraction of the time; elsewhere each loads all by itself.
"""

import ctypes
import gc
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from io import TextIOWrapper
from multiprocessing import connection
from multiprocessing import forkserver
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event
from threading import Thread
from types import FrameType
from types import ModuleType
from typing import NamedTuple
from typing import Protocol

from monitor.addresses import masked
from monitor.errors import MonitorError

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.1
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0  # a child that lived so long starts again without a longer pause
STOP_SECONDS = 5.0
LONGEST_COMPLAINT = 500
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None)
LONGEST_FOLDER = 74  # bytes: multiprocessing adds 33 for its socket, whose address the kernel bounds at 107
# Elsewhere a library of the system may not survive a fork.
FORKS = sys.platform == "linux" and len(os.fsencode(tempfile.gettempdir())) <= LONGEST_FOLDER
CONTEXT = multiprocessing.get_context("forkserver") if FORKS else multiprocessing.get_context("spawn")
NURSERY = "monitor.nursery"
SAFE_PATH = "PYTHONSAFEPATH"
ENDINGS = {signal.SIGTERM, signal.SIGINT}


class MaskingFormatter(logging.Formatter):
    """Libraries repeat addresses in their errors, and so in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class Process(Protocol):
    """What multiprocessing.Process and Command have in common."""

    @property
    def pid(self) -> int | None: ...
    @property
    def exitcode(self) -> int | None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...


class Ending(NamedTuple):
    """A process ended by itself: why, and how often in a row since when."""

    cause: str
    since: float
    failures: int


class Job(NamedTuple):
    """Something to keep running: each call of ``start`` makes a new process of it.

    A ``foundation`` is what other jobs need even to end well: it ends after them. ``ended`` is called, in a thread of
    its own, each time that a process of the job has ended by itself.
    """

    name: str
    start: Callable[[], Process]
    foundation: bool = False
    ended: Callable[[Ending], object] | None = None


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


class Child:
    """A process of multiprocessing, started by who derives from this."""

    _process: BaseProcess

    @property
    def pid(self) -> int | None:
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        return self._process.exitcode

    def join(self, timeout: float | None = None) -> None:
        self._process.join(timeout)


class Forked(Child):
    """What Command makes of ``python -m arguments``, without another start of the interpreter."""

    def __init__(
        self,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        directory: Path,
        log: Path,
        ending: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._ending = ending
        self._process = CONTEXT.Process(target=_run_module, args=(arguments, dict(environ), directory, log))
        with _starting():
            self._process.start()

    def terminate(self) -> None:
        if self.pid is not None and self.exitcode is None:
            os.kill(self.pid, self._ending)

    def kill(self) -> None:
        """Ends the program and everything that it left in its process group."""
        self._process.kill()  # it may be too young to have a group
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def run_module(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    directory: Path,
    log: Path,
    ending: signal.Signals = signal.SIGTERM,
) -> Process:
    """``python -m arguments``, in a session of its own."""
    if FORKS:
        return Forked(arguments, environ, directory, log, ending)
    return Command((sys.executable, "-m", *arguments), environ, directory, log, ending)


@dataclass
class _Keeper:
    job: Job
    process: Process
    began: float
    pause: float = FIRST_PAUSE_SECONDS
    failures: int = 0  # in a row
    since: float = 0.0
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
        if steady or not self.failures:
            self.failures, self.since = 0, time.time()
        self.failures += 1
        cause = self._cause()
        logger.warning("%s ended with %s; starting it again in %.0f s", self.job.name, cause, self.pause)
        if self.job.ended is not None:  # a database that does not answer must not keep us from the other jobs
            Thread(target=self.job.ended, args=(Ending(cause, self.since, self.failures),), daemon=True).start()
        self.process.kill()  # what a killed worker left behind must not serve on beside the new one

    def _cause(self) -> str:
        if isinstance(self.process, PythonProcess) and (complaint := self.process.complaint()):
            return complaint
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


class PythonProcess(Child):
    """A call in a process of its own, which says by which error it ended."""

    def __init__(self, name: str, log_level: str, target: Callable[..., None], arguments: tuple[object, ...]) -> None:
        self._complaints, theirs = CONTEXT.Pipe(duplex=False)
        given = (log_level, target, arguments, theirs)
        self._process = CONTEXT.Process(target=_child, args=given, name=name)
        with theirs, _starting():
            self._process.start()

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def complaint(self) -> str:
        """The error that ended it; nothing where it ended otherwise. To be asked once."""
        with self._complaints, suppress(EOFError, OSError):
            return str(self._complaints.recv()) if self._complaints.poll() else ""
        return ""


def python_job(
    name: str,
    log_level: str,
    target: Callable[..., None],
    *arguments: object,
    ended: Callable[[Ending], object] | None = None,
) -> Job:
    """A job that calls ``target(*arguments, stop)`` in a process of its own; ``stop`` is an Event to end by."""
    return Job(name, lambda: PythonProcess(name, log_level, target, arguments), ended=ended)


def preload(modules: Sequence[str]) -> None:
    """Begins, beside us, to load what children will have in common. Called before the first of them starts."""
    if FORKS:
        forkserver.set_forkserver_preload([NURSERY, *modules])
        with _starting():
            forkserver.ensure_running()


@contextmanager
def _starting() -> Iterator[None]:
    """How a child, and what it is forked from, starts: as nobody's copy, and with nothing lost.

    A child imports its parent's main module again; ours find what they run by its own name, so they need none of it.
    What they are forked from must not load a celery.py of the folder that we are in. A signal to end waits until the
    child can take it; what it is forked from ends after the last child.
    """
    main, path = sys.modules["__main__"], os.environ.get(SAFE_PATH)
    sys.modules["__main__"] = ModuleType("__main__")
    os.environ[SAFE_PATH] = "1"
    resource_tracker.ensure_running()  # it would take our mask away
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        sys.modules["__main__"] = main
        if path is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = path


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
    """Log lines go to standard error, without the passwords of addresses in them."""
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)  # seven lines each time that it is loaded


def _child(
    log_level: str,
    target: Callable[..., None],
    arguments: tuple[object, ...],
    complaints: "connection.Connection[str, str]",
) -> None:
    _collect_what_comes()
    configure_logging(log_level)
    stop = stop_on_signals()
    _end_with_forkserver()
    _when_parent_ends(stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
    try:
        target(*arguments, stop)
    except MonitorError as error:  # its text says all that a traceback would
        complaints.send(masked(error.message)[:LONGEST_COMPLAINT])
        logger.error("%s", error)
        sys.exit(1)
    except Exception as error:
        complaints.send(masked(f"{type(error).__name__}: {error}")[:LONGEST_COMPLAINT])
        raise


def _run_module(arguments: Sequence[str], environ: Mapping[str, str], directory: Path, log: Path) -> None:
    os.setsid()
    _end_with_forkserver()
    _when_parent_ends(lambda: os.killpg(0, signal.SIGKILL))
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(directory)
    with log.open("ab") as output:
        for stream in (sys.__stdout__, sys.__stderr__):
            if isinstance(stream, TextIOWrapper):
                os.dup2(output.fileno(), stream.fileno())
                stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)
    sys.argv = list(arguments)
    sys.path.insert(0, str(directory))
    _collect_what_comes()
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def _collect_what_comes() -> None:
    """Takes back nursery.py: from here on there is garbage, though not in what was loaded."""
    gc.freeze()
    gc.enable()


def _when_parent_ends(end: Callable[[], object]) -> None:
    """Calls ``end`` when the process that asked for this one is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        end()

    Thread(target=watch, daemon=True).start()


def _end_with_forkserver() -> None:
    if FORKS:  # without it nobody would know of this process's end, and another would be started beside it
        _end_with_parent()


def _end_with_parent() -> None:
    # Not a polite signal: what the program needs to end well, such as its broker, is dying at the same moment.
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
