"""Bulk by query: what is chosen, what is shown, and what comes of it."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random

import msgspec
import pytest

from celery_monitor.brokers.batch import batches
from celery_monitor.brokers.publish import Route, TaskCall
from celery_monitor.control.bulk import AbortJob, BulkRetry, BulkRevoke
from celery_monitor.core.filters.parser import parse
from celery_monitor.errors import Conflict, FilterError, Forbidden, InvalidInput, NotFound
from celery_monitor.records.job import JobOutcome, JobReason, JobState
from celery_monitor.records.user import Actor, Role
from celery_monitor.store.actions import read_actions
from celery_monitor.store.jobs import JobLease, SentTask, begin_batch, claim_job, read_job_tasks, read_jobs, sent_as
from celery_monitor.store.tasks.detail import read_lineage, read_task
from celery_monitor.store.tasks.page import find_tasks
from tests.control.bulk_shop import CLUSTER, OLGA, Shop, failure, open_shop, other_process
from tests.factories import NOW, make_event, make_id
from tests.workers import wait_for

VERA = Actor("vera", Role.VIEWER)


@pytest.fixture
def shop(broker_url: str, sqlite_url: str) -> Iterator[Shop]:
    with open_shop(broker_url, sqlite_url) as opened:
        yield opened


@pytest.fixture
def redis_shop(redis_url: str, sqlite_url: str) -> Iterator[Shop]:
    with open_shop(redis_url, sqlite_url) as opened:
        yield opened


def test_every_task_that_matches_is_sent_once_and_linked(shop: Shop) -> None:
    shop.fail(1, 1234)
    job = shop.run(shop.retry(reason="gateway is back"))
    assert (job.state, job.total, job.count(JobOutcome.DONE), job.left) == (JobState.DONE, 1234, 1234, 0)
    expected = {sent_as(job, make_id(number)): 1 for number in range(1, 1235)}
    assert shop.sent() == expected
    (link,) = read_lineage(shop.store, read_task(shop.store, make_id(777), CLUSTER)).retried_as
    assert link.id == sent_as(job, make_id(777))
    assert job.message == "1234 tasks retried."


@pytest.mark.slow
def test_a_job_goes_on_where_a_killed_process_left_it(shop: Shop) -> None:
    """Killed three times while batches are on their way; the ledger is the queue itself."""
    shop.fail(1, 4000)
    job = shop.retry()
    for share in (0.1, 0.4, 0.7):
        with other_process(shop.settings, lease_seconds=1.0) as process:
            wait_for(lambda: shop.job(job).position >= share * job.total, what="progress")  # noqa: B023
            process.kill()
            process.wait(60)
    assert shop.job(job).state is JobState.RUNNING
    job = shop.run(job)
    assert (job.state, job.count(JobOutcome.DONE), job.left) == (JobState.DONE, 4000, 0)
    assert shop.sent() == {sent_as(job, make_id(number)): 1 for number in range(1, 4001)}


@pytest.mark.parametrize("arrived", [True, False])
def test_a_crash_between_link_and_outcome_is_settled_with_the_broker(shop: Shop, arrived: bool) -> None:
    """The process dies after it wrote the links: before the broker has the batch, or after."""
    shop.fail(1, 7)
    job = shop.retry()
    found = claim_job(shop.store, [CLUSTER], "dead", time.time(), 0.2)
    assert found
    batch = [SentTask(n - 1, make_id(n), sent_as(job, make_id(n)), "probable") for n in range(1, 4)]
    begin_batch(JobLease(shop.store, job.id, "dead", 0.2), found, "a token", batch, [], time.time())
    if arrived:
        route = Route("", shop.queue)
        with batches(shop.settings.broker[0], shop.settings, job.token) as sender:
            calls = [TaskCall(id=each.new_id, name="shop.charge", args=[1], kwargs={}, route=route) for each in batch]
            sender.send_all("a token", calls)
    job = shop.run(job)
    assert job.count(JobOutcome.DONE) == 7
    assert shop.sent() == {sent_as(job, make_id(number)): 1 for number in range(1, 8)}


def test_a_process_that_was_only_asleep_sends_nothing_late(redis_shop: Shop) -> None:
    shop = redis_shop
    route = Route("", shop.queue)
    calls = [TaskCall(id=make_id(31), name="shop.charge", args=[1], kwargs={}, route=route)]
    with batches(shop.settings.broker[0], shop.settings, "a job") as sleeper:
        with batches(shop.settings.broker[0], shop.settings, "a job") as successor:
            assert successor.settle("its token") is False
        with pytest.raises(Exception, match="settled by another process"):
            sleeper.send_all("its token", calls)
    assert shop.sent() == {}


def test_only_one_connection_to_rabbitmq_works_at_a_job(amqp_url: str, sqlite_url: str) -> None:
    with open_shop(amqp_url, sqlite_url) as shop:
        broker, settings = shop.settings.broker[0], shop.settings
        with (
            batches(broker, settings, "a job") as first,
            pytest.raises(Exception, match="still connected to RabbitMQ"),
            batches(broker, settings, "a job"),
        ):
            raise AssertionError
        with batches(broker, settings, "a job") as second:
            second.end()
        assert first is not second


def test_tasks_that_fail_after_the_preview_are_left_alone(redis_shop: Shop) -> None:
    shop = redis_shop
    shop.fail(1, 20)
    preview = shop.preview(BulkRetry(query="state:failed"))
    shop.fail(21, 30)
    job = shop.run(shop.start(BulkRetry(query="state:failed", job=preview.id)))
    assert (job.id, job.total) == (preview.id, 20)
    assert shop.sent() == {sent_as(job, make_id(number)): 1 for number in range(1, 21)}


def test_a_relative_time_counts_from_the_preview(redis_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = redis_shop
    clock = time.time
    now = clock()
    given = {"uuid": make_id(1), "name": "shop.charge", "args": "(1,)", "kwargs": "{}"}
    shop.write(
        make_event("task-sent", queue=shop.queue, exchange="", routing_key=shop.queue, timestamp=now - 3000, **given),
        make_event("task-received", timestamp=now - 3000, **given),
        make_event("task-failed", timestamp=now, uuid=make_id(1), exception="E()", traceback=""),
    )
    preview = shop.preview(BulkRetry(query="state:failed received:>-1h"))
    monkeypatch.setattr(time, "time", lambda: clock() + 1500)
    job = shop.run(shop.start(BulkRetry(query="state:failed received:>-1h", job=preview.id)))
    assert job.count(JobOutcome.DONE) == 1


def test_what_cannot_be_sent_is_skipped_with_a_reason_that_can_be_counted(redis_shop: Shop) -> None:
    shop = redis_shop
    shop.fail(1, 5)
    shop.fail(6, 8, args="('aaa...',)")
    given = {"uuid": make_id(9), "name": "shop.charge", "args": "(9,)", "kwargs": "{}", "timestamp": NOW}
    shop.write(make_event("task-received", **given), make_event("task-failed", exception="E()", traceback="", **given))
    preview = shop.preview(BulkRetry(query="state:failed"))
    assert preview.preview.fidelity == {"exact": 0, "probable": 5, "unknown": 3}
    assert (preview.preview.sendable, preview.preview.estimated, len(preview.preview.samples)) == (5, False, 5)
    job = shop.run(shop.start(BulkRetry(query="state:failed", job=preview.id)))
    assert [(each.outcome, each.count) for each in job.reasons if each.reason] == [
        (JobOutcome.SKIPPED, 3),
        (JobOutcome.SKIPPED, 1),
    ]
    assert "shortened" in job.reasons[1].reason
    assert "queue unknown" in job.reasons[2].reason
    skipped = read_job_tasks(shop.store, job, outcome=JobOutcome.SKIPPED, limit=3)
    rest = read_job_tasks(shop.store, job, outcome=JobOutcome.SKIPPED, limit=3, cursor=skipped.next)
    assert {each.id for each in (*skipped.items, *rest.items)} == {make_id(number) for number in range(6, 10)}
    assert {each.new_id for each in skipped.items} == {None}


def test_a_task_that_changed_or_was_sent_by_somebody_else_meanwhile_is_skipped(redis_shop: Shop) -> None:
    shop = redis_shop
    shop.fail(1, 4)
    first = shop.preview(BulkRetry(query="state:failed"))
    second = shop.preview(BulkRetry(query=f"id:{make_id(2)} OR id:{make_id(3)}"))
    shop.write(make_event("task-succeeded", uuid=make_id(1), timestamp=NOW + 99, result="1", runtime=1.5))
    shop.run(shop.start(BulkRetry(query=second.query, job=second.id)))
    job = shop.run(shop.start(BulkRetry(query="state:failed", job=first.id)))
    reasons = {each.reason: each.count for each in job.reasons if each.outcome is JobOutcome.SKIPPED}
    assert reasons == {
        "failed when it was chosen, succeeded now": 1,
        "already retried, state unknown": 2,
    }
    skipped = read_job_tasks(shop.store, job, outcome=JobOutcome.SKIPPED).items
    again = sent_as(shop.job(second), make_id(2))
    assert {each.id: each.reason for each in skipped}[make_id(2)] == f"already retried as {again}, state unknown"
    assert sum(shop.sent().values()) == 3


def test_a_second_retry_of_all_leaves_out_what_the_first_sent(redis_shop: Shop) -> None:
    shop = redis_shop
    shop.fail(1, 9)
    first = shop.run(shop.retry())
    shop.fail(10, 11)
    for number, end in ((3, "task-succeeded"), (4, "task-failed")):
        new = sent_as(first, make_id(number))
        texts = {"name": "shop.charge", "args": f"({number},)", "kwargs": "{}"}
        shop.write(make_event("task-received", uuid=new, timestamp=NOW + 70, **texts))
        shop.write(make_event(end, uuid=new, timestamp=NOW + 71, exception="E()", result="1"))
    shop.write(*failure(12, shop.queue))
    query = "state:failed name:shop.charge"
    preview = shop.preview(BulkRetry(query=query))
    assert preview.total == 13  # 9 that were retried, the one of them that failed again, and 3 new ones
    assert preview.preview.skipped == {
        "already retried, state unknown": 7,
        "already retried, succeeded": 1,
        "already retried, failed": 1,
        "queue unknown: events name it only with task_send_sent_event": 1,
    }
    assert (preview.preview.sendable, preview.preview.retried, preview.preview.warnings) == (3, 9, [])
    both = shop.preview(BulkRetry(query=query, include_retried=True))
    assert (both.preview.sendable, both.preview.retried, both.include_retried) == (12, 9, True)
    assert both.preview.warnings == ["9 tasks already retried, would run again."]
    shop.run(shop.start(BulkRetry(query=query, job=preview.id)))
    assert sum(shop.sent().values()) == 9 + 3
    job = shop.run(shop.start(BulkRetry(query=query, job=both.id)))
    assert (job.include_retried, job.count(JobOutcome.DONE)) == (True, 9)  # of the 12, 3 were sent meanwhile
    assert sum(shop.sent().values()) == 9 + 3 + 9


def test_a_preview_includes_retried_tasks_when_somebody_ticks_the_box(redis_shop: Shop) -> None:
    shop = redis_shop
    shop.fail(1, 4)
    shop.run(shop.retry(f"id:{make_id(2)}"))
    preview = shop.preview(BulkRetry(query="state:failed"))
    command = BulkRetry(cluster=CLUSTER, query="state:failed", job=preview.id)
    again, without = (msgspec.structs.replace(command, include_retried=each) for each in (True, False))
    looked = [shop.controller.preview(OLGA, each) for each in (again, without, again)]
    assert [each.preview.sendable for each in (preview, *looked)] == [3, 4, 3, 4]
    job = shop.run(shop.start(command))
    assert job.count(JobOutcome.DONE) == 4
    with pytest.raises(Conflict, match="not the preview of a retry"):
        shop.controller.preview(OLGA, without)
    with pytest.raises(Forbidden):
        shop.controller.preview(VERA, without)


def test_two_jobs_at_once_send_each_task_once(shop: Shop) -> None:
    shop.fail(1, 1500)
    started = [shop.retry("state:failed"), shop.retry("name:shop.charge state:failed")]
    with shop.running():
        ended = [shop.wait(job) for job in started]
    assert [job.total for job in ended] == [1500, 1500]
    assert sum(job.count(JobOutcome.DONE) for job in ended) == 1500
    assert sum(job.count(JobOutcome.SKIPPED) for job in ended) == 1500
    assert sorted(shop.sent().values()) == [1] * 1500


def test_a_double_click_makes_one_job(redis_shop: Shop) -> None:
    shop = redis_shop
    shop.fail(1, 30)
    preview = shop.preview(BulkRetry(query="state:failed"))
    command = BulkRetry(query="state:failed", job=preview.id)
    with ThreadPoolExecutor(6) as pool:
        said = list(pool.map(lambda _: shop.controller.perform(OLGA, command).message, range(6)))
    assert sum("started: retry 30 tasks" in each for each in said) == 1
    assert sum("Nothing was started twice" in each for each in said) == 5
    assert [job.id for job in read_jobs(shop.store)] == [preview.id]
    shop.run(preview)
    assert sum(shop.sent().values()) == 30


def test_a_throttle_is_kept_and_an_abort_leaves_the_rest_alone(shop: Shop) -> None:
    shop.fail(1, 400)
    job = shop.retry(rate=40.0)
    began = time.monotonic()
    with shop.running():
        wait_for(lambda: shop.job(job).count(JobOutcome.DONE) >= 80, what="80 tasks")
        elapsed = time.monotonic() - began
        shop.controller.perform(OLGA, AbortJob(cluster=CLUSTER, job=job.id))
        job = shop.wait(job)
    sent = sum(shop.sent().values())
    assert job.state is JobState.ABORTED
    assert 80 <= job.count(JobOutcome.DONE) == sent <= 40 * (elapsed + 2)
    assert job.left == 400 - sent
    assert job.message == f"Aborted by olga. {sent} tasks retried, {400 - sent} not sent."
    with pytest.raises(Conflict, match="nothing to abort"):
        shop.controller.perform(OLGA, AbortJob(cluster=CLUSTER, job=job.id))


def test_a_job_waits_for_a_broker_that_is_away(redis_shop: Shop) -> None:
    shop = redis_shop
    shop.fail(1, 3)
    job = shop.retry()
    away = shop.settings.broker[0].__class__(CLUSTER, "redis://127.0.0.1:1/0")
    here, shop.settings = shop.settings, shop.settings.__class__(broker=(away,), database=shop.settings.database)
    with shop.running():
        wait_for(lambda: "cannot be used" in (shop.job(job).message or ""), what="the reason")
    shop.settings = here
    assert shop.run(job).count(JobOutcome.DONE) == 3


def test_a_queue_that_is_gone_fails_its_tasks_alone_and_leaves_no_link(amqp_url: str, sqlite_url: str) -> None:
    with open_shop(amqp_url, sqlite_url) as shop:
        shop.fail(1, 3)
        shop.write(*failure(4, "no-such-queue"))
        job = shop.run(shop.retry())
        assert (job.count(JobOutcome.DONE), job.count(JobOutcome.FAILED)) == (3, 1)
        assert "no queue no-such-queue" in next(each.reason for each in job.reasons if each.reason)
        assert read_lineage(shop.store, read_task(shop.store, make_id(4), CLUSTER)).retried_as == ()
        assert shop.sent().total() == 3


def test_revoke_tells_workers_in_batches_and_skips_what_has_ended(shop: Shop) -> None:
    shop.fail(1, 3)
    waiting = [
        make_event("task-sent", uuid=make_id(n), name="shop.charge", queue=shop.queue, timestamp=NOW + n)
        for n in range(10, 15)
    ]
    shop.write(*waiting)
    job = shop.run(shop.start(BulkRevoke(query="name:shop.charge", reason="wrong price")))
    assert JobReason(outcome=JobOutcome.SKIPPED, reason="failed: there is nothing left to revoke", count=3) in (
        job.reasons
    )
    assert job.count(JobOutcome.UNCONFIRMED) == 5
    assert job.preview.warnings


def test_the_trail_has_query_count_reason_and_outcome_of_start_and_end_and_every_denial(redis_shop: Shop) -> None:
    shop = redis_shop
    shop.fail(1, 4)
    with pytest.raises(Forbidden):
        shop.start(BulkRetry(query="state:failed"), VERA)
    with pytest.raises(Forbidden):
        shop.controller.preview(VERA, BulkRevoke(query="state:failed"))
    shop.run(shop.retry("state:failed", reason="card is back"))
    trail = [
        (each.actor, each.action, each.outcome, each.query, each.count, each.reason)
        for each in read_actions(shop.store).items
    ]
    assert trail == [
        ("olga", "bulk.retry", "done", "state:failed", 4, "card is back"),
        ("olga", "bulk.retry", "done", "state:failed", 4, "card is back"),
        ("vera", "bulk.revoke", "denied", "state:failed", None, None),
        ("vera", "bulk.retry", "denied", "state:failed", None, None),
    ]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (BulkRetry(query="colour:red"), FilterError),
        (BulkRetry(query="name:nothing"), NotFound),
        (BulkRetry(query="state:failed", rate=0.0), InvalidInput),
        (BulkRetry(query="state:failed", rate=float("nan")), InvalidInput),
        (BulkRetry(query="state:failed", cluster="attic"), NotFound),
        (BulkRetry(query="state:failed", job=77), NotFound),
        (BulkRetry(query="state:\x00"), InvalidInput),
    ],
)
def test_what_cannot_be_understood_is_refused_and_makes_no_job(
    redis_shop: Shop, command: BulkRetry, error: type[Exception]
) -> None:
    redis_shop.fail(1, 2)
    with pytest.raises(error):
        redis_shop.start(command)
    assert read_jobs(redis_shop.store) == []


def test_a_preview_is_of_its_own_filter_and_verb_alone(redis_shop: Shop) -> None:
    redis_shop.fail(1, 2)
    preview = redis_shop.preview(BulkRetry(query="state:failed"))
    with pytest.raises(Conflict, match="make a preview"):
        redis_shop.start(BulkRetry(query="", job=preview.id))
    with pytest.raises(Conflict, match="is to retry tasks"):
        redis_shop.start(BulkRevoke(query="state:failed", job=preview.id))
    assert redis_shop.job(preview).state is JobState.PREVIEW


def test_a_filter_then_retry_never_touches_what_it_does_not_match(redis_shop: Shop) -> None:
    """Generated tasks and filters: what is sent again is exactly what the list shows for the filter."""
    shop = redis_shop
    random = Random(7)
    names = ["shop.charge", "shop.refund", "mail.send"]
    for number in range(1, 200):
        shop.write(*failure(number, shop.queue, random.choice(names), f"({number % 9}, 'EUR')"))
    terms = ["name:shop.*", "-name:mail.send", "args:3", "state:failed", "received:>2026-05-28T20:28", "charge"]
    terms += ["(name:shop.refund OR args:5)", f"-id:{make_id(5)}", "exception:ValueError", "queue:nowhere"]
    for _ in range(25):
        query = " ".join(random.sample(terms, random.randint(1, 3)))
        wanted = {task.id for task in find_tasks(shop.store, parse(query, time.time()), limit=500).items}
        if not wanted:
            continue
        preview = shop.preview(BulkRetry(query=query))
        assert {each.id for each in read_job_tasks(shop.store, preview, limit=500).items} == wanted, query
