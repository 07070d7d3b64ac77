"""The command line as a stranger meets it: as a program of its own."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from celery_monitor.cli import application_name
from celery_monitor.settings import SETTINGS
from tests.workers import wait_for

ROOT = Path(__file__).parent.parent
ANSWER_SECONDS = 60


def environ(**more: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CELERY_MONITOR_")}
    return ours | {"PYTHONPATH": str(ROOT)} | more


def call(*arguments: str, directory: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celery_monitor", *arguments]
    return subprocess.run(
        command, cwd=directory, env=environ(**more), capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def running(
    command: Sequence[str], directory: Path, python: Path | str = sys.executable, **more: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program that announces its address, and that address. It has a process group of its own."""
    program = subprocess.Popen(
        [str(python), "-m", *command],
        cwd=directory,
        env=environ(**more),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stdout is not None
    try:
        lines = (line for line in program.stdout if "http://" in line)
        yield program, next(word for word in next(lines).split() if word.startswith("http://"))
    finally:
        program.send_signal(signal.SIGTERM)
        program.wait(ANSWER_SECONDS)
        program.stdout.close()


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def members(group: int) -> list[int]:
    """Processes of a group, zombies apart."""
    listing = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return [int(pid) for pid, pgid, state in rows if int(pgid) == group and not state.startswith("Z")]


def await_end(group: int) -> None:
    wait_for(lambda: not members(group), ANSWER_SECONDS, f"the end of process group {group}")


def test_a_worker_that_looks_for_commands_loads_no_dashboard(tmp_path: Path) -> None:
    names = (
        "celery.bin.celery",
        "celery_monitor.cli",
        "celery_monitor.web",
        "celery_monitor.store",
        "sqlalchemy",
        "starlette",
        "uvicorn",
    )
    program = f"import sys, celery.bin.celery; print(*(each for each in {names} if each in sys.modules))"
    command = [sys.executable, "-c", program]
    loaded = subprocess.check_output(command, cwd=tmp_path, env=environ(), text=True, timeout=60).split()
    assert loaded == ["celery.bin.celery", "celery_monitor.cli"]


@pytest.mark.parametrize("command", ["serve", "receive", "web"])
def test_help_names_every_setting(command: str, tmp_path: Path) -> None:
    text = call(command, "--help", directory=tmp_path).stdout
    for name in SETTINGS:
        assert f"--{name.replace('_', '-')}" in text
    assert "CELERY_MONITOR_" in text
    assert "--config" in text


def test_help_shows_the_way_in(tmp_path: Path) -> None:
    text = call("--help", directory=tmp_path).stdout
    assert "celery-monitor demo" in text
    assert "celery-monitor serve --broker redis://" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve",), "give --broker redis://"),
        (("serve", "--brokr", "redis://x"), "there is no option --brokr; did you mean --broker?"),
        (("serve", "--broker", "localhost"), "broker: default: not a URL"),
        (("web", "--port", "http"), "port: 'http' is not an integer"),
        (("web", "--port", "70000"), "choose a --port from 1 to 65535"),
        (("serve", "--broker", "redis://127.0.0.1:1/0", "--host", "0.0.0.0"), "users add"),
        (("serve", "-A", "no.such.app"), "no.such.app"),
        (("web", "--config", "nowhere.toml"), "cannot read nowhere.toml"),
        (("receive", "--broker", "redis://127.0.0.1:1", "--database", "sqlite:////nowhere/at/all.db"), "nowhere"),
        (("demo", "--rate", "fast"), "--rate"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = call(*arguments, directory=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_variable_is_an_error(tmp_path: Path) -> None:
    done = call("web", directory=tmp_path, CELERY_MONITOR_PROT="7000")
    assert done.returncode == 2
    assert "there is no setting 'prot'; did you mean port?" in done.stderr


@pytest.mark.parametrize("command", [("serve", "--broker", "redis://127.0.0.1:1/0"), ("web",), ("users", "list")])
def test_a_record_of_a_newer_version_is_refused_and_kept(command: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "celery-monitor.db"
    call("users", "list", directory=tmp_path)
    with closing(sqlite3.connect(file, isolation_level=None)) as record:
        record.execute("UPDATE alembic_version SET version_num = '9999'")
        tables = record.execute("SELECT sql FROM sqlite_master").fetchall()
    done = call(*command, directory=tmp_path)
    assert done.returncode == 2
    assert "a newer version of celery-monitor has changed its tables (to 9999; this version knows" in done.stderr
    assert "install that version, or use another database" in done.stderr
    with closing(sqlite3.connect(file)) as record:
        assert record.execute("SELECT sql FROM sqlite_master").fetchall() == tables


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = call("web", "--port", str(port), directory=tmp_path)
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr


def test_serve_answers_and_sigterm_ends_all_of_it(redis_url: str, tmp_path: Path) -> None:
    arguments = ("celery_monitor", "serve", "--broker", f"shop={redis_url}", "--port", "0", "--node-id", "test-cli")
    with running(arguments, tmp_path) as (program, address):
        assert fetch(f"{address}healthcheck") == "OK"
        assert '"cluster":"shop"' in fetch(f"{address}api/v1/health")
        assert len(members(program.pid)) >= 3  # itself, the receiver, the web process
    assert program.returncode == 0
    await_end(program.pid)
    left = {path.name.removesuffix("-wal").removesuffix("-shm") for path in tmp_path.iterdir()}
    assert left == {"celery-monitor.db"}


def test_a_dead_web_process_is_started_again(redis_url: str, tmp_path: Path) -> None:
    arguments = ("celery_monitor", "serve", "--broker", redis_url, "--port", "0")
    with running(arguments, tmp_path) as (program, address):
        for pid in set(members(program.pid)) - {program.pid}:
            os.kill(pid, signal.SIGKILL)
        assert fetch_patiently(f"{address}healthcheck") == "OK"


def fetch_patiently(url: str) -> str:
    def answer() -> str:
        with suppress(OSError):
            return fetch(url)
        return ""

    return str(wait_for(answer, ANSWER_SECONDS, f"an answer of {url}"))


def test_children_end_when_the_parent_is_killed(redis_url: str, tmp_path: Path) -> None:
    with running(("celery_monitor", "serve", "--broker", redis_url, "--port", "0"), tmp_path) as (program, _):
        program.kill()
        program.wait(ANSWER_SECONDS)
        await_end(program.pid)


@pytest.mark.parametrize(
    ("arguments", "variables", "name"),
    [
        (("celery", "-A", "proj", "monitor"), {}, "proj"),
        (("celery", "-Aproj.main:app", "monitor"), {"APP": "other"}, "proj.main:app"),
        (("celery", "--app", "proj", "monitor"), {}, "proj"),
        (("celery", "--app=proj", "monitor"), {}, "proj"),
        (("celery", "monitor"), {"APP": "proj"}, "proj"),
        (("celery", "monitor"), {}, None),
    ],
)
def test_the_applications_name_is_found(
    arguments: tuple[str, ...], variables: dict[str, str], name: str | None
) -> None:
    assert application_name(arguments, variables) == name


def command_lines(process: subprocess.Popen[str]) -> str:
    """Of a program and of all that it started, as every user of this machine can read them."""
    lines = subprocess.run(
        ["ps", "-o", "args=", "--ppid", str(process.pid), "-p", str(process.pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    return lines.stdout


def test_no_secret_of_an_option_stands_in_the_list_of_processes(redis_url: str, tmp_path: Path) -> None:
    secret = "s3cret-of-ada"
    options = ("--broker", redis_url, "--port", "0", "--basic-auth", f"ada:admin:{secret}", "--secret-key", secret)
    with running(["celery_monitor", "serve", *options], tmp_path) as (process, url):
        assert len(command_lines(process).splitlines()) >= 3
        assert secret not in command_lines(process)
        header = {"Authorization": f"Basic {b64encode(f'ada:{secret}'.encode()).decode()}"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=header), timeout=60) as answer:
            assert answer.status == 200


def test_users_and_tokens_are_managed_from_the_command_line(tmp_path: Path) -> None:
    def run(*arguments: str, given: str = "") -> str:
        command = [sys.executable, "-m", "celery_monitor", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environ(), input=given, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout if done.returncode == 0 else f"{done.returncode} {done.stderr}"

    assert run("users", "add", "ada", "--password-stdin", given="l0ng enough\n") == "Added ada as admin.\n"
    assert run("users", "add", "ned", "--role", "operator", "--no-password") == "Added ned as operator.\n"
    assert run("users", "scope", "ned", "queue:a,b") == "ned is operator of (queue:a OR queue:b).\n"
    assert run("users", "scope", "ned", "a").startswith("2 Error: a scope has conditions on cluster, queue, name alone")
    assert run("users", "list") == "ada  admin\nned  operator of (queue:a OR queue:b)\n"
    assert run("users", "scope", "ned", "") == "ned is operator of everything.\n"
    assert run("users", "disable", "ned").startswith("Disabled ned")
    assert run("users", "list") == "ada  admin\nned  operator  disabled\n"
    assert "Missing option '--role'" in run("users", "role", "ned")  # it must not make anybody a viewer unasked
    assert run("users", "remove", "ada") == "2 Error: ada is the only admin; make another user admin first.\n"
    assert run("users", "password", "ada", "--password-stdin", given="short\n").startswith("2 Error: A password must")
    said, secret = run("tokens", "add", "ci", "--role", "metrics", "--days", "7").splitlines()
    assert (said, secret[:4]) == ("Created the API token 'ci'.", "cmt_")
    assert run("tokens", "list").startswith("ci  metrics  expires 20")
    assert run("tokens", "revoke", "ci") == "Revoked the API token 'ci'.\n"
    assert run("tokens", "revoke", "ci") == "2 Error: There is no API token 'ci'.\n"
