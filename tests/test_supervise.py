"""Child processes of the dashboard: how they start, restart and end."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event

import pytest

from celery_monitor.errors import StoreUnavailable
from celery_monitor.supervise import (
    ChildCall,
    ChildJob,
    ChildProcess,
    Ending,
    MaskingFormatter,
    Program,
    PythonCall,
    Supervisor,
    SupervisorPlan,
    become_supervisor,
)
from tests.workers import wait_for

REPORT = """
import json, os, signal, sys
print(json.dumps({
    "argv": sys.argv[1:], "environ": dict(os.environ), "directory": os.getcwd(), "leads": os.getpid() == os.getsid(0),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "ugly": "\\ud800",
}, ensure_ascii=False))
sys.exit(3)
"""
PARENT = """
import sys
from pathlib import Path
from tests.test_supervise import call
child = call("write_state", Path(sys.argv[1]))
child.wait()
"""


def call(function: str, *arguments: object) -> PythonCall:
    """A child that runs a function of this module."""
    return PythonCall("of the test", "warning", f"{__name__}:{function}", arguments)


def write_state(file: Path, stop: Event) -> None:
    blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    file.with_suffix(".new").write_text(json.dumps([os.getpid(), blocked, sys.argv]), encoding="utf-8")
    file.with_suffix(".new").rename(file)
    stop.wait()
    file.with_suffix(".stopped").touch()


@contextmanager
def supervised(job: ChildJob) -> Iterator[Supervisor]:
    supervisor = Supervisor()
    supervisor.start([job])
    try:
        yield supervisor
    finally:
        supervisor.stop()


def test_a_child_that_is_asked_to_end_ends_well(tmp_path: Path) -> None:
    file = tmp_path / "state"
    with call("write_state", file) as child:
        wait_for(file.exists, what="the child")
        child.terminate()
        assert child.wait(60) == 0
    assert json.loads(file.read_text(encoding="utf-8")) == [child.pid, [], ["-c", "of the test"]]
    assert file.with_suffix(".stopped").exists()


def test_a_child_ends_well_when_its_parent_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "state"
    environ = {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", PARENT, str(file)], env=environ) as parent:
        wait_for(file.exists, what="the child")
        parent.kill()
    wait_for(file.with_suffix(".stopped").exists, what="the end of the child")


def test_a_child_does_not_mistake_a_module_of_the_folder_for_one_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pickle.py").write_text("raise ImportError", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with call("return_at_once") as child:
        assert child.wait(60) == 0


def return_at_once(stop: Event) -> None:
    assert not stop.is_set()


def test_a_file_that_is_passed_on_is_open_in_the_child(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        descriptor = file.fileno()
        with PythonCall("writer", "warning", f"{__name__}:write_to", [descriptor], files=[descriptor]) as child:
            assert child.wait(60) == 0
    assert (tmp_path / "out").read_bytes() == b"written by the child"


def write_to(descriptor: int, _stop: Event) -> None:
    os.write(descriptor, b"written by the child")


def test_a_program_runs_in_a_session_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "report.py").write_text(REPORT, encoding="utf-8")
    log = tmp_path / "log"
    environ = {"WORD": "given", "PYTHONIOENCODING": "utf-8:backslashreplace"}
    with Program((sys.executable, "-m", "report", "--one", "two"), environ, tmp_path, log) as program:
        assert program.wait(60) == 3
    report = json.loads(log.read_text(encoding="utf-8"))
    assert report["argv"] == ["--one", "two"]
    assert report["environ"]["WORD"] == "given"
    assert "HOME" not in report["environ"]
    assert Path(report["directory"]) == tmp_path
    assert report["leads"]
    assert report["blocked"] == []
    assert report["ugly"] == "\ud800"


def test_a_receiver_has_no_web_framework() -> None:
    program = (
        "import sys, celery_monitor.receiver.process; print(*({'starlette', 'uvicorn', 'jinja2'} & sys.modules.keys()))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60).split() == []


def test_what_serves_loads_neither_receiver_nor_web_server() -> None:
    program = (
        "import sys, celery_monitor.serve; print(*({'celery_monitor.receiver.ingest', 'uvicorn'} & sys.modules.keys()))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60).split() == []


def test_a_supervisor_has_loaded_next_to_nothing() -> None:
    program = "import sys, celery_monitor.supervise; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60).split()
    assert {"celery", "click", "email", "importlib.metadata", "msgspec", "sqlalchemy", "ssl"} & {*loaded} == set()


def test_a_web_process_loads_no_client_of_redis_before_it_needs_one() -> None:
    program = "import sys, celery_monitor.web.app; print('redis' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60) == "False\n"


def run_as_supervisor(file: Path) -> None:
    noting = (f"{__name__}:write_ending", (file.with_suffix(".ending"),))
    call = ChildCall.of("of the test", "info", f"{__name__}:write_state", [file], ended=noting)
    become_supervisor(SupervisorPlan("info", [call], "it \x1b runs"))


def write_ending(file: Path, ending: Ending, _stop: Event) -> None:
    file.write_text(ending.cause, encoding="utf-8")


def test_a_program_that_becomes_a_supervisor_replaces_a_killed_child_and_ends_on_a_signal(tmp_path: Path) -> None:
    file = tmp_path / "state"
    code = "import sys; from pathlib import Path; from tests.test_supervise import run_as_supervisor as run"
    command = [sys.executable, "-c", f"{code}; run(Path(sys.argv[1]))", str(file)]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "it \\x1b runs\n"
        wait_for(file.exists, what="the child")
        first = json.loads(file.read_text(encoding="utf-8"))[0]
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: json.loads(file.read_text(encoding="utf-8"))[0] != first, what="the next child")
        wait_for(lambda: file.with_suffix(".ending").exists(), what="the note of its end")
        program.terminate()
        assert program.wait(60) == 0
    assert file.with_suffix(".stopped").exists()
    assert file.with_suffix(".ending").read_text(encoding="utf-8") == "SIGKILL"


def fail(stop: Event) -> None:
    raise ValueError("redis://:s3cret@h cannot be")


def fail_as_expected(stop: Event) -> None:
    os.write(1, b"standard output is not for this")
    raise StoreUnavailable("no space left in postgresql://:s3cret@h")


def exit_at_once(stop: Event) -> None:
    os._exit(7)


def kill_itself(stop: Event) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("function", "cause"),
    [
        ("fail", "ValueError: redis://**@h cannot be"),
        ("fail_as_expected", "no space left in postgresql://**@h"),
        ("exit_at_once", "exit code 7"),
        ("kill_itself", "SIGKILL"),
    ],
)
def test_a_child_is_restarted_and_its_end_reported_with_the_cause(function: str, cause: str) -> None:
    endings: list[Ending] = []
    with supervised(ChildJob("failing", partial(call, function), ended=endings.append)) as supervisor:
        while len(endings) < 2:
            supervisor.restart_ended()
    assert [(each.cause, each.failures) for each in endings] == [(cause, 1), (cause, 2)]
    assert endings[0].since == endings[1].since


def test_a_killed_child_is_replaced(tmp_path: Path) -> None:
    started: list[ChildProcess] = []

    def start() -> ChildProcess:
        started.append(call("write_state", tmp_path / str(len(started))))
        return started[-1]

    with supervised(ChildJob("state", start)) as supervisor:
        wait_for((tmp_path / "0").exists, what="the first child")
        os.kill(started[0].pid, signal.SIGKILL)
        while len(started) == 1:
            supervisor.restart_ended()
        wait_for((tmp_path / "1").exists, what="the second child")
        assert started[1].poll() is None
    assert started[1].returncode == 0


def test_log_times_are_utc_whatever_time_zone_an_application_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("any", logging.INFO, "", 0, "text", (), None)
    record.created, record.msecs = 1_796_127_406.0, 25.0
    monkeypatch.setenv("TZ", "America/Chicago")
    time.tzset()
    try:
        assert MaskingFormatter("%(asctime)s").format(record) == "2026-12-01 12:16:46,025Z"
    finally:
        monkeypatch.undo()
        time.tzset()
