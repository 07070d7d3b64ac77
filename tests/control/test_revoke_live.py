"""Revoke, terminate and enabling events against real workers on both brokers."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from celery_monitor.brokers.remote import Remote
from celery_monitor.control.perform import Controller
from celery_monitor.control.retry import RetryTask
from celery_monitor.control.revoke import RevokeTask, RevokeTasks
from celery_monitor.control.workers import EnableEvents
from celery_monitor.errors import BrokerUnavailable, Conflict, Forbidden, InvalidInput
from celery_monitor.records.task import TaskState
from celery_monitor.records.user import Actor, Role
from celery_monitor.settings.values import Broker
from tests.control.watch import CLUSTER, OPERATOR, Watch, make_settings, watching
from tests.workers import running_worker, wait_for

PICKLE = {"task_serializer": "pickle", "accept_content": ["json", "pickle"], "result_serializer": "pickle"}


def revoke(task_id: str, **given: Any) -> RevokeTask:
    return RevokeTask(cluster=CLUSTER, id=task_id, **given)


def test_a_task_that_a_worker_holds_is_revoked(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        watch.wait_for_worker(worker)
        held = worker.send("echo", countdown=4)
        watch.wait_for(held, TaskState.SCHEDULED)
        performed = watch.perform(revoke(held, reason="wrong customer"))
        assert (performed.outcome, performed.message) == ("done", f"{worker.hostname}, which has it, will not run it.")
        watch.wait_for(held, TaskState.REVOKED)
        action = watch.last_action()
        assert (action.action, action.target, action.outcome) == ("task.revoke", held, "done")
        assert (action.reason, action.parameters["answered"]) == ("wrong customer", [worker.hostname])
        with pytest.raises(Conflict, match="nothing left to revoke"):
            watch.perform(revoke(held))


def test_a_task_that_waits_in_its_queue_is_revoked(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url, pool="threads", concurrency=1) as worker:
        watch.wait_for_worker(worker)
        for _ in range(8):  # more than one thread and its prefetch hold
            worker.send("sleep", 0.3)
        waiting = worker.send("echo", 31)
        watch.wait_for(waiting, TaskState.PENDING)
        performed = watch.perform(revoke(waiting))
        assert performed.outcome == "done"
        assert f"{worker.hostname} will not run it" in performed.message
        watch.wait_for(waiting, TaskState.REVOKED)


def test_a_running_task_ends_only_when_terminated(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        watch.wait_for_worker(worker)
        running = worker.send("sleep", 30)
        watch.wait_for(running, TaskState.STARTED)
        assert "finishes running it" in watch.perform(revoke(running)).message
        performed = watch.perform(revoke(running, terminate=True, signal="SIGKILL"))
        assert (performed.outcome, performed.message) == (
            "done",
            f"{worker.hostname} terminates the process that runs it.",
        )
        watch.wait_for(running, TaskState.REVOKED)
        assert watch.last_action().parameters["signal"] == "SIGKILL"


def test_only_a_running_task_is_terminated(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        held = worker.send("echo", countdown=30)
        watch.wait_for(held, TaskState.SCHEDULED)
        with pytest.raises(Conflict, match="no process runs it"):
            watch.perform(revoke(held, terminate=True))
        with pytest.raises(InvalidInput, match="SIGSTOP"):
            watch.perform(revoke(held, signal="SIGSTOP"))


def test_a_pool_that_cannot_kill_says_so(redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url, pool="threads") as worker:
        release = tmp_path / "release"
        running = worker.send("hold", str(release))
        watch.wait_for(running, TaskState.STARTED)
        performed = watch.perform(revoke(running, terminate=True))
        assert performed.outcome == "failed"
        assert f"{worker.hostname} answered: NotImplementedError" in performed.message
        assert watch.last_action().outcome == "failed"
        release.touch()


def test_a_worker_that_does_not_answer_leaves_it_unconfirmed(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        watch.wait_for_worker(worker)
        held = worker.send("echo", countdown=30)
        watch.wait_for(held, TaskState.SCHEDULED)
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            performed = watch.perform(revoke(held))
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        assert performed.outcome == "unconfirmed"
        assert f"{worker.hostname}, which has the task, did not answer" in performed.message
        action = watch.last_action()
        assert (action.outcome, action.parameters["silent"]) == ("unconfirmed", [worker.hostname])
        watch.wait_for_worker(worker)


def test_several_are_revoked_at_once(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        watch.wait_for_worker(worker)
        done = worker.send("echo")
        held = [worker.send("echo", number, countdown=4) for number in range(3)]
        watch.wait_for(done, TaskState.SUCCESS)
        for task_id in held:
            watch.wait_for(task_id, TaskState.SCHEDULED)
        performed = watch.perform(RevokeTasks(cluster=CLUSTER, ids=(*held, done, "no such task")))
        assert performed.message == "3 tasks revoked, 2 skipped."
        for task_id in held:
            watch.wait_for(task_id, TaskState.REVOKED)
        assert watch.last_action().count == 5


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_down_is_said_and_recorded(scheme: str, redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url) as worker:
        held = worker.send("echo", countdown=30)
        watch.wait_for(held, TaskState.SCHEDULED)
        down = Broker(CLUSTER, f"{scheme}://127.0.0.1:1/0")
        gone = Watch(watch.store, make_settings(redis_url, tmp_path, broker=(down,)))
        with pytest.raises(BrokerUnavailable, match="nothing was sent"):
            gone.perform(revoke(held))
        assert watch.last_action().outcome == "failed"


def test_events_are_turned_on(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url, events=False) as worker:
        command = EnableEvents(cluster=CLUSTER, workers=(worker.hostname, "gone@shop"))
        performed = watch.perform(command)
        outcomes = {result.id: result.outcome for result in performed.results}
        assert outcomes == {worker.hostname: "done", "gone@shop": "unconfirmed"}
        assert performed.outcome == "unconfirmed"
        watch.wait_for(worker.send("echo", 31), TaskState.SUCCESS)
        assert watch.last_action().parameters["subjects"] == [worker.hostname, "gone@shop"]


def test_a_worker_that_answers_in_pickle_breaks_nothing(
    broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("C_FORCE_ROOT", "1")
    with (
        running_worker(broker_url) as plain,
        running_worker(broker_url, config=PICKLE) as pickling,
    ):
        remote = Remote(Broker(CLUSTER, broker_url), make_settings(broker_url, tmp_path))
        replies = remote.ask("ping", {}, [plain.hostname, pickling.hostname], 60.0)
        assert replies[plain.hostname].ok == "pong"
        assert "application/x-python-serialize, which is not read" in str(replies[pickling.hostname].error)
        heard = wait_for(lambda: len(found := remote.ask("ping", {}, None, 0.5)) == 2 and found, what="both answers")
        assert heard[plain.hostname].ok == "pong"
        assert "x-python-serialize" in str(heard["unreadable reply 1"].error)


@pytest.mark.parametrize(
    "command",
    [
        RetryTask(cluster=CLUSTER, id="31", confirm=True),
        RevokeTask(cluster=CLUSTER, id="31"),
        RevokeTasks(cluster=CLUSTER, ids=("31", "32")),
        EnableEvents(cluster=CLUSTER, workers=("worker1@shop",)),
    ],
)
def test_who_may_not_is_refused_and_recorded(command: RetryTask | RevokeTask, redis_url: str, tmp_path: Path) -> None:
    with watching(redis_url, tmp_path) as watch:
        with pytest.raises(Forbidden, match="vera is viewer"):
            watch.perform(command, Actor("vera", Role.VIEWER))
        action = watch.last_action()
        assert (action.actor, action.action, action.outcome) == ("vera", command.action, "denied")

        read_only = Controller(watch.store, make_settings(redis_url, tmp_path, read_only=True))
        with pytest.raises(Forbidden, match="read-only"):
            read_only.perform(OPERATOR, command)
        assert (watch.last_action().actor, watch.last_action().outcome) == ("olga", "denied")
        assert watch.action_count() == 2
