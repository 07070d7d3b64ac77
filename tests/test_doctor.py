"""``celery-monitor doctor`` as a program, on real brokers; and that it leaves no trace."""

import json
import re
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import kombu
import psycopg
import pytest
import redis
from amqp import Connection

from celery_monitor.core.health.findings import failing_helpers
from celery_monitor.doctor import Report, lines
from celery_monitor.records.receiver import FailingHelper, ReceiverHealth
from celery_monitor.store.engine import open_store
from tests.receiver.sources.conftest import delete_queue
from tests.servers import running_redis
from tests.test_cli import call
from tests.workers import running_worker

DOCUMENT = Path(__file__).parent.parent / "docs" / "doctor.md"
SOURCES = ("core/health/checks.py", "core/health/findings.py", "doctor.py")
CAPTURE = {"*": {"Request": "celery_monitor_capture:Request"}}
WELL = {"task_send_sent_event": True, "worker_send_task_events": True, "task_annotations": CAPTURE}


def examined(broker_url: str, directory: Path, *options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and the findings by check."""
    done: subprocess.CompletedProcess[str] = call(
        "doctor", "--json", "--broker", f"shop={broker_url}", *options, directory=directory
    )
    assert done.stdout, done.stderr
    said = json.loads(done.stdout)
    assert said["healthy"] is (done.returncode == 0)
    return done.returncode, {each["check"]: each for each in said["findings"]}


def test_a_good_set_up_is_said_to_be_good(broker_url: str, tmp_path: Path) -> None:
    with running_worker(broker_url, config=WELL) as worker:
        code, found = examined(broker_url, tmp_path, "--node-id", f"test-{uuid4().hex[:8]}")
    unnamed = found.pop("result backend")
    assert (unnamed["level"], unnamed["what"][:15]) == ("note", "Not configured:")
    assert [each for each in found.values() if each["level"] != "ok"] == []
    assert code == 0
    assert worker.hostname in found["workers"]["what"]
    assert {"heartbeats", "clocks", "Celery", "sent events", "exact retries"} <= found.keys()
    assert list(tmp_path.iterdir()) == []


def test_a_worker_without_events_and_heartbeats_is_found(broker_url: str, tmp_path: Path) -> None:
    options = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    bare = {"task_send_sent_event": False}
    if broker_url.startswith("amqp"):  # a new broker, where nothing has sent an event
        with kombu.Connection(broker_url) as connection:
            connection.default_channel.exchange_delete("celeryev")
    with running_worker(broker_url, events=False, options=options, config=bare) as worker:
        code, found = examined(broker_url, tmp_path)
    assert code == 1
    assert found["heartbeats"]["level"] == "wrong"
    assert found["sent events"]["level"] == "wrong"
    assert worker.hostname in found["heartbeats"]["what"]
    assert found["task events"]["level"] == "unknown"
    assert found["exact retries"]["level"] == "note"


def test_an_abandoned_queue_of_events_is_found_and_left_alone(amqp_url: str, tmp_path: Path) -> None:
    name = f"test-{uuid4().hex[:8]}"
    parts = re.match(r"amqp://(\w+):(\w+)@([\w.:]+)/(.*)", amqp_url)
    assert parts
    user, password, host, vhost = parts.groups()
    with Connection(host, user, password, virtual_host=vhost) as connection:
        connection.channel().queue_declare(f"celeryev.{name}", durable=True, auto_delete=False)
    try:
        _, found = examined(amqp_url, tmp_path, "--node-id", name)
        assert found["event queues"]["what"] == f"celeryev.{name} has 0 messages and no consumer."
        with Connection(host, user, password, virtual_host=vhost) as connection:
            connection.channel().queue_declare(f"celeryev.{name}", passive=True)
    finally:
        delete_queue(f"celeryev.{name}")


def test_a_redis_that_throws_away_is_found_and_nothing_is_changed(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    options = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]
    options += ["--client-output-buffer-limit", "pubsub", "1mb", "1mb", "10"]
    with running_redis(tmp_path / "redis", *options) as server:
        code, found = examined(f"redis://127.0.0.1:{server.port}/3", tmp_path)
        with closing(redis.Redis(port=server.port, db=3)) as client:
            left: Any = client.scan_iter()
            assert [key for key in left if not key.startswith(b"_kombu")] == []
    assert code == 1
    assert "allkeys-lru" in found["memory of Redis"]["what"]
    assert "CONFIG SET" in found["bursts"]["fix"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--broker", "redis://127.0.0.1:1/0"), "Connection refused"),
        (("--broker", "redis://127.0.0.1:1/0", "--host", "0.0.0.0"), "users add"),
        (
            ("--broker", "redis://127.0.0.1:1/0", "--database", "sqlite:////nowhere/at/all.db"),
            "/nowhere/at does not",
        ),
        (("--broker", "redis://127.0.0.1:1/0", "--database", "postgresql://x@127.0.0.1:1/x"), "refused"),
    ],
)
def test_for_people_each_fault_has_a_line_and_a_fix(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = call("doctor", *arguments, directory=tmp_path)
    assert done.returncode == 1, done.stderr
    wrong = [line for line in done.stdout.splitlines() if line.startswith("  wrong  ")]
    assert any(words in line for line in wrong), done.stdout
    assert re.search(r"\d problems? found\.$", done.stdout.strip())
    assert list(tmp_path.iterdir()) == []


def test_a_record_is_looked_at_and_not_changed(redis_url: str, tmp_path: Path) -> None:
    file = tmp_path / "record.db"
    open_store(f"sqlite:///{file}").close()
    before = file.read_bytes()
    _, found = examined(redis_url, tmp_path, "--database", f"sqlite:///{file}")
    assert found["database"]["level"] == "ok"
    assert file.read_bytes() == before
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        _, found = examined(redis_url, tmp_path, "--database", f"sqlite:///{file}")
        other.execute("ROLLBACK")
    assert "locked" in found["database"]["what"]


def test_an_empty_schema_of_postgresql_stays_empty(redis_url: str, postgres_url: str, tmp_path: Path) -> None:
    _, found = examined(redis_url, tmp_path, "--database", postgres_url)
    assert found["database"]["level"] == "ok"
    assert found["version of the database"]["level"] == "ok"
    with psycopg.connect(postgres_url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()").fetchall()
    assert tables == []


def test_what_fails_within_the_receiver_is_said_with_its_time() -> None:
    helper = FailingHelper(name="schedules", error="no such table", since=1_780_000_000.4, failures=31)
    receiver = ReceiverHealth(cluster="shop", connected=True, updated_at=1_780_000_090.0, helpers=(helper,))
    report = Report("shop", "redis://h", list(failing_helpers(receiver, 1_780_000_091.0)))
    assert list(lines([report]))[1] == (
        "  wrong  receiver: The schedules keeps failing: no such table. Failing since 2026-05-28 20:26:40 UTC."
    )


def test_every_check_stands_in_its_document() -> None:
    package = Path(__file__).parent.parent / "monitor" / "celery_monitor"
    source = "".join((package / name).read_text() for name in SOURCES)
    checks = set(re.findall(r'Finding\(\s*"([^"]+)"', source))
    assert len(checks) > 10
    text = DOCUMENT.read_text(encoding="utf-8")
    assert {check for check in checks if f"| {check} |" not in text} == set()
