"""The steps of a job on both databases: who holds it, what is chosen, and what a batch leaves behind."""

import time
from collections.abc import Iterator

import pytest

from celery_monitor.core.filters.parser import parse
from celery_monitor.records.job import Job, JobOutcome, JobPreview, JobReason, JobState
from celery_monitor.records.page import Action, Count
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.task import TaskState
from celery_monitor.settings import Settings
from celery_monitor.store.actions import read_actions
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.jobs import (
    EndedTask,
    JobLease,
    JobLeaseLost,
    SentTask,
    begin_batch,
    claim_job,
    create_job,
    end_batch,
    finish_job,
    next_members,
    read_job,
    read_job_tasks,
    read_jobs,
    renew,
    reset_batch,
    sample_members,
    save_preview,
    sent_as,
    start_job,
    states_of,
    stop_job,
    tasks_being_sent,
    tidy_jobs,
)
from celery_monitor.store.tasks.detail import link_retry, read_lineage, read_task
from celery_monitor.store.tasks.page import find_tasks
from celery_monitor.store.tasks.where import states_of_sent
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_event, make_id
from tests.store.traffic import seed

QUERIES = (
    "state:failed",
    "name:shop.*",
    "-name:shop.*",
    "TimeoutError",
    "state:failed OR args:7",
    "",
    "queue:mail",
    "order-2*",
)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = open_store(database_url)
    seed(opened)
    yield opened
    opened.close()


def make_job(store: Store, query: str = "state:failed", verb: str = "retry") -> Job:
    wanted = parse(query, NOW + 300).in_cluster("shop")
    return create_job(store, "shop", verb, wanted, query, "olga")  # type: ignore[arg-type]


def hold(store: Store, job: Job, owner: str = "us", seconds: float = 5.0) -> JobLease:
    start_job(store, job.id, "olga", "card is back", 7.5)
    found = claim_job(store, ["shop"], owner, NOW, seconds)
    assert found
    assert found.id == job.id
    return JobLease(store, job.id, owner, seconds)


def batch_of(store: Store, job: Job, number: int) -> list[SentTask]:
    members = next_members(store, job, number)
    return [SentTask(each.number, each.id, sent_as(job, each.id), "probable") for each in members]


@pytest.mark.parametrize("query", QUERIES)
def test_exactly_the_tasks_of_the_list_are_chosen_the_oldest_first(store: Store, query: str) -> None:
    wanted = parse(query, NOW + 300).in_cluster("shop")
    listed = [task.id for task in find_tasks(store, wanted, sort="received", limit=1000).items]
    job = make_job(store, query)
    assert [each.id for each in read_job_tasks(store, job, limit=1000).items] == listed
    assert job.total == len(listed)
    assert (job.state, job.query, job.cluster) == (JobState.PREVIEW, query, "shop")


def test_what_arrives_later_is_not_of_the_job(store: Store) -> None:
    job = make_job(store)
    seed(store, 900)
    assert make_job(store).total > job.total == read_job(store, job.id).total
    assert read_job_tasks(store, job, limit=1000).next is None


def test_members_carry_the_state_of_then_and_the_task_of_now(store: Store) -> None:
    job = make_job(store)
    for member in next_members(store, job, 1000):
        assert member.task is not None
        assert (member.task.id, member.task.state, member.was.word) == (member.id, member.was, "failed")
    assert sum(states_of(store, job).values()) == job.total
    sample = sample_members(store, job, 7)
    assert 3 < len(sample) <= 7
    assert sample[-1].number > job.total * 0.6


def test_a_yes_counts_once(store: Store) -> None:
    job = make_job(store)
    assert start_job(store, job.id, "olga", "card is back", 7.5)
    assert not start_job(store, job.id, "mira", None, None)
    job = read_job(store, job.id)
    assert (job.state, job.actor, job.reason, job.rate) == (JobState.WAITING, "olga", "card is back", 7.5)


def test_a_job_has_one_owner_until_its_lease_ends(store: Store) -> None:
    job = make_job(store)
    lease = hold(store, job)
    assert claim_job(store, ["shop"], "them", NOW + 4, 5.0) is None
    renew(lease, NOW + 4)
    assert claim_job(store, ["shop"], "them", NOW + 6, 5.0) is None
    assert claim_job(store, ["eu"], "them", NOW + 60, 5.0) is None
    assert claim_job(store, ["shop"], "them", NOW + 60, 5.0)
    with pytest.raises(JobLeaseLost):
        renew(lease, NOW + 61)
    with pytest.raises(JobLeaseLost):
        begin_batch(lease, job, "late", batch_of(store, job, 3), [], NOW + 61)
    assert tasks_being_sent(lease) == []


def test_a_batch_is_linked_before_it_is_sent_and_counted_after(store: Store) -> None:
    job = make_job(store)
    lease = hold(store, job)
    first, second, third, skipped = batch_of(store, job, 4)
    why = EndedTask(skipped.number, JobOutcome.SKIPPED, "its queue is not known")
    assert begin_batch(lease, job, "a token", [first, second, third], [why], NOW) == [first, second, third]
    assert read_job(store, job.id).batch == "a token"
    assert tasks_being_sent(lease) == [(each.number, each.id) for each in (first, second, third)]
    lineage = read_lineage(store, read_task(store, first.id, "shop"))
    assert [(link.id, link.fidelity) for link in lineage.retried_as] == [(first.new_id, "probable")]
    ended = [
        EndedTask(first.number, JobOutcome.DONE),
        EndedTask(second.number, JobOutcome.DONE),
        EndedTask(third.number, JobOutcome.FAILED, "no queue"),
    ]
    end_batch(lease, job, skipped.number + 1, ended, [third.new_id], NOW)
    job = read_job(store, job.id)
    assert set(job.reasons) == {
        JobReason(outcome=JobOutcome.DONE, reason="", count=2),
        JobReason(outcome=JobOutcome.FAILED, reason="no queue", count=1),
        JobReason(outcome=JobOutcome.SKIPPED, reason="its queue is not known", count=1),
    }
    assert (job.batch, job.position, job.left) == (None, 4, job.total - 4)
    assert read_lineage(store, read_task(store, third.id, "shop")).retried_as == ()
    assert next_members(store, job, 1)[0].number == 4


