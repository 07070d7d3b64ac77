"""Whom the sampler asks next: who came up just now is asked often, who never answers ever less."""

from itertools import pairwise

from celery_monitor.core.workers import fold_worker
from celery_monitor.receiver.sampler import FIRST_SECONDS, Newcomers
from celery_monitor.receiver.task_events import ANSWER_SECONDS
from celery_monitor.records.worker import Worker, WorkerStatus
from tests.factories import NOW, make_event

LONGEST = 45.0


def make_worker(hostname: str, pid: int, queues: tuple[str, ...] | None = None) -> Worker:
    return Worker(cluster="shop", hostname=hostname, status=WorkerStatus.ONLINE, pid=pid, queues=queues)


def test_a_worker_is_asked_until_it_says_its_queues() -> None:
    newcomers = Newcomers(LONGEST)
    up = [make_worker("mail@shop", 7)]
    assert newcomers.due(up, 1000.0) == ["mail@shop"]
    newcomers.asked(["mail@shop"], 1000.1)
    assert newcomers.due(up, 1000.2) == []
    assert newcomers.seconds_left(1000.2) == 1000.1 + FIRST_SECONDS - 1000.2
    assert newcomers.due(up, 1000.3) == ["mail@shop"]
    newcomers.answered([("mail@shop", 7)])
    assert newcomers.due([make_worker("mail@shop", 7, ("mail",))], 1000.4) == []
    assert newcomers.seconds_left(1000.4) is None


def test_a_new_process_of_the_same_name_is_asked() -> None:
    newcomers = Newcomers(LONGEST)
    newcomers.answered([("mail@shop", 7)])
    assert newcomers.due([make_worker("mail@shop", 7, ("mail",))], 1000.0) == []
    assert newcomers.due([make_worker("mail@shop", 8)], 1001.0) == ["mail@shop"]


def test_the_queues_of_a_new_process_are_unknown_until_it_says_them() -> None:
    worker = make_worker("worker1@shop", 7, ("mail",))
    assert fold_worker(worker, make_event("worker-heartbeat", pid=7), "shop", NOW).queues == ("mail",)
    assert fold_worker(worker, make_event("worker-heartbeat", pid=8), "shop", NOW).queues is None


def test_a_worker_that_never_answers_is_asked_and_awaited_by_its_age() -> None:
    newcomers = Newcomers(LONGEST)
    up = [make_worker("busy@shop", 7)]
    asked = []
    for now in range(1000, 2200):
        if newcomers.due(up, now):
            newcomers.asked(["busy@shop"], now)
            asked.append(now)
    gaps = [later - earlier for earlier, later in pairwise(asked)]
    assert gaps == sorted(gaps)
    assert gaps[0] == 1  # the step of this test
    assert gaps[-1] == LONGEST
    assert newcomers.patience(["busy@shop"], 2200) == ANSWER_SECONDS


def test_who_came_up_just_now_is_not_waited_for() -> None:
    newcomers = Newcomers(LONGEST)
    newcomers.due([make_worker("new@shop", 7)], 1000.0)
    assert newcomers.patience(["new@shop"], 1000.1) == FIRST_SECONDS
