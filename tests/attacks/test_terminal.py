"""No control character of a broker reaches a terminal or a log, in whatever process it is printed."""

import subprocess
import sys
import unicodedata
from pathlib import Path

from celery_monitor.supervise import PythonCall
from tests.attacks.test_bad_rows import answering

EVIL = "evil\x1b[2J\x1b]0;owned\x07\x9b31m\u202egpj\r\n2026-12-01 00:00:00,000 INFO forged: all is well"


def controls(text: str) -> set[str]:
    """The characters of a text that a terminal acts on, but for the ends of lines."""
    return {each for each in text if unicodedata.category(each) in {"Cc", "Cf", "Zl", "Zp"}} - {"\n"}


def run_program(directory: Path, program: str) -> "subprocess.CompletedProcess[str]":
    (directory / "program.py").write_text(program, encoding="utf-8")
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=directory, capture_output=True, timeout=60, check=False)
    return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_log_lines_tracebacks_and_unexpected_errors_are_escaped(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        "import logging\n"
        "from celery_monitor.supervise import configure_logging\n"
        "configure_logging('info')\n"
        f"evil = {EVIL!r}\n"
        "logging.warning('no queue %s', evil)\n"
        "try: raise ValueError(evil)\n"
        "except ValueError: logging.exception('it failed')\n"
        "raise LookupError(evil)\n",
    )
    assert controls(done.stderr) == set()
    assert done.stderr.count("\\x1b[2J") == 3
    assert done.stderr.count("Traceback (most recent call last)") == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("2026-12-01 00:00:00,000 INFO forged")] == []


def test_the_error_that_ends_a_process_is_escaped() -> None:
    call = PythonCall("evil", "info", f"{__name__}:fail", (EVIL,))
    assert call.wait(60) == 1
    cause = call.cause()
    call.stdin.close()
    call.stdout.close()
    assert cause.startswith("ValueError: evil\\x1b[2J")
    assert controls(cause) == set()
    assert "\n" not in cause


def fail(text: str, _stop: object) -> None:
    raise ValueError(text)


def test_doctor_prints_no_control_character_of_a_worker(redis_url: str, tmp_path: Path) -> None:
    with answering(redis_url, "evil\x1b[2J\u202e@shop", {"task_send_sent_event": "\x1b[31m", "timezone": EVIL}):
        command = [sys.executable, "-m", "celery_monitor", "doctor", "--broker", redis_url]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert b"evil" in done.stdout
    assert controls(done.stdout.decode()) | controls(done.stderr.decode()) == set()


def test_errors_of_the_command_line_are_escaped(tmp_path: Path) -> None:
    for arguments in (["\x1b[31mserve"], ["serve", "--port", EVIL], ["serve", f"--{EVIL}"], ["serve", "--app", EVIL]):
        command = [sys.executable, "-m", "celery_monitor", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
        assert done.returncode == 2
        assert controls(done.stderr.decode()) == set()
        assert len(done.stderr.splitlines()) == 1
