"""Tasks that a living worker no longer knows: asked twice, looked up in the result backend, and taken back."""

import time
from contextlib import closing
from pathlib import Path

import pytest
import redis

from monitor.application import Application
from monitor.brokers.ends import Ends
from monitor.brokers.ends import read_end
from monitor.brokers.remote import Remote
from monitor.receiver.forgotten import TIMES_SILENT
from monitor.receiver.forgotten import Forgotten
from monitor.records import Delivery
from monitor.records import TaskState
from monitor.settings import Broker
from monitor.settings import Settings
from monitor.store import standing
from tests.factories import make_event
from tests.receiver.watching import CLUSTER
from tests.receiver.watching import Watching
from tests.receiver.watching import watching
from tests.workers import running_worker
from tests.workers import wait_for


def ask(watch: Watching, forgotten: Forgotten, now: float) -> None:
    workers = [watch.worker(hostname) for hostname in {holder.hostname for holder in held(watch)}]
    forgotten.step([worker for worker in workers if worker], held(watch), now)


def ask_until_ended(watch: Watching, forgotten: Forgotten, task_id: str) -> None:
    """A worker may be too busy to answer: then it is asked again."""
    later = iter(range(110, 9000, 40))
    now = time.time()

    def ended() -> bool:
        ask(watch, forgotten, now + next(later))
        task = watch.task(task_id)
        return task is not None and task.state is not TaskState.STARTED

    wait_for(ended, 40, f"the end of {task_id}")


def held(watch: Watching) -> list[standing.Holder]:
    return list(standing.holders(watch.store, CLUSTER))


def make_forgotten(url: str, watch: Watching, **settings: object) -> Forgotten:
    given = Settings(**settings)  # type: ignore[arg-type]
    broker = Broker(CLUSTER, url)
    return Forgotten(watch.store, CLUSTER, Remote(broker, given), Ends(broker, given), watch.receiver.conclude)


def test_task_that_its_worker_no_longer_knows_is_lost_and_one_that_runs_is_not(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        ignored, running = worker.send("ignore"), worker.send("sleep", 100)
        begun = [watch.wait_for_state(each, TaskState.STARTED) for each in (ignored, running)]
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.pid)
        wait_for(lambda: "raised" in worker.log or "ignored" in worker.log, 10, "the end of the first")
        forgotten = make_forgotten(broker_url, watch)
        now = time.time()
        ask(watch, forgotten, now + 20)  # too soon after the start
        ask(watch, forgotten, now + 70)
        ask(watch, forgotten, now + 80)  # too soon after the first question
        assert watch.wait_for_state(ignored, TaskState.STARTED).exception is None
        ask_until_ended(watch, forgotten, ignored)
        lost = watch.wait_for_state(ignored, TaskState.LOST)
        assert lost.exception is not None
        assert f"{worker.hostname} (process {worker.pid}) is up and no longer knows the task" in lost.exception
        ask(watch, forgotten, now + 9000)
        ask(watch, forgotten, now + 9100)
        assert watch.wait_for_state(running, TaskState.STARTED).exception is None
        late = make_event(
            "task-succeeded",
            timestamp=(begun[0].started or now) + 1,
            hostname=worker.hostname,
            pid=worker.pid,
            uuid=ignored,
            result="'late'",
        )
        watch.receiver.conclude(Delivery(events=[late], arrived=time.time()))
        assert watch.wait_for_state(ignored, TaskState.SUCCESS).result == "'late'"
        worker.kill()


