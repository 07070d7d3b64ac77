"""Running bulk jobs: a thread per job, in any web process; if a process dies, another one continues its jobs.

A lease, renewed by every step, decides which process runs a job. What a dead process was sending is settled with the
broker before anything else is sent, so that each task is sent once or reported as unconfirmed; see brokers/batch.py.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from threading import Event, Thread
from typing import Protocol
from uuid import uuid4

from celery_monitor.brokers.batch import BATCH, Batches, batches
from celery_monitor.control.bulk import Skip, plan_all, why_not_bulk_revoke
from celery_monitor.control.commands import Target, find_broker, overall
from celery_monitor.control.retry import PreparedRetry, call_of
from celery_monitor.control.revoke import judge_revoke, send_revoke
from celery_monitor.core.words import counted
from celery_monitor.errors import BrokerUnavailable, MonitorError, StoreUnavailable
from celery_monitor.records.job import Job, JobOutcome, JobState
from celery_monitor.records.page import Action
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.jobs import (
    EndedTask,
    JobLease,
    JobLeaseLost,
    Member,
    SentTask,
    begin_batch,
    claim_job,
    end_batch,
    finish_job,
    next_members,
    read_job,
    release,
    renew,
    reset_batch,
    sent_as,
    tasks_being_sent,
    tidy_jobs,
)
from celery_monitor.store.tasks.unfinished import recorded_ids

log = logging.getLogger(__name__)

LEASE_SECONDS = 10.0
BEAT_SECONDS = 2.0
LOOK_SECONDS = 15.0  # for jobs of processes that have ended; a new one is started at once
TIDY_SECONDS = 600.0
LONGEST_PAUSE_SECONDS = 10.0
MOST_AT_ONCE = 4  # jobs; each has a connection of its own to broker and database
IN_DOUBT = "the dashboard or its connection ended during sending, and this broker cannot tell whether it was sent"


class Runner:
    """Looks for jobs that no process runs, and runs them."""

    def __init__(self, store: Store, settings: Settings, lease_seconds: float = LEASE_SECONDS) -> None:
        self._store = store
        self._settings = settings
        self._lease_seconds = lease_seconds
        self._stopped = Event()
        self._woken = Event()
        self._thread: Thread | None = None
        self._workers: list[Thread] = []

    def start(self) -> None:
        """Starts, or looks for jobs at once if it has started."""
        if self._thread is None and not self._settings.read_only:
            self._stopped.clear()
            self._thread = Thread(target=self._run, name="jobs", daemon=True)
            self._thread.start()
        self._woken.set()

    def stop(self) -> None:
        """Ends after the current batches; the next process continues."""
        self._stopped.set()
        self._woken.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        tidied = float("-inf")
        while not self._stopped.is_set():
            self._woken.clear()
            try:
                while self._start_one():
                    pass
                if time.monotonic() - tidied > TIDY_SECONDS:
                    tidied = time.monotonic()
                    tidy_jobs(self._store, time.time())
            except MonitorError as error:
                log.warning("cannot look for jobs: %s", error.message)
            self._woken.wait(LOOK_SECONDS)
        for worker in self._workers:
            worker.join()

    def _start_one(self) -> bool:
        self._workers = [each for each in self._workers if each.is_alive()]
        if len(self._workers) >= MOST_AT_ONCE or self._stopped.is_set():
            return False
        owner = str(uuid4())
        claimed = claim_job(self._store, self._settings.clusters, owner, time.time(), self._lease_seconds)
        if claimed is None:
            return False
        target = Target(self._store, self._settings, find_broker(self._settings, claimed.cluster))
        lease = JobLease(self._store, claimed.id, owner, self._lease_seconds)
        worker = Thread(target=JobWork(target, lease, self._stopped).run, name=f"job {claimed.id}", daemon=True)
        self._workers.append(worker)
        worker.start()
        return True


class Stopped(Exception):
    """This process ends; another one continues the job."""


class Heartbeat(Protocol):
    """A connection that needs a heartbeat during pauses."""

    def beat(self) -> None: ...


class JobWork:
    """One job, from its claim until it or this process ends."""

    def __init__(self, target: Target, lease: JobLease, stopped: Event) -> None:
        self._target = target
        self._lease = lease
        self._stopped = stopped
        self._due = time.monotonic()
        self._renewed = time.monotonic()
        self.job = read_job(target.store, lease.job)

    def run(self) -> None:
        """Until the job has ended, another process has it, or this one is stopped."""
        pause = 0.5
        while True:
            try:
                self._attempt()
            except JobLeaseLost:
                log.warning("another process is running job %s", self._lease.job)
            except Stopped:
                release(self._lease)
            except (BrokerUnavailable, StoreUnavailable) as error:
                log.warning("job %s waits: %s", self._lease.job, error.message)
                if self._rest(pause, error):
                    pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
                    continue
            except Exception as error:
                log.exception("job %s failed", self._lease.job)
                self._fail(error)
            return

    def _attempt(self) -> None:
        self.job = read_job(self._target.store, self._lease.job)
        if self.job.verb == "revoke":
            self._revoke()
            return
        with batches(self._target.broker, self._target.settings, self.job.token) as sender:
            self._recover(sender)
            self._retry(sender)

    def _retry(self, sender: Batches) -> None:
        size = self._size(sender.size)
        while self._state() is not JobState.STOPPING:
            members = next_members(self._target.store, self.job, size)
            if not members:
                break
            self._send(sender, members)
            self._pace(len(members), sender)
        self._finish()
        sender.end()

    def _send(self, sender: Batches, members: Sequence[Member]) -> None:
        plans = plan_all(self._target, self.job, members)
        prepared = {number: each for number, each in plans.items() if isinstance(each, PreparedRetry)}
        skipped = [
            EndedTask(number, JobOutcome.SKIPPED, each.for_task, each.reason)
            for number, each in plans.items()
            if isinstance(each, Skip)
        ]
        batch = [
            SentTask(number, each.task.id, sent_as(self.job, each.task.id), each.arguments.fidelity)
            for number, each in prepared.items()
        ]
        token = f"{self.job.token}.{uuid4().hex}"
        started = begin_batch(self._lease, self.job, token, batch, skipped, time.time())
        if started is None:
            return
        ended: list[EndedTask] = []
        not_sent: list[str] = []
        if started:
            sending = sender.send_all(token, [call_of(prepared[each.number], each.new_id) for each in started])
            not_sent = list(sending.refused)
            ended = [_ended(each, sending.refused.get(each.new_id), sending.doubt) for each in started]
        self.job.position = members[-1].number + 1
        end_batch(self._lease, self.job, self.job.position, ended, not_sent, time.time())
        self._renewed = time.monotonic()

    def _recover(self, sender: Batches) -> None:
        """Settles the batch that was being sent when a process or a connection ended."""
        if self.job.batch is None:
            return
        lease, now = self._lease, time.time()
        batch = tasks_being_sent(lease)
        taken = sender.settle(self.job.batch)
        new_ids = [sent_as(self.job, task_id) for _, task_id in batch]
        if taken is False:
            reset_batch(lease, self.job, batch, new_ids, now)
            self.job.batch = None
            return
        recorded = set(new_ids) if taken else recorded_ids(self._target.store, self.job.cluster, new_ids)
        ended = [
            EndedTask(number, JobOutcome.DONE)
            if new_id in recorded
            else EndedTask(number, JobOutcome.UNCONFIRMED, IN_DOUBT)
            for (number, _), new_id in zip(batch, new_ids, strict=True)
        ]
        self.job.position = max((number for number, _ in batch), default=self.job.position - 1) + 1
        end_batch(lease, self.job, self.job.position, ended, [], now)
        self.job.batch = None

    def _revoke(self) -> None:
        """A repeated revoke does nothing, so the batch of a crash is simply sent again."""
        size = self._size(BATCH)
        while self._state() is not JobState.STOPPING:
            members = next_members(self._target.store, self.job, size)
            if not members:
                break
            ended = self._revoke_batch(members)
            self.job.position = members[-1].number + 1
            end_batch(self._lease, self.job, self.job.position, ended, [], time.time())
            self._pace(len(members), None)
        self._finish()

    def _revoke_batch(self, members: Sequence[Member]) -> list[EndedTask]:
        refused = {each.number: why for each in members if (why := why_not_bulk_revoke(each)) is not None}
        tasks = {each.number: each.task for each in members if each.number not in refused and each.task is not None}
        ended = [EndedTask(number, JobOutcome.SKIPPED, why) for number, why in refused.items()]
        if tasks:
            answers = send_revoke(self._target, [task.id for task in tasks.values()], False, "SIGTERM")
            for number, task in tasks.items():
                result = judge_revoke(task, answers, terminate=False)
                ended.append(EndedTask(number, JobOutcome(result.outcome), result.message))
        return ended

    def _size(self, most: int) -> int:
        return most if self.job.rate is None else max(1, min(most, int(self.job.rate)))

    def _state(self, message: str | None = None) -> JobState:
        if self._stopped.is_set():
            raise Stopped
        self._renewed = time.monotonic()
        return renew(self._lease, time.time(), message)

    def _pace(self, number: int, connection: Heartbeat | None) -> None:
        """Waits as the rate requires, but renews the lease and notices an abort meanwhile."""
        if self.job.rate is None:
            return
        self._due = max(self._due, time.monotonic() - 1.0) + number / self.job.rate
        while (left := self._due - time.monotonic()) > 0:
            if self._stopped.wait(min(left, BEAT_SECONDS)):
                raise Stopped
            if time.monotonic() - self._renewed >= BEAT_SECONDS:
                if connection is not None:
                    connection.beat()
                if self._state() is JobState.STOPPING:
                    return

    def _rest(self, seconds: float, error: MonitorError) -> bool:
        """Waits before the next attempt; False where there is none."""
        if self._stopped.wait(seconds):
            return False
        try:
            state = self._state(error.message)
            if state is JobState.STOPPING and read_job(self._target.store, self.job.id).batch is None:
                self._finish()
                return False
        except StoreUnavailable as away:
            log.warning("job %s waits: %s", self._lease.job, away.message)
        except JobLeaseLost:
            return False
        return True

    def _finish(self) -> None:
        self.job = read_job(self._target.store, self.job.id)
        aborted = self.job.state is JobState.STOPPING
        counts = outcome_text(self.job)
        message = f"{self.job.message or 'Aborted.'} {counts}" if aborted else counts
        state = JobState.ABORTED if aborted else JobState.DONE
        outcome = "aborted" if aborted else overall([each for each in JobOutcome if self.job.count(each)])
        finish_job(self._lease, state, message, self._action(message, outcome))

    def _fail(self, error: Exception) -> None:
        message = f"{type(error).__name__}: {error}. Tasks not sent yet will not be sent. See the log."
        try:
            finish_job(self._lease, JobState.FAILED, message, self._action(message, "failed"))
        except (JobLeaseLost, StoreUnavailable):
            log.exception("job %s could not be ended", self._lease.job)

    def _action(self, message: str, outcome: str) -> Action:
        counts = Counter[str]()
        for each in self.job.reasons:
            counts[each.outcome.value] += each.count
        return Action(
            at=time.time(),
            actor=self.job.actor,
            action=f"bulk.{self.job.verb}",
            cluster=self.job.cluster,
            query=self.job.query,
            count=self.job.total,
            reason=self.job.reason,
            parameters={"job": self.job.id, **counts},
            outcome=outcome,
            message=f"Job {self.job.id}: {message}",
        )


def _ended(sent: SentTask, refused: str | None, doubt: str | None) -> EndedTask:
    if refused is not None:
        return EndedTask(sent.number, JobOutcome.FAILED, refused)
    return EndedTask(sent.number, JobOutcome.UNCONFIRMED, doubt) if doubt else EndedTask(sent.number, JobOutcome.DONE)


def outcome_text(job: Job) -> str:
    """The results of a job in words: ``31 tasks retried, 2 skipped.``"""
    done = f"{counted(job.count(JobOutcome.DONE), 'task')} {'retried' if job.verb == 'retry' else 'revoked'}"
    others = (JobOutcome.UNCONFIRMED, JobOutcome.SKIPPED, JobOutcome.FAILED)
    counts = [f"{number} {outcome}" for outcome in others if (number := job.count(outcome))]
    left = [f"{job.left} not sent"] if job.left else []
    return f"{', '.join([done, *counts, *left])}."
