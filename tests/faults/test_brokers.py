"""Brokers that are not there yet, that go and come back: said everywhere, and work goes on."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

from tests.faults.dashboard import Dashboard, serving
from tests.receiver.sources.test_amqp import port_of, through
from tests.receiver.traffic import publisher
from tests.servers import free_port, proxy, running_rabbitmq, running_redis
from tests.workers import Worker, running_worker, wait_for

AWAY = "The broker cannot be reached"


def says_that_the_broker_is_away(dashboard: Dashboard, port: int) -> None:
    dashboard.says(AWAY, f"127.0.0.1:{port}")
    assert not dashboard.connected()
    assert f"127.0.0.1:{port}" in dashboard.health()["error"]
    assert f"127.0.0.1:{port}" in dashboard.log


def works(dashboard: Dashboard, worker: Worker) -> None:
    wait_for(dashboard.connected, what="the connection")
    dashboard.wait_for_state(worker.send("add", 2, 3), "SUCCESS")
    dashboard.no_longer_says(AWAY)
    assert dashboard.unexpected() == []


def test_a_dashboard_starts_before_redis_and_sees_it_restart(tmp_path: Path) -> None:
    port = free_port()
    url = f"redis://127.0.0.1:{port}/4"
    with serving(url, tmp_path) as dashboard:
        says_that_the_broker_is_away(dashboard, port)
        with running_redis(tmp_path, port=port) as first, running_worker(url) as worker:
            works(dashboard, worker)
            left = time.time()
            first.stop()
            says_that_the_broker_is_away(dashboard, port)
            dashboard.says("Events are being missed: no connection to the broker")
            with running_redis(tmp_path, port=port):
                works(dashboard, worker)
                dashboard.says("may be missing: no connection to the broker")
                gap = dashboard.health()["gaps"][-1]
                assert gap["began"] <= left < gap["ended"] < time.time()
                assert gap["dropped"] is None


def test_a_dashboard_starts_before_rabbitmq_and_loses_nothing_in_a_cut(amqp_url: str, tmp_path: Path) -> None:
    port = free_port()
    front = through(amqp_url, port)
    with running_worker(amqp_url) as worker, serving(front, tmp_path, direct_url=amqp_url) as dashboard:
        says_that_the_broker_is_away(dashboard, port)
        with proxy(port_of(amqp_url), port=port):
            works(dashboard, worker)
            gaps = dashboard.health()["gaps"]  # before its first connection the receiver had no queue
        ids = [worker.send("add", number, 3) for number in range(40)]
        says_that_the_broker_is_away(dashboard, port)
        ids += [worker.send("fail", f"no order {number}") for number in range(10)]
        with proxy(port_of(amqp_url), port=port):
            works(dashboard, worker)
            for each in ids:
                dashboard.wait_for_state(each, "FAILURE" if each in ids[40:] else "SUCCESS")
            assert dashboard.counts("succeeded", "failed", "unfinished") == {
                "succeeded": 42,
                "failed": 10,
                "unfinished": 0,
            }
            assert dashboard.health()["gaps"] == gaps


def test_rabbitmq_killed_with_events_in_the_queue_keeps_them_and_the_restart_is_a_gap(tmp_path: Path) -> None:
    with ExitStack() as stack:
        broker = stack.enter_context(running_rabbitmq(tmp_path))
        url = f"amqp://127.0.0.1:{broker.port}"
        worker = stack.enter_context(running_worker(url))
        dashboard = stack.enter_context(serving(url, tmp_path))
        works(dashboard, worker)
        receiver = dashboard.pid("receiver")
        os.kill(receiver, signal.SIGSTOP)
        ids = [worker.send("add", number, 3) for number in range(100)]
        wait_for(lambda: worker.log.count("succeeded in") == 101, what="the end of all tasks")
        inspect = worker.app.control.inspect([worker.hostname])
        wait_for(lambda: inspect.active() == {worker.hostname: []}, what="its last event")
        with publisher(url) as publish:
            publish.send_numbered(1, 1)  # once this one is confirmed, all before it are on disk
        wait_for(lambda: broker.has_saved("celeryev."), what="the members of the receiver's queue")
        killed = time.time()
        broker.kill()
        os.kill(receiver, signal.SIGCONT)
        says_that_the_broker_is_away(dashboard, broker.port)
        broker.start()
        wait_for(dashboard.connected, what="the connection")
        for each in ids:
            dashboard.wait_for_state(each, "SUCCESS")
        dashboard.says("may be missing: no connection to the broker")
        (gap,) = dashboard.health()["gaps"]
        assert gap["began"] < killed + 1 < gap["ended"]  # what came before it was stopped is read later
        wait_for(lambda: "Connected to amqp" in worker.log.rpartition("Connection refused")[2], what="the worker")
        works(dashboard, worker)
