"""Child processes that are restarted when they end unexpectedly, and stopped with this process.

A PythonCall runs in a new interpreter that reads it from its standard input: on a command line every user of the
machine could read a broker's password. The input closes when this process ends, in whatever way, and the child stops.
multiprocessing would add another process and run our main module again in each child.

Whoever serves becomes a program that has loaded this module alone, and waits for signals: what supervises for months
should need no more than that.
"""

import ctypes
import gc
import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from threading import Event, Thread
from types import FrameType, TracebackType
from typing import IO, NamedTuple, NoReturn

from celery_monitor.addresses import masked
from celery_monitor.core.untrusted import printable, printable_lines
from celery_monitor.errors import MonitorError
from celery_monitor.files import open_private, unnamed_file

logger = logging.getLogger(__name__)

TICK_SECONDS = 0.1  # until all is ready
STEADY_TICK_SECONDS = 0.5
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0  # after this run time the pause is reset
STOP_SECONDS = 5.0
TRACEBACK_INDENT = "  "
LONGEST_ERROR = 500
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LIBC = ctypes.CDLL(None)
_ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
END_SIGNALS = {signal.SIGTERM, signal.SIGINT}
# -P: a module in the working directory must not shadow one of ours.
CHILD = (sys.executable, "-P", "-c")
CHILD_CODE = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    f"from {__name__} import run_call; run_call(*pickle.load(sys.stdin.buffer))"
)
SUPERVISOR_CODE = (
    "import os, pickle, sys; file = os.fdopen(int(sys.argv[1]), 'rb'); file.seek(0); sys.path[:] = pickle.load(file); "
    f"from {__name__} import run_plan; run_plan(pickle.load(file))"
)
# glibc gives each thread a heap of its own, of which a process with one interpreter lock has no use.
CHILD_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
STDOUT = 1
ANSWER_SECONDS = 1.0


class MaskingFormatter(logging.Formatter):
    """Masks secrets, and escapes control characters: errors of libraries, and so tracebacks, contain both.

    A record is one line, so that no text from outside looks like a record of ours; a traceback below it is indented.
    Times are UTC: under ``celery -A`` the process has the time zone of the application.
    """

    converter = staticmethod(time.gmtime)
    default_msec_format = "%s,%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - of logging
        return printable(masked(super().formatMessage(record)))

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return TRACEBACK_INDENT + printable_lines(masked(text)).replace("\n", f"\n{TRACEBACK_INDENT}")


class Ending(NamedTuple):
    """An unexpected end of a process: its cause, and the number of failures in a row since ``since``."""

    cause: str
    since: float
    failures: int


class ChildProcess(subprocess.Popen[bytes]):
    """A child process."""

    def cause(self) -> str:
        """Why it has ended."""
        return signal.Signals(-self.returncode).name if self.returncode < 0 else f"exit code {self.returncode}"


class Program(ChildProcess):
    """A program in its own session: Ctrl-C does not reach it, and its children are killed with it."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        directory: Path,
        log: Path,
        end_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self._end_signal = end_signal
        with open_private(log) as output:
            super().__init__(
                command,
                env=dict(environ),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,  # what it writes is its owner's alone
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    def terminate(self) -> None:
        self.send_signal(self._end_signal)

    def kill(self) -> None:
        """Ends the program and everything left in its process group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _end_with_parent() -> None:
    # SIGKILL, since what the program needs for a clean end, such as its broker, dies at the same moment.
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class PythonCall(ChildProcess):
    """A process that calls ``module:function`` with ``arguments`` and an Event that is set to stop it.

    ``name`` is shown in process lists. ``files`` are descriptors that stay open in it. Its standard output carries
    only the error that ends it.
    """

    stdin: IO[bytes]
    stdout: IO[bytes]

    def __init__(
        self, name: str, log_level: str, function: str, arguments: Sequence[object], files: Sequence[int] = ()
    ) -> None:
        self._start(ChildCall.of(name, log_level, function, arguments, files))

    def _start(self, call: "ChildCall") -> None:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)  # until the child can handle them
        try:
            pipe, environ = subprocess.PIPE, os.environ | CHILD_ENVIRONMENT
            super().__init__([*CHILD, CHILD_CODE, call.name], stdin=pipe, stdout=pipe, pass_fds=call.files, env=environ)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        with suppress(BrokenPipeError):  # it has ended already
            self._write(call.packed)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.stdin.fileno(), rest) :]

    def cause(self) -> str:
        return self.stdout.read().decode("utf-8", "replace") or super().cause()


class PackedCall(PythonCall):
    """A PythonCall whose arguments stay packed, so that nothing of them is loaded here."""

    def __init__(self, call: "ChildCall") -> None:
        self._start(call)