def test_query_of_a_job_finds_just_what_it_sent_again_and_states_are_counted(store: Store) -> None:
    """Neither the tasks it was made of, nor what somebody sent again before or after it."""
    job = make_job(store)
    lease = hold(store, job)
    one, two, three, left, last = batch_of(store, job, 5)
    link_retry(store, "shop", one.id, make_id(9001), "exact", NOW + 200)
    begin_batch(lease, job, "a token", [one, two, three, last], [], NOW + 301)
    ended = [EndedTask(each.number, JobOutcome.DONE) for each in (one, two, last)]
    failed = EndedTask(three.number, JobOutcome.FAILED, "no queue")
    end_batch(lease, job, last.number + 1, [*ended, failed], [three.new_id], NOW + 302)
    link_retry(store, "shop", two.id, make_id(9002), "exact", NOW + 400)
    for task_id, end in (
        (one.new_id, make_event("task-succeeded", uuid=one.new_id, timestamp=NOW + 410)),
        (two.new_id, make_event("task-failed", uuid=two.new_id, timestamp=NOW + 410, exception="Again()")),
        (make_id(9001), make_event("task-succeeded", uuid=make_id(9001), timestamp=NOW + 410)),
        (make_id(9002), make_event("task-succeeded", uuid=make_id(9002), timestamp=NOW + 410)),
    ):
        received = make_event("task-received", uuid=task_id, name="shop.pay", timestamp=NOW + 405)
        Writer(store, "shop", Settings()).write([Delivery(events=[received, end], arrived=NOW + 411)])

    def found(query: str) -> set[str]:
        page = find_tasks(store, parse(query, NOW + 500), limit=1000)
        assert page.count == Count(value=len(page.items))
        return {task.id for task in page.items}

    assert found(f"job:{job.id}") == {one.new_id, two.new_id}
    assert found(f"job:{job.id} state:failed") == {two.new_id}
    assert found(f"job:{job.id} OR id:{left.id}") == {one.new_id, two.new_id, left.id}
    everything = {task.id for task in find_tasks(store, parse("", NOW + 500), limit=1000).items}
    assert found(f"-job:{job.id}") == everything - {one.new_id, two.new_id}
    assert found("job:999") == set()
    assert states_of_sent(store, read_job(store, job.id)) == {TaskState.SUCCESS: 1, TaskState.FAILURE: 1}


def test_query_of_a_job_that_revokes_finds_what_it_revoked(store: Store) -> None:
    job = make_job(store, "state:started", "revoke")
    lease = hold(store, job)
    one, two = next_members(store, job, 2)
    end_batch(
        lease,
        job,
        two.number + 1,
        [EndedTask(one.number, JobOutcome.DONE), EndedTask(two.number, JobOutcome.SKIPPED, "it has ended")],
        [],
        NOW + 302,
    )
    assert [task.id for task in find_tasks(store, parse(f"job:{job.id}", NOW + 500)).items] == [one.id]
    assert states_of_sent(store, job) == {TaskState.STARTED: 1}


def test_a_batch_that_the_broker_has_not_waits_again(store: Store) -> None:
    job = make_job(store)
    lease = hold(store, job)
    batch = batch_of(store, job, 3)
    begin_batch(lease, job, "a token", batch, [], NOW)
    reset_batch(lease, job, tasks_being_sent(lease), [each.new_id for each in batch], NOW)
    assert batch_of(store, read_job(store, job.id), 3) == batch
    assert read_lineage(store, read_task(store, batch[0].id, "shop")).retried_as == ()


def test_nothing_is_begun_once_somebody_aborts(store: Store) -> None:
    job = make_job(store)
    lease = hold(store, job)
    assert stop_job(store, job.id, "Aborted by mira.")
    assert not stop_job(store, job.id, "Aborted by vera.")
    assert begin_batch(lease, job, "a token", batch_of(store, job, 3), [], NOW) is None
    action = Action(at=NOW + 9, actor="olga", action="bulk.retry", cluster="shop", count=job.total, outcome="aborted")
    finish_job(lease, JobState.ABORTED, "Aborted by mira.", action)
    with pytest.raises(JobLeaseLost):
        finish_job(lease, JobState.ABORTED, "Aborted by mira.", action)
    assert [each.count for each in read_actions(store).items] == [job.total]
    assert read_job(store, job.id).ended == NOW + 9


def test_previews_that_nobody_confirms_are_forgotten_and_jobs_are_not(store: Store) -> None:
    preview, job = make_job(store), make_job(store)
    save_preview(store, preview.id, JobPreview(judged=7, warnings=["careful"]))
    assert read_job(store, preview.id).preview.warnings == ["careful"]
    hold(store, job)
    tidy_jobs(store, time.time())
    assert [each.id for each in read_jobs(store)] == [job.id]
    assert read_jobs(store, cluster="eu") == []
    with pytest.raises(Exception, match="no job"):
        read_job(store, preview.id)
    assert read_job_tasks(store, preview).items == []
    assert len(read_job_tasks(store, job, limit=3).items) == 3
