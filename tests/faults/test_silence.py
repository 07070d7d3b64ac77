"""A network that drops everything without a word, and a database that is away for longer than there is room."""

import time
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from tests.faults.dashboard import serving
from tests.faults.test_databases import locked
from tests.receiver.sources.test_amqp import port_of, through
from tests.receiver.traffic import numbered, publisher, wait_until_read
from tests.servers import proxy
from tests.workers import running_worker, wait_for

AWAY = "The broker cannot be reached"
SENT = 4000


def between(broker_url: str, port: int) -> str:
    if broker_url.startswith("amqp"):
        return through(broker_url, port)
    return f"redis://127.0.0.1:{port}/{broker_url.rpartition('/')[2]}"


def test_a_network_that_swallows_everything_is_noticed_and_nothing_is_said_to_be_known(
    broker_url: str, tmp_path: Path
) -> None:
    port = port_of(broker_url) if broker_url.startswith("amqp") else urlsplit(broker_url).port or 6379
    with ExitStack() as stack:
        front = stack.enter_context(proxy(port))
        dashboard = stack.enter_context(serving(between(broker_url, front.port), tmp_path, direct_url=broker_url))
        worker = stack.enter_context(running_worker(broker_url))
        wait_for(dashboard.connected, what="the connection")
        dashboard.wait_for_state(worker.send("add", 1, 2), "SUCCESS")
        known = len(dashboard.health()["gaps"])
        silent = time.time()
        front.fall_silent()
        missed = [worker.send("add", number, 3) for number in range(20)]
        dashboard.says(AWAY)
        wait_for(lambda: worker.log.count("succeeded in") == 21, what="the end of all tasks")
        front.close()
        again = stack.enter_context(proxy(port, port=front.port))
        assert again.port == front.port
        wait_for(dashboard.connected, what="the connection")
        dashboard.wait_for_state(worker.send("add", 5, 6), "SUCCESS")
        if broker_url.startswith("amqp"):
            for each in missed:
                dashboard.wait_for_state(each, "SUCCESS")
            assert dashboard.counts("succeeded", "unfinished") == {"succeeded": 22, "unfinished": 0}
            assert len(dashboard.health()["gaps"]) == known
        else:
            gap = wait_for(lambda: (found := dashboard.health()["gaps"][-1])["ended"] and found, what="the gap's end")
            assert gap["began"] <= silent + 1  # from when anything was last heard, not from when it was noticed
            assert gap["ended"] > silent
            assert gap["dropped"] is None
            dashboard.says("may be missing: no connection to the broker")
        assert dashboard.unexpected() == []


def test_more_than_there_is_room_for_is_counted_and_shown_and_work_goes_on(redis_url: str, tmp_path: Path) -> None:
    kept = ("--keep-failed-days", "40000")  # the events are stamped long ago
    options = ("--spool-bytes", "200000", "--buffer-bytes", "100000", *kept)
    with serving(redis_url, tmp_path, *options) as dashboard, publisher(redis_url) as publish:
        wait_for(dashboard.connected, what="the connection")
        publish.send_numbered(1, 1)
        wait_for(lambda: dashboard.health()["events_total"] == 1, what="the first event")
        with locked(tmp_path / "record.db"):
            for number in range(2, SENT + 1):
                publish.send("task.received", numbered(number))
            wait_until_read(redis_url)
        wait_for(lambda: dashboard.health()["dropped_total"], what="the number of dropped events")
        publish.send_numbered(SENT + 1, SENT + 1)
        wait_for(lambda: dashboard.task(f"task-{SENT + 1}"), what="what came afterwards")
        health = dashboard.health()
        assert health["events_total"] + health["dropped_total"] == SENT + 1
        assert 0 < health["dropped_total"] < SENT
        dropped = [gap["dropped"] for gap in health["gaps"] if gap["dropped"]]
        assert sum(dropped) == health["dropped_total"]
        states = dashboard.counts("unfinished", "lost", "received", "pending", "succeeded")
        assert dashboard.counts("unfinished") == {"unfinished": health["events_total"]}, states
        dashboard.says("missing.")
        assert dashboard.unexpected() == []