class ChildCall(NamedTuple):
    """A PythonCall to make, packed.

    ``ended``: ``module:function``, and arguments to which the Ending is added, of a call after each unexpected end.
    """

    name: str
    packed: bytes
    files: tuple[int, ...]
    ended: tuple[str, tuple[object, ...]] | None

    @classmethod
    def of(
        cls,
        name: str,
        log_level: str,
        function: str,
        arguments: Sequence[object],
        files: Sequence[int] = (),
        ended: tuple[str, tuple[object, ...]] | None = None,
    ) -> "ChildCall":
        packed = pickle.dumps(sys.path) + pickle.dumps((log_level, function, arguments))
        return cls(name, packed, tuple(files), ended)


def run_call(log_level: str, function: str, arguments: Sequence[object]) -> None:
    """What the process of a PythonCall runs."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as errors:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        configure_logging(log_level)
        stop = stop_on_signals()
        Thread(target=_stop_with_parent, args=(stop,), daemon=True).start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
        try:
            resolve_without_gc(function)(*arguments, stop)
        except MonitorError as error:  # expected, so no traceback
            errors.write(_cause(error.message))
            logger.error("%s", error)
            sys.exit(1)
        except Exception as error:
            errors.write(_cause(f"{type(error).__name__}: {error}"))
            logger.exception("%s failed", function)  # Python's own report would print the error as it is
            sys.exit(1)


def _cause(text: str) -> str:
    return printable(masked(text))[:LONGEST_ERROR]


def resolve_without_gc(function: str) -> Callable[..., None]:
    """Loads ``module:function`` without garbage collection, which would take a sixth of the load time."""
    gc.disable()
    found: Callable[..., None] = resolve_name(function)
    gc.freeze()
    gc.enable()
    return found


def _stop_with_parent(stop: Event) -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    stop.set()


class ChildJob(NamedTuple):
    """Something to keep running: ``start`` starts a new process of it.

    A ``foundation`` is stopped last, since other jobs need it for a clean end. ``ended`` is called in a thread after
    each unexpected end of a process.
    """

    name: str
    start: Callable[[], ChildProcess]
    foundation: bool = False
    ended: Callable[[Ending], object] | None = None


def job_of(call: ChildCall, log_level: str) -> ChildJob:
    """The job of making this call again and again."""

    def note(ending: Ending) -> None:
        if call.ended is not None:
            function, arguments = call.ended
            with PythonCall(f"end of {call.name}", log_level, function, (*arguments, ending)) as noting:
                noting.wait()

    return ChildJob(call.name, partial(PackedCall, call), ended=None if call.ended is None else note)


@dataclass
class _Running:
    """A job with its current process, or waiting for its restart."""

    job: ChildJob
    process: ChildProcess
    began: float
    pause: float = FIRST_PAUSE_SECONDS
    failures: int = 0  # in a row
    since: float = 0.0
    restart_at: float | None = None

    def restart_if_ended(self, now: float) -> None:
        if self.restart_at is None and self.process.poll() is not None:
            self._schedule_restart(now)
        elif self.restart_at is not None and now >= self.restart_at:
            self.process, self.began, self.restart_at = _start(self.job), now, None

    def _schedule_restart(self, now: float) -> None:
        steady = now - self.began >= STEADY_SECONDS
        self.pause = FIRST_PAUSE_SECONDS if steady else min(self.pause * 2, LONGEST_PAUSE_SECONDS)
        self.restart_at = now + self.pause
        if steady or not self.failures:
            self.failures, self.since = 0, time.time()
        self.failures += 1
        cause = self.process.cause()
        logger.warning("%s ended with %s; restart in %.0f s", self.job.name, cause, self.pause)
        if self.job.ended is not None:  # in a thread: a slow database must not block the other jobs
            Thread(target=self.job.ended, args=(Ending(cause, self.since, self.failures),), daemon=True).start()
        _release(self.process)  # children of a killed process must not run beside the new one


class Supervisor:
    """Keeps jobs running between ``start`` and ``stop``; stops foundations last."""

    def __init__(self) -> None:
        self._running: list[_Running] = []

    def start(self, jobs: Sequence[ChildJob]) -> None:
        for job in jobs:
            self._running.append(_Running(job, _start(job), time.monotonic()))

    def restart_ended(self) -> None:
        for each in self._running:
            each.restart_if_ended(time.monotonic())

    def seconds_left(self) -> float | None:
        """Until the next restart is due; ``None``: all run."""
        due = [each.restart_at for each in self._running if each.restart_at is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def stop(self) -> None:
        """Terminates all, and kills those that have not ended in time."""
        _end([each for each in self._running if not each.job.foundation])
        _end([each for each in self._running if each.job.foundation])


def _start(job: ChildJob) -> ChildProcess:
    process = job.start()
    logger.info("%s runs as process %d", job.name, process.pid)
    return process


def _end(group: Sequence[_Running]) -> None:
    for each in group:
        each.process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for each in group:
        try:
            each.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("%s did not end within %.0f s and is killed", each.job.name, STOP_SECONDS)
        _release(each.process)


def _release(process: ChildProcess) -> None:
    """Kills what is left of a process, and closes its pipes."""
    with process:
        process.kill()


def supervise(
    jobs: Sequence[ChildJob],
    stop: Event,
    ready: Callable[[], bool],
    announce: Callable[[], object],
    later: Sequence[ChildJob] = (),
) -> None:
    """Runs the jobs until ``stop`` is set. Once, as soon as ``ready`` is true, starts ``later`` and announces."""
    supervisor = Supervisor()
    announced = False
    try:
        supervisor.start(jobs)
        while not stop.wait(STEADY_TICK_SECONDS if announced else TICK_SECONDS):
            supervisor.restart_ended()
            if not announced and ready():
                announced = True
                supervisor.start(later)
                announce()
    finally:
        supervisor.stop()


class Listening(NamedTuple):
    """Where a web process answers: a path at a host and port, or at a socket file, which is removed at the end."""

    address: str | tuple[str, int]
    path: str
    file: str | None

    def answers(self) -> bool:
        """Whether it answers, with any status."""
        if isinstance(self.address, str):
            family, host = socket.AF_UNIX, "localhost"
        else:
            family, host = socket.AF_INET6 if ":" in self.address[0] else socket.AF_INET, self.address[0]
        with closing(socket.socket(family, socket.SOCK_STREAM)) as client, suppress(OSError):
            client.settimeout(ANSWER_SECONDS)
            client.connect(self.address)
            client.sendall(f"GET {self.path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            return bool(client.recv(1))
        return False


class SupervisorPlan(NamedTuple):
    """What to supervise, and what is announced as soon as it runs, and answers if it is ``listening``."""

    log_level: str
    calls: Sequence[ChildCall]
    text: str
    listening: Listening | None = None


def become_supervisor(plan: SupervisorPlan) -> NoReturn:
    """Replaces this program by one that has loaded no more than it needs to run the plan until a signal."""
    for descriptor in {each for call in plan.calls for each in call.files}:
        os.set_inheritable(descriptor, True)
    file = unnamed_file(pickle.dumps(sys.path) + pickle.dumps(plan))
    sys.stdout.flush()
    sys.stderr.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)  # until they can be handled again
    os.execv(sys.executable, [*CHILD, SUPERVISOR_CODE, str(file), "supervisor"])  # noqa: S606


def run_plan(plan: SupervisorPlan) -> None:
    """What the program of ``become_supervisor`` runs."""
    configure_logging(plan.log_level)
    supervisor, announced = Supervisor(), False
    with _signals() as wait:
        try:
            supervisor.start([job_of(call, plan.log_level) for call in plan.calls])
            while not wait(supervisor.seconds_left() if announced else TICK_SECONDS):
                supervisor.restart_ended()
                if not announced and (plan.listening is None or plan.listening.answers()):
                    announced = True
                    os.write(STDOUT, f"{printable_lines(plan.text)}\n".encode())
        finally:
            supervisor.stop()
            if plan.listening is not None and plan.listening.file is not None:
                Path(plan.listening.file).unlink(missing_ok=True)


@contextmanager
def _signals() -> Iterator[Callable[[float | None], bool]]:
    """Gives a function that waits for a signal, for at most so many seconds, and returns whether it is one to end."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in (*END_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)  # its number is in the pipe
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)

    def wait(seconds: float | None) -> bool:
        if not select.select([reading], [], [], seconds)[0]:
            return False
        return not END_SIGNALS.isdisjoint(os.read(reading, 4096))

    try:
        yield wait
    finally:
        signal.set_wakeup_fd(-1)
        os.close(reading)
        os.close(writing)


def stop_on_signals() -> Event:
    """An Event that SIGTERM and SIGINT set."""
    stop = Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        # In a thread: the signal may interrupt stop.wait() while it has the lock that set() needs.
        Thread(target=stop.set, daemon=True).start()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    return stop


def configure_logging(level: str) -> None:
    """Log lines and unexpected errors go to standard error, without secrets and control characters in them."""
    handler = logging.StreamHandler()
    handler.setFormatter(MaskingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)  # it logs seven lines when loaded
    sys.excepthook = _log_exception


def _log_exception(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """An error that nobody expected, which Python would print as it is."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        logger.critical("unexpected error", exc_info=(kind, error, traceback))
