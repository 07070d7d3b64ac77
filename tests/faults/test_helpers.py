"""A helper that keeps failing is a fact about health: on every page, in the API and in doctor, until it works again."""

import json
import os
import re
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import redis

from tests.faults.dashboard import Dashboard, serving
from tests.servers import running_redis
from tests.test_cli import call, members
from tests.workers import running_worker, wait_for

LISTENING = ["+psubscribe", "+subscribe", "+ping", "+client", "+info", "+select", "+auth"]


def helpers(dashboard: Dashboard) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in dashboard.health()["helpers"]}


def recovered(dashboard: Dashboard) -> None:
    try:
        wait_for(lambda: not helpers(dashboard), what="that nothing fails any more")
    except TimeoutError as error:
        raise AssertionError(f"{error}: {helpers(dashboard)}") from None


def socket_processes(group: int) -> list[int]:
    """The processes that read a socket for a receiver of this group."""
    return [pid for pid in members(group) if b"buffer.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def findings(broker_url: str, dashboard: Dashboard, directory: Path) -> list[str]:
    """What doctor says of the receiver."""
    database = f"sqlite:///{dashboard.database}"
    done = call("doctor", "--json", "--broker", f"shop={broker_url}", "--database", database, directory=directory)
    return [each["what"] for each in json.loads(done.stdout)["findings"] if each["check"] == "receiver"]


def test_what_keeps_failing_is_named_everywhere_until_it_works_again(tmp_path: Path) -> None:
    with running_redis(tmp_path) as server, closing(redis.Redis(port=server.port)) as admin:
        admin.acl_setuser("eve", enabled=True, passwords=["+w4tch"], channels=["*"], commands=LISTENING)
        url = f"redis://eve:w4tch@127.0.0.1:{server.port}/0"
        with serving(url, tmp_path) as dashboard:
            # A user that may only listen: the events come, and no worker can be asked.
            dashboard.says("The sampler keeps failing", "Failing since", "task events are not turned on")
            sampler = helpers(dashboard)["sampler"]
            assert "The user lacks permissions" in sampler["error"]
            assert sampler["failures"] >= 2
            assert "w4tch" not in json.dumps(sampler)
            assert any("The sampler keeps failing" in each for each in findings(url, dashboard, tmp_path))

            with closing(sqlite3.connect(dashboard.database, timeout=60)) as record:
                kept = record.execute("SELECT sql FROM sqlite_master WHERE name = 'message'").fetchall()
                record.execute("DROP TABLE message")
            dashboard.says("The retention keeps failing", "the database grows", path="/queues")
            assert "no such table" in helpers(dashboard)["retention"]["error"]

            with closing(sqlite3.connect(dashboard.database, timeout=60)) as record:
                record.execute(kept[0][0])
            admin.acl_setuser("eve", enabled=True, keys=["*"], channels=["*"], categories=["+@all"])
            recovered(dashboard)
            dashboard.no_longer_says("keeps failing")

            # The process that empties the socket in a burst is killed whenever there is one.
            group = dashboard.process.pid
            for _ in range(2):
                wait_for(dashboard.connected, what="the connection")
                admin.publish("/0.celeryev/worker.heartbeat", "x" * 1_000_000)
                (pid,) = wait_for(lambda: socket_processes(group), what="the process that reads the socket")
                os.kill(pid, signal.SIGKILL)
                wait_for(lambda pid=pid: pid not in socket_processes(group), what="its end")
            wait_for(lambda: "socket process" in helpers(dashboard), what="the socket process to be named")
            assert "ended unexpectedly (SIGKILL)" in helpers(dashboard)["socket process"]["error"]
            dashboard.says("The socket process keeps failing", "A thread reads")
            with running_worker(f"redis://127.0.0.1:{server.port}/0", pool="solo", concurrency=1) as worker:
                dashboard.wait_for_state(worker.send("add", 20, 22), "SUCCESS")
            assert socket_processes(group) == []


def test_a_receiver_whose_process_keeps_ending_is_said_with_its_error(redis_url: str, tmp_path: Path) -> None:
    with serving(redis_url, tmp_path) as dashboard:
        for _ in range(3):
            wait_for(dashboard.connected, what="the connection")
            pid = dashboard.kill("receiver")
            wait_for(lambda pid=pid: dashboard.pid("receiver") != pid, what="the next process")
        found = wait_for(lambda: helpers(dashboard).get("receiver"), what="the receiver to be named")
        assert found["error"] == "SIGKILL"
        assert found["failures"] >= 2
        dashboard.says("The receiver exited", "times in a row: SIGKILL.", "It is restarted each time", path="/workers")
        said = findings(redis_url, dashboard, tmp_path)
        assert any(
            re.match(r"The receiver exited \d times in a row: SIGKILL\. Failing since 2.* UTC\.$", each)
            for each in said
        )
