"""Child processes of the dashboard: what they are when they start."""

import gc
import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from threading import Event

import pytest

from monitor.cli import RECEIVER
from monitor.cli import SHOP
from monitor.cli import WEB
from monitor.supervise import FORKS
from monitor.supervise import Ending
from monitor.supervise import Job
from monitor.supervise import Process
from monitor.supervise import Supervisor
from monitor.supervise import python_job
from monitor.supervise import run_module
from tests.workers import wait_for

SAY = """
import gc, json, os, signal, sys
print(json.dumps({
    "argv": sys.argv[1:], "environ": dict(os.environ), "directory": os.getcwd(), "leads": os.getpid() == os.getsid(0),
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())), "collects": gc.isenabled(), "ugly": "\\ud800",
}, ensure_ascii=False))
sys.exit(3)
"""


def write_main_module(file: Path, _stop: Event) -> None:
    file.write_text(str(getattr(sys.modules["__main__"], "__file__", "none")), encoding="utf-8")


def test_child_imports_what_it_runs_and_not_its_parents_main_module(tmp_path: Path) -> None:
    before = sys.modules["__main__"]
    process = python_job("modules", "warning", write_main_module, tmp_path / "main").start()
    process.join(60)
    assert (tmp_path / "main").read_text(encoding="utf-8") == "none"
    assert sys.modules["__main__"] is before


def write_state(file: Path, stop: Event) -> None:
    blocked = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    file.write_text(json.dumps([blocked, gc.isenabled(), os.getppid()]), encoding="utf-8")
    stop.wait()


def test_a_child_ends_well_when_all_are_told_to_end_and_collects_garbage(tmp_path: Path) -> None:
    file = tmp_path / "state"
    process = python_job("state", "warning", write_state, file).start()
    wait_for(lambda: file.exists() and file.read_text(encoding="utf-8"), 60, "the child")
    if FORKS:  # systemd tells every process of a service
        os.kill(json.loads(file.read_text(encoding="utf-8"))[2], signal.SIGTERM)
    process.terminate()
    process.join(60)
    assert process.exitcode == 0
    assert json.loads(file.read_text(encoding="utf-8"))[:2] == [[], True]


@pytest.mark.skipif(not FORKS, reason="children are not forked here")
def test_a_child_that_lost_what_it_was_forked_from_is_replaced_and_not_doubled(tmp_path: Path) -> None:
    file = tmp_path / "state"
    started: list[Process] = []

    def start() -> Process:
        started.append(python_job("state", "warning", write_state, file).start())
        return started[-1]

    supervisor = Supervisor()
    supervisor.start([Job("state", start)])
    try:
        wait_for(lambda: file.exists() and file.read_text(encoding="utf-8"), 60, "the child")
        os.kill(json.loads(file.read_text(encoding="utf-8"))[2], signal.SIGKILL)
        while len(started) == 1:
            supervisor.tend()
        wait_for(lambda: not Path(f"/proc/{started[0].pid}").exists(), 60, "the end of the first")
        assert started[1].exitcode is None
    finally:
        supervisor.stop()


def test_a_module_runs_as_a_program_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "say_it.py").write_text(SAY, encoding="utf-8")
    log = tmp_path / "log"
    environ = {"WORD": "given", "PYTHONPATH": str(tmp_path), "PYTHONIOENCODING": "utf-8:backslashreplace"}
    process = run_module(("say_it", "--one", "two"), environ, tmp_path, log)
    process.join(60)
    assert process.exitcode == 3
    said = json.loads(log.read_text(encoding="utf-8"))
    assert said["argv"] == ["--one", "two"]
    assert said["environ"]["WORD"] == "given"
    assert "HOME" not in said["environ"]
    assert Path(said["directory"]) == tmp_path
    assert said["leads"]
    assert said["collects"]
    assert said["blocked"] == []
    assert said["ugly"] == "\ud800"


def test_what_children_have_in_common_exists() -> None:
    assert [each for each in (*RECEIVER, *WEB, *SHOP) if find_spec(each) is None] == []


def test_a_receiver_has_no_web_framework() -> None:
    program = f"import sys, {', '.join(RECEIVER)}; print(*({{'starlette', 'uvicorn', 'jinja2'}} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60).split() == []


def fall(_stop: Event) -> None:
    raise ValueError("redis://:s3cret@h cannot be")


def test_a_child_says_by_which_error_it_ended_and_how_often() -> None:
    ended: list[Ending] = []
    supervisor = Supervisor()
    supervisor.start([python_job("fall", "warning", fall, ended=ended.append)])
    try:
        while len(ended) < 2:
            supervisor.tend()
    finally:
        supervisor.stop()
    assert [(each.cause, each.failures) for each in ended] == [
        ("ValueError: redis://**@h cannot be", n) for n in (1, 2)
    ]
    assert ended[0].since == ended[1].since
