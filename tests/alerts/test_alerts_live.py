"""Each kind of rule fires and resolves on real workers, from the cause to what a webhook and Alertmanager get.

The log has the seconds: pytest -n 0 -o log_cli=true -o log_cli_level=INFO
"""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from uuid import uuid4

import pytest
import redis
from celery import chain

from celery_monitor.control.perform import Controller
from celery_monitor.control.retry import RetryTask
from celery_monitor.core.alerts.kinds import GIB, KINDS
from celery_monitor.core.filters.parser import parse
from celery_monitor.records.task import TaskState
from celery_monitor.records.user import Actor, Role
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.rollups.failures import UNRESOLVED, read_failure_groups
from celery_monitor.store.tasks.page import count_tasks
from tests.alerts.live import Live, Story, running
from tests.apps.basic import BROKER_VARIABLE, CONFIG_VARIABLE
from tests.faults.receivers import CLUSTER
from tests.workers import ROOT, wait_for

Told = Generator[str, None, None]
ORPHAN = f"orphan-{uuid4().hex[:8]}"  # a queue that nobody consumes


def new_failure(live: Live) -> Told:
    live.rule("new failure")
    live.worker.send("fail", "no stock")
    yield "New: ValueError in basic.fail"
    live.resolve_failures()


def regressed_failure(live: Live) -> Told:
    live.rule("regressed failure")
    live.worker.send("fail", "no cash")
    wait_for(lambda: read_failure_groups(live.store, since=0.0, states=UNRESOLVED), what="the group")
    live.resolve_failures()
    live.worker.send("fail", "no cash")
    yield "Back again: ValueError in basic.fail"
    live.resolve_failures()


def many_failures(live: Live) -> Told:
    live.rule("many failures", bound=7.0)
    for _ in range(8):
        live.worker.send("fail", "no time")
    yield "failures in 15 min"
    live.resolve_failures()


def failure_share(live: Live) -> Told:
    live.rule("failure share", bound=0.5, window=60.0, scope="name:basic.add")
    live.run("add", 40, 1, "a text")
    yield "runs failed in 1 min"
    live.run("add", 100, 1, 2)


def slow_wait(live: Live) -> Told:
    live.rule("slow wait", bound=2.0, scope="name:basic.echo")
    for _ in range(2):
        live.worker.send("sleep", 4)
    for _ in range(20):
        live.worker.send("echo")
    yield "basic.echo: p95 wait is"
    live.run("echo", 440)


def slow_run(live: Live) -> Told:
    live.rule("slow run", bound=0.2, window=60.0, scope="name:basic.sleep")
    live.run("sleep", 20, 0.3)
    yield "basic.sleep: p95 run time is"
    live.run("sleep", 440, 0)


def no_success(live: Live) -> Told:
    live.rule("no success", window=60.0, scope="name:basic.count_down")
    yield "basic.count_down has not succeeded for"
    live.run("count_down", 1, 0)


def _send_to_orphan(live: Live, count: int) -> None:
    for number in range(count):
        live.worker.send("add", number, 1, queue=ORPHAN)


def _purge(live: Live, queue: str = ORPHAN) -> None:
    with live.worker.app.connection_for_write() as connection:
        connection.default_channel.queue_purge(queue)


def queue_depth(live: Live) -> Told:
    live.rule("queue depth", bound=5.0, scope=f"queue:{ORPHAN}")
    _send_to_orphan(live, 9)
    yield f"{ORPHAN} has"
    _purge(live)


def queue_age(live: Live) -> Told:
    live.rule("queue age", bound=2.0, scope=f"queue:{ORPHAN}")
    _send_to_orphan(live, 3)
    yield f"{ORPHAN}: the oldest message has waited for"
    _purge(live)


def growing_queue(live: Live) -> Told:
    """A queue that nobody consumes is another alert, so a worker is too slow here."""
    with live.working(concurrency=1) as worker:
        live.rule("growing queue", scope=f"queue:{worker.queue}")
        over = threading.Event()

        def grow() -> None:
            while not over.wait(0.3):
                for _ in range(10):
                    worker.send("sleep", 0.2)

        thread = threading.Thread(target=grow)
        thread.start()
        try:
            yield f"{worker.queue} is growing"
        finally:
            over.set()
            thread.join()
        _purge(live, worker.queue)
        yield from _wait()


def queue_without_consumer(live: Live) -> Told:
    live.rule("queue without consumer", scope=f"queue:{ORPHAN}")
    _send_to_orphan(live, 9)
    yield f"{ORPHAN} has 9 messages and no consumer"
    _purge(live)


def no_worker(live: Live) -> Told:
    live.rule("no worker")
    live.worker.kill()
    yield "No worker is up. Tasks wait until one starts."
    assert live.worker.process.poll() is None  # another one


def silent_worker(live: Live) -> Told:
    live.rule("silent worker")
    with live.working(concurrency=1) as worker:
        worker.kill()
        yield worker.hostname
        with live.working(concurrency=1, hostname=worker.hostname):
            yield from _wait()


def _wait() -> Told:
    """Keeps what a story has started until the alert is over."""
    yield ""


def stuck_worker(live: Live) -> Told:
    live.rule("stuck worker")
    free, held = live.folder / "free", live.folder / "held"
    free.touch()
    with live.working(concurrency=1) as worker:
        for _ in range(6):
            worker.send("hold", str(free))
        worker.send("hold", str(held))
        yield f"{worker.hostname} may be stuck: its only task has been running for"
        held.touch()
        yield from _wait()


