"""What is no event, sent where events are sent: counted and said, and the good ones among it are stored."""

import json
import time
from pathlib import Path
from typing import Any

from tests.faults.dashboard import serving
from tests.receiver.traffic import publisher
from tests.workers import running_worker, wait_for

LARGE = 5 * 1024 * 1024


def event(task_id: str, **fields: Any) -> dict[str, Any]:
    given = {"type": "task-succeeded", "uuid": task_id, "hostname": "worker7@shop", "timestamp": time.time(), "pid": 7}
    return {**given, "result": "'paid'", "runtime": 0.25, "clock": 12, "utcoffset": -7, **fields}


def test_malformed_events_are_counted_and_the_good_ones_stored(broker_url: str, tmp_path: Path) -> None:
    malformed = [
        b"{not json",
        b"",
        b"\xff\xfe\x00",
        b"42",
        b'"text"',
        json.dumps({"type": "task-succeeded", "hostname": "worker7@shop", "timestamp": time.time()}).encode(),
        json.dumps(event("no-time", timestamp="yesterday")).encode(),
        json.dumps(event("nan-time", timestamp=float("nan"))).encode(),
        json.dumps({"uuid": "no-type", "hostname": "worker7@shop", "timestamp": time.time()}).encode(),
    ]
    mixed: list[object] = [
        event("good-1"),
        {"type": 5},
        event("good-2", runtime=float("nan")),
        None,
        [],
        event("good-3", pid="x"),
    ]
    unknown = [event("not-known", type="task-invented"), event("not-known", type="shop-opened")]
    large = [event("good-4", result="x" * LARGE), event("good-5", type="task-failed", traceback="\ud800" * 1000)]
    with serving(broker_url, tmp_path) as dashboard, running_worker(broker_url) as worker:
        wait_for(dashboard.connected, what="the connection")
        with publisher(broker_url) as publish:
            for body in (*malformed, b"x" * LARGE):
                publish.send("task.succeeded", body)
            publish.send("task.multi", json.dumps(mixed))
            for each in (*unknown, *large):
                publish.send("task.other", json.dumps(each))
        for number in range(1, 5):
            task = dashboard.wait_for_state(f"good-{number}", "SUCCESS")
            assert task["worker"] == "worker7@shop"
        assert dashboard.wait_for_state("good-5", "FAILURE")["traceback"].startswith("\ufffd")
        assert dashboard.task("good-2")["runtime"] is None  # type: ignore[index]
        assert dashboard.task("good-4")["result"].endswith("…")  # type: ignore[index]
        health = dashboard.health()
        assert (health["malformed_total"], health["unknown_total"]) == (len(malformed) + 1 + 3, len(unknown))
        assert (health["connected"], health["dropped_total"]) == (True, 0)
        dashboard.says("13 messages were not valid events")
        assert "were not events" in dashboard.log
        dashboard.wait_for_state(worker.send("add", 2, 3), "SUCCESS")
        assert dashboard.unexpected() == []