def test_while_the_result_backend_is_silent_nothing_is_lost_at_once(redis_url: str, tmp_path: Path) -> None:
    away = (Broker(CLUSTER, "redis://127.0.0.1:1/0"),)
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url) as worker:
        ignored = worker.send("ignore")
        watch.wait_for_state(ignored, TaskState.STARTED)
        wait_for(lambda: (found := watch.worker(worker.hostname)) and found.pid)
        wait_for(lambda: "ignored" in worker.log, 10, "the end of the task")
        forgotten, now = make_forgotten(redis_url, watch, result_backend=away), time.time()
        for number in range(TIMES_SILENT - 1):
            ask(watch, forgotten, now + 100 + 40 * number)
        time.sleep(0.5)  # for what would be concluded
        assert watch.wait_for_state(ignored, TaskState.STARTED).exception is None
        ask_until_ended(watch, forgotten, ignored)
        assert "the result backend does not answer" in (watch.wait_for_state(ignored, TaskState.LOST).exception or "")


def test_end_that_was_missed_is_taken_from_the_result_backend(redis_url: str, tmp_path: Path) -> None:
    config = {"result_backend": redis_url}
    with watching(redis_url, tmp_path) as watch, running_worker(redis_url, config=config) as worker:
        good, bad = worker.send("add", 20, 3), worker.send("fail", "no such order")
        ends = ((good, TaskState.SUCCESS), (bad, TaskState.FAILURE))
        known = {each: watch.wait_for_state(each, state) for each, state in ends}
        missed = {each: f"{each}-missed" for each in known}
        for each, name in missed.items():  # the same again, as when the ends had come in a gap
            started = (known[each].started or 0.0) + 1  # said after the result was stored, as of a short task
            events = [
                make_event(kind, timestamp=started, hostname=worker.hostname, pid=worker.pid, uuid=name, name="basic.x")
                for kind in ("task-received", "task-started")
            ]
            watch.receiver.conclude(Delivery(events=events, arrived=time.time()))
            backend = worker.app.backend
            with closing(redis.Redis.from_url(redis_url)) as client:
                client.copy(backend.get_key_for_task(each), backend.get_key_for_task(name))
            watch.wait_for_state(name, TaskState.STARTED)
        forgotten = make_forgotten(redis_url, watch, result_backend=(Broker(CLUSTER, redis_url),))
        ask_until_ended(watch, forgotten, missed[bad])
        assert watch.wait_for_state(missed[good], TaskState.SUCCESS).result == "23"
        failed = watch.wait_for_state(missed[bad], TaskState.FAILURE)
        assert failed.exception == known[bad].exception
        assert "no such order" in (failed.traceback or "")
        assert len(failed.runs) == 1


def test_result_backend_that_is_away_says_nothing_and_one_that_is_not_given_knows_nothing() -> None:
    broker = Broker(CLUSTER, "redis://127.0.0.1:1/0")
    assert Ends(broker, Settings()).of(["a"]) == {}
    assert Ends(broker, Settings(result_backend=(broker,))).of(["a"]) is None


def test_backend_that_is_not_read_is_named_in_the_evidence() -> None:
    broker = Broker(CLUSTER, "redis://127.0.0.1:1/0")
    application = Application(
        conf={"result_backend": "rpc://"}, broker_read_url=broker.url, broker_write_url=broker.url
    )
    ends = Ends(broker, Settings(application=application))
    assert ends.of(["a"]) == {}
    assert ends.absence == "its result backend (rpc://) cannot be read from here, and may know more"
    assert Ends(broker, Settings()).absence == "no result backend tells of it"


@pytest.mark.parametrize(
    "payload",
    [None, b"\x80\x04}q\x00.", b"[1]", b'{"status": "PENDING"}', b'{"status": ["SUCCESS"]}', b'"SUCCESS"', b"\xff"],
)
def test_what_is_no_json_or_no_end_says_nothing(payload: bytes | None) -> None:
    assert read_end(payload) is None


def test_an_odd_failure_has_no_exception_rather_than_a_wrong_one() -> None:
    end = read_end(b'{"status": "FAILURE", "result": "no dict", "traceback": 7, "date_done": "soon"}')
    assert end is not None
    assert (end.event, end.exception, end.traceback, end.done) == ("task-failed", None, None, None)