def restarting_worker(live: Live) -> Told:
    live.rule("restarting worker", bound=1.0, window=60.0)
    with live.working(concurrency=1) as worker:
        pass
    with live.working(concurrency=1, hostname=worker.hostname):
        pass
    with live.working(concurrency=1, hostname=worker.hostname):
        yield f"{worker.hostname} started"


@contextmanager
def _beat(live: Live, config: dict[str, object]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "celery", "-A", "tests.apps.basic", "beat", "--pidfile=", "--max-interval", "1"]
    process = subprocess.Popen(
        [*command, "-s", str(live.folder / "schedule")],
        cwd=ROOT,
        env={**os.environ, BROKER_VARIABLE: live.broker, CONFIG_VARIABLE: json.dumps(config)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def beat_missed(live: Live) -> Told:
    live.rule("beat missed")
    options = {"queue": live.worker.queue}
    entry = {"task": "basic.add", "schedule": 1.0, "args": [20, 3], "options": options}
    config: dict[str, object] = {"beat_schedule": {"tick": entry}}
    with live.working(concurrency=1, config=config):
        with _beat(live, config) as beat:
            tick = parse("name:basic.add args:20", time.time())
            wait_for(lambda: count_tasks(live.store, tick).value, what="a run of the entry")
            beat.kill()
            yield ""
        with _beat(live, config):
            yield from _wait()


def stuck_workflow(live: Live) -> Told:
    live.rule("stuck workflow")
    app, worker = live.worker.app, live.worker
    first = app.signature("basic.add", (1, 2)).set(queue=worker.queue)
    chain(first, app.signature("basic.add", (3,)).set(queue=ORPHAN)).apply_async()
    yield "A workflow is stalled for"
    app.control.add_consumer(ORPHAN, destination=[worker.hostname])
    yield from _wait()
    app.control.cancel_consumer(ORPHAN, destination=[worker.hostname])


def tasks_lost(live: Live) -> Told:
    live.rule("tasks lost", scope="name:basic.hold")
    with live.working(concurrency=1) as worker:
        task_id = worker.send("hold", f"{__file__}.released")
        wait_for(lambda: live.state(task_id) is TaskState.STARTED, what="the start of the task")
        worker.kill()
        yield "1 task is lost"
    settings = Settings(broker=(Broker(CLUSTER, live.broker),))
    command = RetryTask(
        cluster=CLUSTER, id=task_id, args=json.dumps([__file__]), kwargs="{}", queue=live.worker.queue, confirm=True
    )
    Controller(live.store, settings).perform(Actor("olga", Role.OPERATOR), command)


def receiver_behind(live: Live) -> Told:
    """Another program holds the database for a while; the alert is stored once it has let go."""
    live.rule("receiver behind", bound=3.0)
    with closing(sqlite3.connect(str(live.store.engine.url.database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        time.sleep(15)
        other.execute("ROLLBACK")
    yield "The receiver is"


def disk(live: Live) -> Told:
    file, free = live.folder / "large", shutil.disk_usage(live.folder).free
    live.rule("disk", bound=(free - GIB) / GIB)
    with file.open("wb") as opened:
        os.posix_fallocate(opened.fileno(), 0, 2 * GIB)
    try:
        yield "GiB free on the disk of the record."
    finally:
        file.unlink()


def gap(live: Live) -> Told:
    """The last one: for a minute after a gap nobody else is accused."""
    live.rule("gap", window=60.0)
    with closing(redis.Redis.from_url(live.broker)) as client:
        client.client_kill_filter(_type="pubsub")
    yield "miss"  # events are being missed, or may be missing


STORIES: tuple[Story, ...] = (
    new_failure, regressed_failure, many_failures, failure_share, slow_run, slow_wait, no_success,
    queue_depth, queue_age, growing_queue, queue_without_consumer,
    no_worker, silent_worker, stuck_worker, restarting_worker, beat_missed, stuck_workflow, tasks_lost,
    receiver_behind, disk, gap,
)  # fmt: skip
OF_THE_BROKER = (queue_depth, queue_age, growing_queue, queue_without_consumer, no_worker)
FAST = (new_failure, queue_without_consumer, no_worker)


def _name(story: Story) -> str:
    return story.__name__


def _marked(*stories: Story) -> list[object]:
    return [pytest.param(each, marks=() if each in FAST else pytest.mark.slow, id=_name(each)) for each in stories]


@pytest.fixture(scope="module")
def on_redis(redis_service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with closing(redis.Redis.from_url(redis_service)) as client:
        client.flushdb()
    with running(redis_service, tmp_path_factory.mktemp("redis")) as live:
        yield live


@pytest.fixture(scope="module")
def on_rabbitmq(rabbitmq_service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running(rabbitmq_service, tmp_path_factory.mktemp("rabbitmq")) as live:
        yield live
        with live.worker.app.connection_for_write() as connection:
            connection.default_channel.queue_delete(ORPHAN)


@pytest.mark.parametrize("story", _marked(*STORIES))
def test_rule_fires_and_resolves(on_redis: Live, story: Story) -> None:
    on_redis.tell(story)


@pytest.mark.parametrize("story", _marked(*OF_THE_BROKER))
def test_rule_fires_and_resolves_on_rabbitmq(on_rabbitmq: Live, story: Story) -> None:
    on_rabbitmq.tell(story)


def test_every_kind_has_a_story() -> None:
    assert {_name(each).replace("_", " ") for each in STORIES} == set(KINDS)
