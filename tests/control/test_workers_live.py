"""Every command on workers against real ones on both brokers: what they answer, refuse, or do not say."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from celery_monitor.brokers.remote import Remote
from celery_monitor.control.inspect import pool_processes, queue_names
from celery_monitor.control.revoke import RevokeStamped
from celery_monitor.control.workers import (
    WORKER_COMMANDS,
    AddConsumer,
    Autoscale,
    CancelConsumer,
    DisableEvents,
    EnableEvents,
    GrowPool,
    RateLimit,
    RestartPool,
    ShrinkPool,
    ShutDownWorker,
    TimeLimit,
    WorkerCommand,
)
from celery_monitor.errors import ConfirmationRequired, Forbidden, InvalidInput
from celery_monitor.records.task import TaskState
from celery_monitor.records.user import Actor, Role
from celery_monitor.store.actions import read_actions
from celery_monitor.store.workers import change_workers, read_worker
from tests.control.conftest import Workers
from tests.control.watch import CLUSTER, Watch, watching
from tests.workers import Worker, running_worker, wait_for

ADMIN = Actor("root", Role.ADMIN)


@pytest.fixture
def watch(broker_url: str, tmp_path: Path) -> Iterator[Watch]:
    with watching(broker_url, tmp_path) as watch:
        yield watch


@pytest.fixture
def redis_watch(redis_url: str, tmp_path: Path) -> Iterator[Watch]:
    with watching(redis_url, tmp_path) as watch:
        yield watch


def url_of(watch: Watch) -> str:
    return watch.settings.broker[0].url


def queues_of(watch: Watch, worker: Worker) -> list[str]:
    reply = Remote(watch.settings.broker[0], watch.settings).ask("active_queues", {}, [worker.hostname], 60.0)
    return queue_names(reply[worker.hostname].ok) or []


def processes_of(watch: Watch, worker: Worker) -> int | None:
    reply = Remote(watch.settings.broker[0], watch.settings).ask("stats", {}, [worker.hostname], 60.0)
    return pool_processes(reply[worker.hostname].ok)


def outcome_of(watch: Watch, command: WorkerCommand) -> tuple[str, str]:
    """Outcome and message, which are also what is recorded."""
    performed = watch.perform(command, ADMIN)
    action = watch.last_action()
    assert (action.action, action.outcome, action.message) == (command.action, performed.outcome, performed.message)
    return performed.outcome, performed.message


def test_pool_grows_and_shrinks_and_never_to_nothing(watch: Watch) -> None:
    with running_worker(url_of(watch), concurrency=1) as worker:
        watch.wait_for_worker(worker)
        to: dict[str, Any] = {"cluster": CLUSTER, "workers": (worker.hostname,)}
        outcome, message = outcome_of(watch, GrowPool(**to, number=2))
        assert outcome == "done"
        assert "Answer: pool will grow. From 1 to 3 processes" in message
        assert read_worker(watch.store, worker.hostname).pool_size == 3
        wait_for(lambda: processes_of(watch, worker) == 3, what="three processes")
        outcome, message = outcome_of(watch, ShrinkPool(**to, number=1))
        assert outcome == "done"
        assert "Answer: pool will shrink. From 3 to 2 processes" in message
        wait_for(lambda: processes_of(watch, worker) == 2, what="two processes")
        outcome, message = outcome_of(watch, ShrinkPool(**to, number=2))
        assert outcome == "failed"
        assert "would leave none. Nothing was sent" in message
        assert watch.wait_for(worker.send("add", 2, 3), TaskState.SUCCESS)


def test_busy_processes_are_not_taken_away(redis_watch: Watch, tmp_path: Path) -> None:
    release = tmp_path / "release"
    with running_worker(url_of(redis_watch), concurrency=2) as worker:
        redis_watch.wait_for_worker(worker)
        for _ in range(2):
            redis_watch.wait_for(worker.send("hold", str(release)), TaskState.STARTED)
        command = ShrinkPool(cluster=CLUSTER, workers=(worker.hostname,), number=1)
        outcome, message = outcome_of(redis_watch, command)
        assert outcome == "failed"
        assert "All pool processes are busy, so none was removed." in message
        release.touch()


def test_pool_of_threads_says_that_it_is_fixed(redis_watch: Watch, workers: Workers) -> None:
    worker = workers(url_of(redis_watch), pool="threads")
    redis_watch.wait_for_worker(worker)
    outcome, message = outcome_of(redis_watch, GrowPool(cluster=CLUSTER, workers=(worker.hostname,)))
    assert outcome == "failed"
    assert "restart the worker with another --concurrency. Answer: AttributeError" in message


def test_autoscale_needs_its_option(watch: Watch, workers: Workers) -> None:
    autoscale: dict[str, Any] = {"cluster": CLUSTER, "maximum": 3, "minimum": 2}
    fixed = workers(url_of(watch))
    watch.wait_for_worker(fixed)
    outcome, message = outcome_of(watch, Autoscale(**autoscale, workers=(fixed.hostname,)))
    assert outcome == "failed"
    assert "Started without --autoscale" in message
    options = ("--without-gossip", "--without-mingle", "--autoscale=2,1")
    scaling = workers(url_of(watch), options=options)
    watch.wait_for_worker(scaling)
    outcome, message = outcome_of(watch, Autoscale(**autoscale, workers=(scaling.hostname,)))
    assert (outcome, message) == ("done", f"{scaling.hostname}: Answer: autoscale now max=3 min=2.")
    outcome, message = outcome_of(watch, GrowPool(cluster=CLUSTER, workers=(scaling.hostname,)))
    assert outcome == "failed"
    assert "This worker autoscales (--autoscale)" in message


def test_pool_restart_needs_its_setting(watch: Watch, workers: Workers) -> None:
    fixed = workers(url_of(watch))
    watch.wait_for_worker(fixed)
    outcome, message = outcome_of(watch, RestartPool(cluster=CLUSTER, workers=(fixed.hostname,)))
    assert outcome == "failed"
    assert "worker_pool_restarts = True" in message
    worker = workers(url_of(watch), config={"worker_pool_restarts": True})
    watch.wait_for_worker(worker)
    outcome, message = outcome_of(watch, RestartPool(cluster=CLUSTER, workers=(worker.hostname,)))
    assert (outcome, message) == ("done", f"{worker.hostname}: Answer: reload started.")


def test_consumer_is_added_and_cancelled_and_the_worker_really_does(watch: Watch, workers: Workers) -> None:
    worker = workers(url_of(watch))
    watch.wait_for_worker(worker)
    more = f"{worker.queue}-more"
    to: dict[str, Any] = {"cluster": CLUSTER, "workers": (worker.hostname,), "queue": more}
    outcome, message = outcome_of(watch, AddConsumer(**to))
    assert outcome == "done"
    assert f"Now consumes {worker.queue}, {more}." in message
    assert queues_of(watch, worker) == [worker.queue, more]
    watch.wait_for(worker.send("add", 2, 3, queue=more), TaskState.SUCCESS)
    outcome, message = outcome_of(watch, CancelConsumer(**to))
    assert outcome == "done"
    assert f"Now consumes {worker.queue}. Tasks already received still run." in message
    assert queues_of(watch, worker) == [worker.queue]
    waiting = worker.send("add", 2, 3, queue=more)
    watch.wait_for(waiting, TaskState.PENDING)
    with worker.app.connection_for_write() as connection:
        connection.default_channel.queue_delete(more)


def test_limits_are_set_cleared_and_refused(watch: Watch) -> None:
    with running_worker(url_of(watch), config={"worker_pool_restarts": True}) as worker:
        watch.wait_for_worker(worker)
        to: dict[str, Any] = {"cluster": CLUSTER, "workers": (worker.hostname,)}
        outcome, message = outcome_of(watch, RateLimit(**to, task="basic.add", rate="7/m"))
        assert (outcome, "at most 7 per minute" in message) == ("done", True)
        outcome, message = outcome_of(watch, RateLimit(**to, task="basic.add", rate="0"))
        assert (outcome, "without a limit" in message) == ("done", True)
        outcome, message = outcome_of(watch, TimeLimit(**to, task="basic.sleep", soft=None, hard=1.0))
        assert outcome == "unconfirmed"
        assert "basic.sleep has no soft limit and a hard limit of 1 s once the pool restarts" in message
        watch.wait_for(worker.send("sleep", 1.5), TaskState.SUCCESS)  # Celery said yes, and keeps the limits it had
        assert outcome_of(watch, RestartPool(**to))[0] == "done"
        assert "TimeLimitExceeded" in str(watch.wait_for(worker.send("sleep", 30), TaskState.FAILURE).traceback)
        for command in (
            RateLimit(**to, task="shop.nope", rate="7/m"),
            TimeLimit(**to, task="shop.nope", soft=1, hard=2),
        ):
            outcome, message = outcome_of(watch, command)
            assert outcome == "failed"
            assert "The worker has no task of that name." in message


def test_time_limit_on_threads_is_said_to_do_nothing(redis_watch: Watch, workers: Workers) -> None:
    worker = workers(url_of(redis_watch), pool="threads")
    redis_watch.wait_for_worker(worker)
    remember_pool(redis_watch, worker, "threads")
    command = TimeLimit(cluster=CLUSTER, workers=(worker.hostname,), task="basic.sleep", soft=None, hard=1.5)
    outcome, message = outcome_of(redis_watch, command)
    assert outcome == "failed"
    assert "a threads pool has no time limits" in message


def test_events_are_turned_off_and_on_unless_the_worker_was_started_with_them(watch: Watch) -> None:
    with running_worker(url_of(watch), events=False) as quiet, running_worker(url_of(watch)) as loud:
        for worker in (quiet, loud):
            watch.wait_for_worker(worker)
        to: dict[str, Any] = {"cluster": CLUSTER, "workers": (quiet.hostname,)}
        assert outcome_of(watch, EnableEvents(**to))[1].endswith("Answer: task events enabled.")
        watch.wait_for(quiet.send("add", 1, 2), TaskState.SUCCESS)
        assert outcome_of(watch, DisableEvents(**to))[0] == "done"
        assert read_worker(watch.store, quiet.hostname).events_enabled is False
        outcome, message = outcome_of(watch, DisableEvents(cluster=CLUSTER, workers=(loud.hostname,)))
        assert outcome == "failed"
        assert "started with -E" in message


def test_shutdown_is_typed_in_and_seen_to_happen(watch: Watch) -> None:
    with running_worker(url_of(watch)) as worker:
        watch.wait_for_worker(worker)
        to: dict[str, Any] = {"cluster": CLUSTER, "workers": (worker.hostname,)}
        for wrong in (None, "", worker.hostname.upper()):
            with pytest.raises(ConfirmationRequired, match="type its name"):
                watch.perform(ShutDownWorker(**to, confirm=wrong), ADMIN)
        assert watch.action_count() == 0
        with pytest.raises(Forbidden):
            watch.perform(ShutDownWorker(**to, confirm=worker.hostname))
        assert watch.last_action().outcome == "denied"
        assert worker.process.poll() is None
        outcome, message = outcome_of(watch, ShutDownWorker(**to, confirm=worker.hostname))
        assert (outcome, message.startswith(f"{worker.hostname}: Warm shutdown:")) == ("done", True)
        worker.process.wait(60)


def test_shutdown_of_a_busy_worker_waits_for_its_task(redis_watch: Watch, tmp_path: Path) -> None:
    release = tmp_path / "release"
    with running_worker(url_of(redis_watch)) as worker:
        redis_watch.wait_for_worker(worker)
        running = worker.send("hold", str(release))
        redis_watch.wait_for(running, TaskState.STARTED)
        command = ShutDownWorker(cluster=CLUSTER, workers=(worker.hostname,), confirm=worker.hostname)
        outcome, message = outcome_of(redis_watch, command)
        assert (outcome, "finishes running tasks" in message) == ("done", True)
        assert worker.process.poll() is None
        release.touch()
        redis_watch.wait_for(running, TaskState.SUCCESS)


def test_busy_solo_worker_leaves_it_unconfirmed_and_does_it_later(watch: Watch, tmp_path: Path) -> None:
    release = tmp_path / "release"
    with running_worker(url_of(watch), pool="solo", concurrency=1) as worker:
        watch.wait_for_worker(worker)
        remember_pool(watch, worker, "solo")
        running = worker.send("hold", str(release))  # a solo worker sends its events only afterwards
        wait_for(lambda: running in worker.log, what="the task at the worker")
        command = AddConsumer(cluster=CLUSTER, workers=(worker.hostname,), queue=f"{worker.queue}-more")
        outcome, message = outcome_of(watch, command)
        assert outcome == "unconfirmed"
        assert "Sent, unconfirmed" in message
        assert "A solo pool does not answer while it runs a task." in message
        release.touch()
        wait_for(lambda: f"{worker.queue}-more" in queues_of(watch, worker), what="the late consumer")


def test_worker_that_dies_between_click_and_answer(watch: Watch) -> None:
    with running_worker(url_of(watch)) as worker:
        watch.wait_for_worker(worker)
        os.kill(worker.pid, signal.SIGSTOP)  # it has the command, and does not come to answer it
        command = RateLimit(cluster=CLUSTER, workers=(worker.hostname,), task="basic.add", rate="9/s")
        outcome, message = outcome_of(watch, command)
        assert (outcome, "no answer" in message) == ("unconfirmed", True)
        worker.kill()
        outcome, message = outcome_of(watch, command)
        assert (outcome, "no answer" in message) == ("unconfirmed", True)


def test_no_command_is_called_done_that_nobody_answered(watch: Watch) -> None:
    """Every one of them, at a worker that has it and dies before its answer."""
    with running_worker(url_of(watch)) as worker:
        watch.wait_for_worker(worker)
        os.kill(worker.pid, signal.SIGSTOP)
        to: dict[str, Any] = {"cluster": CLUSTER, "workers": (worker.hostname,)}
        commands: list[WorkerCommand] = [
            GrowPool(**to, number=1),
            ShrinkPool(**to, number=1),
            RestartPool(**to),
            Autoscale(**to, maximum=3, minimum=1),
            AddConsumer(**to, queue="more"),
            CancelConsumer(**to, queue=worker.queue),
            RateLimit(**to, task="basic.add", rate="9/s"),
            TimeLimit(**to, task="basic.add", soft=2.5, hard=4.5),
            EnableEvents(**to),
            DisableEvents(**to),
            ShutDownWorker(**to, confirm=worker.hostname),
        ]
        assert [type(each) for each in commands] == [*WORKER_COMMANDS]
        with ThreadPoolExecutor(len(commands)) as pool:
            performed = list(pool.map(lambda command: watch.perform(command, ADMIN), commands))
        for command, each in zip(commands, performed, strict=True):
            assert (command.action, each.outcome) == (command.action, "unconfirmed")
            assert [result.outcome for result in each.results] == ["unconfirmed"]
        recorded = read_actions(watch.store, limit=50).items
        assert {each.outcome for each in recorded} == {"unconfirmed"}
        assert {each.action for each in recorded} == {each.action for each in commands}
        worker.kill()


def test_pickle_worker_breaks_nothing(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("C_FORCE_ROOT", "1")
    pickle = {"task_serializer": "pickle", "accept_content": ["json", "pickle"], "result_serializer": "pickle"}
    with running_worker(url_of(watch)) as plain, running_worker(url_of(watch), config=pickle) as odd:
        for worker in (plain, odd):
            watch.wait_for_worker(worker)
        to: dict[str, Any] = {"cluster": CLUSTER, "workers": (plain.hostname, odd.hostname)}
        performed = watch.perform(RateLimit(**to, task="basic.add", rate="5/s"))
        by_name = {result.id: result.outcome for result in performed.results}
        assert by_name[plain.hostname] == "done"
        assert set(by_name) == {plain.hostname, odd.hostname}


@pytest.mark.parametrize(
    "command",
    [
        GrowPool(cluster=CLUSTER, workers=("a@shop",), number=0),
        ShrinkPool(cluster=CLUSTER, workers=("a@shop",), number=-3),
        GrowPool(cluster=CLUSTER, workers=("a@shop",), number=100_000),
        Autoscale(cluster=CLUSTER, workers=("a@shop",), maximum=2, minimum=3),
        AddConsumer(cluster=CLUSTER, workers=("a@shop",), queue=""),
        AddConsumer(cluster=CLUSTER, workers=("a@shop",), queue="q\0q"),
        CancelConsumer(cluster=CLUSTER, workers=("a@shop",), queue="q" * 256),
        RateLimit(cluster=CLUSTER, workers=("a@shop",), task="shop.pay", rate="often"),
        RateLimit(cluster=CLUSTER, workers=("a@shop",), task="shop.pay", rate="5/d"),
        TimeLimit(cluster=CLUSTER, workers=("a@shop",), task="shop.pay", soft=-1.0, hard=None),
        TimeLimit(cluster=CLUSTER, workers=("a@shop",), task="shop.pay", soft=9.0, hard=3.0),
        TimeLimit(cluster=CLUSTER, workers=("a@shop",), task="shop.pay", soft=float("nan"), hard=None),
        ShutDownWorker(cluster=CLUSTER, workers=("a@shop", "b@shop"), confirm="a@shop"),
        RevokeStamped(cluster=CLUSTER, workers=("a@shop",), header="batch", stamps=()),
        RevokeStamped(cluster=CLUSTER, workers=("a@shop",), header="batch", stamps=("7",), signal="SIGSTOP"),  # type: ignore[arg-type]
        EnableEvents(cluster=CLUSTER, workers=()),
    ],
)
def test_what_makes_no_sense_is_not_sent(redis_watch: Watch, command: WorkerCommand) -> None:
    with pytest.raises(InvalidInput):
        redis_watch.perform(command, ADMIN)


def remember_pool(watch: Watch, worker: Worker, pool: str) -> None:
    """What the sampler would have asked the worker."""
    change_workers(watch.store, CLUSTER, [worker.hostname], lambda known: replace(known, pool=pool))
