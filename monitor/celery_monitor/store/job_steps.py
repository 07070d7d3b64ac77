"""The steps of a job, each one transaction: whoever works at it holds a lease, and a step without one is refused.

Before a batch goes to the broker its tasks are marked as on their way, with the links to the new ones; after it they
have their outcomes. So a process that dies in between leaves exactly one batch in doubt, and the job says which.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeVar

from sqlalchemy import Connection, bindparam, delete, or_, select, update

from celery_monitor.records.job import Job, JobOutcome, JobState
from celery_monitor.records.page import Action
from celery_monitor.store import schema
from celery_monitor.store.actions import put_action
from celery_monitor.store.engine import Store
from celery_monitor.store.jobs import read_job
from celery_monitor.store.schema import JOB_OUTCOME_CODES
from celery_monitor.store.tasks.keys import from_key, to_key
from celery_monitor.store.terms import cluster_id

T = TypeVar("T")
ALREADY = "somebody retried it after these tasks were chosen"
_CHUNK = 500
_OPEN = [JobState.WAITING.value, JobState.RUNNING.value, JobState.STOPPING.value]
_SENDING = JOB_OUTCOME_CODES[JobOutcome.SENDING]
_WAITING = JOB_OUTCOME_CODES[JobOutcome.WAITING]
_job = schema.job.c
_member = schema.job_task.c
_retry = schema.retry.c


class JobLeaseLost(Exception):
    """Somebody else works at the job now, because we were silent for too long."""


class JobLease(NamedTuple):
    """The right to work at a job: whose, and for how many seconds from each step on."""

    store: Store
    job: int
    owner: str
    seconds: float


class SentTask(NamedTuple):
    """A task that is about to be sent again."""

    number: int
    id: str
    new_id: str
    fidelity: str


class EndedTask(NamedTuple):
    """What came of a task. ``counted_as`` is the reason without what differs from task to task."""

    number: int
    outcome: JobOutcome
    reason: str = ""
    counted_as: str = ""


def start_job(store: Store, number: int, actor: str, reason: str | None, rate: float | None) -> bool:
    """Says yes to a preview; False where somebody has said so before."""
    confirmed = {"state": JobState.WAITING.value, "actor": actor, "reason": reason, "rate": rate}
    with store.begin() as connection:
        changed = update(schema.job).where(_job.id == number, _job.state == JobState.PREVIEW.value)
        return connection.execute(changed.values(confirmed)).rowcount == 1


def stop_job(store: Store, number: int, message: str) -> bool:
    """Asks for the end of a job; False where it has ended, or is ending already."""
    with store.begin() as connection:
        running = _job.state.in_([JobState.WAITING.value, JobState.RUNNING.value])
        changed = update(schema.job).where(_job.id == number, running)
        return connection.execute(changed.values(state=JobState.STOPPING.value, message=message)).rowcount == 1


def claim_job(store: Store, clusters: Collection[str], owner: str, now: float, seconds: float) -> Job | None:
    """A job of these clusters at which nobody works, now ours; ``None`` where there is none."""
    free = (_job.state.in_(_OPEN), or_(_job.owner.is_(None), _job.lease < now))
    here = _job.cluster_id.in_(select(schema.cluster.c.id).where(schema.cluster.c.name.in_(list(clusters))))
    with store.read() as connection:
        wanted = list(connection.execute(select(_job.id).where(*free, here).order_by(_job.id)).scalars())
    for number in wanted:
        with store.begin() as connection:
            mine = {"owner": owner, "lease": now + seconds}
            if connection.execute(update(schema.job).where(_job.id == number, *free).values(mine)).rowcount:
                begun = {"state": JobState.RUNNING.value, "started": now}
                first = update(schema.job).where(_job.id == number, _job.state == JobState.WAITING.value)
                connection.execute(first.values(begun))
                break
    else:
        return None
    return read_job(store, number)


def renew(lease: JobLease, now: float, message: str | None = None) -> JobState:
    """Keeps the job, and says how it goes; gives its state. Raises LeaseLost."""
    with lease.store.begin() as connection:
        return _hold(connection, lease, now, message)


def _hold(connection: Connection, lease: JobLease, now: float, message: str | None = None) -> JobState:
    mine = (_job.id == lease.job, _job.owner == lease.owner)
    held = update(schema.job).where(*mine).values({"lease": now + lease.seconds})
    if connection.execute(held).rowcount != 1:
        raise JobLeaseLost
    state = JobState(connection.execute(select(_job.state).where(*mine)).scalar_one())
    if state is not JobState.STOPPING:  # then it says who stopped it
        connection.execute(update(schema.job).where(*mine).values(message=message))
    return state


def begin_batch(
    lease: JobLease, job: Job, token: str, batch: Sequence[SentTask], skipped: Sequence[EndedTask], now: float
) -> list[SentTask] | None:
    """Marks tasks as on their way, and links them to the new ones; gives those that may be sent now.

    Somebody else may have sent one again since they were chosen: it is skipped, as are
    those that cannot be sent (``skipped``). ``None`` where the job is being stopped. Raises LeaseLost.
    """
    with lease.store.begin() as connection:
        if _hold(connection, lease, now) is JobState.STOPPING:
            return None
        number = cluster_id(lease.store, connection, job.cluster)
        # Two jobs must not look at the same time whether the other has sent a task.
        connection.execute(select(schema.cluster.c.id).where(schema.cluster.c.id == number).with_for_update())
        others = _sent_by_others(connection, number, job.at, batch)
        sent = [each for each in batch if each.id not in others]
        again = [EndedTask(each.number, JobOutcome.SKIPPED, ALREADY) for each in batch if each.id in others]
        _end(lease, connection, [*skipped, *again])
        _mark(connection, lease.job, [each.number for each in sent], _SENDING)
        _link(lease.store, connection, number, sent, now)
        connection.execute(update(schema.job).where(_job.id == lease.job).values(batch=token if sent else None))
        return sent


def _sent_by_others(connection: Connection, number: int, since: float, batch: Sequence[SentTask]) -> set[str]:
    ours = {to_key(each.new_id) for each in batch}
    found: set[str] = set()
    for keys in _chunks([to_key(each.id) for each in batch]):
        again = (_retry.cluster_id == number, _retry.key.in_(keys), _retry.at >= since)
        rows = connection.execute(select(_retry.key, _retry.new_key).where(*again))
        found.update(from_key(row.key) for row in rows if bytes(row.new_key) not in ours)
    return found


def _link(store: Store, connection: Connection, number: int, batch: Sequence[SentTask], now: float) -> None:
    links = [
        {
            "cluster_id": number,
            "key": to_key(each.id),
            "new_key": to_key(each.new_id),
            "at": now,
            "fidelity": each.fidelity,
        }
        for each in batch
    ]
    if links:
        connection.execute(store.insert(schema.retry).on_conflict_do_nothing(), links)


def _unlink(connection: Connection, number: int, new_ids: Sequence[str]) -> None:
    for keys in _chunks([to_key(each) for each in new_ids]):
        connection.execute(delete(schema.retry).where(_retry.cluster_id == number, _retry.new_key.in_(keys)))


def end_batch(
    lease: JobLease, job: Job, position: int, ended: Sequence[EndedTask], not_sent: Sequence[str], now: float
) -> JobState:
    """Writes what came of tasks: every one before ``position`` has its outcome then.

    ``not_sent`` are the new ids of tasks that the broker certainly does not have. Raises LeaseLost.
    """
    with lease.store.begin() as connection:
        state = _hold(connection, lease, now)
        _end(lease, connection, ended)
        _unlink(connection, cluster_id(lease.store, connection, job.cluster), not_sent)
        done = {"batch": None, "position": position}
        connection.execute(update(schema.job).where(_job.id == lease.job).values(done))
        return state


def on_their_way(lease: JobLease) -> list[tuple[int, str]]:
    """Number and id of the tasks whose batch was begun and not ended."""
    statement = select(_member.number, _member.key).where(_member.job_id == lease.job, _member.outcome == _SENDING)
    with lease.store.read() as connection:
        return [(row.number, from_key(row.key)) for row in connection.execute(statement)]


def take_back(lease: JobLease, job: Job, batch: Sequence[tuple[int, str]], new_ids: Sequence[str], now: float) -> None:
    """The broker has none of the batch and never will: its tasks wait again. Raises LeaseLost."""
    with lease.store.begin() as connection:
        _hold(connection, lease, now)
        _mark(connection, lease.job, [number for number, _ in batch], _WAITING)
        _unlink(connection, cluster_id(lease.store, connection, job.cluster), new_ids)
        connection.execute(update(schema.job).where(_job.id == lease.job).values(batch=None))


def finish_job(lease: JobLease, state: JobState, message: str, action: Action) -> None:
    """The end of a job, with its entry in the trail of actions, once. Raises LeaseLost."""
    with lease.store.begin() as connection:
        _hold(connection, lease, action.at)
        ended = {"state": state.value, "ended": action.at, "message": message, "owner": None, "lease": None}
        connection.execute(update(schema.job).where(_job.id == lease.job).values(ended))
        put_action(lease.store, connection, action)


def release(lease: JobLease) -> None:
    """Gives an unfinished job back: the next process need not wait for the lease to end."""
    with lease.store.begin() as connection:
        mine = update(schema.job).where(_job.id == lease.job, _job.owner == lease.owner)
        connection.execute(mine.values(owner=None, lease=None))


def _mark(connection: Connection, job: int, numbers: Sequence[int], outcome: int) -> None:
    for chunk in _chunks(numbers):
        changed = update(schema.job_task).where(_member.job_id == job, _member.number.in_(chunk))
        connection.execute(changed.values(outcome=outcome))


def _end(lease: JobLease, connection: Connection, ended: Sequence[EndedTask]) -> None:
    if not ended:
        return
    plain = [each.number for each in ended if each.outcome is JobOutcome.DONE and not each.reason]
    _mark(connection, lease.job, plain, JOB_OUTCOME_CODES[JobOutcome.DONE])
    told = [
        {"its_number": each.number, "its_outcome": JOB_OUTCOME_CODES[each.outcome], "its_reason": each.reason}
        for each in ended
        if each.reason or each.outcome is not JobOutcome.DONE
    ]
    if told:
        changed = update(schema.job_task).where(_member.job_id == lease.job, _member.number == bindparam("its_number"))
        changed = changed.values(outcome=bindparam("its_outcome"), reason=bindparam("its_reason"))
        connection.execute(changed, told)
    _count(lease, connection, ended)


def _count(lease: JobLease, connection: Connection, ended: Sequence[EndedTask]) -> None:
    table = schema.job_outcome
    statement = lease.store.insert(table)
    statement = statement.on_conflict_do_update(
        index_elements=["job_id", "outcome", "reason"],
        set_={"count": table.c["count"] + statement.excluded["count"]},
    )
    counted = Counter((JOB_OUTCOME_CODES[each.outcome], each.counted_as or each.reason) for each in ended)
    rows = [
        {"job_id": lease.job, "outcome": outcome, "reason": reason, "count": number}
        for (outcome, reason), number in counted.items()
    ]
    connection.execute(statement, rows)


def _chunks(values: Sequence[T]) -> list[Sequence[T]]:
    return [values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK)]
