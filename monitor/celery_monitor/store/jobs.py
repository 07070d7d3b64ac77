"""Bulk jobs: choosing their tasks, reading their progress, and their steps.

A step is one transaction of whoever has the lease of the job; without the lease it is refused. Before a batch goes to
the broker its tasks are marked as being sent, with links to the new ones; afterwards they get their outcomes. So a
process that dies in between leaves exactly one batch in doubt, which the job names.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid4, uuid5

import msgspec
from sqlalchemy import Connection, Row, bindparam, delete, func, or_, select, update

from celery_monitor.core.filters.parser import Filter
from celery_monitor.errors import Conflict, InvalidInput, NotFound
from celery_monitor.records.job import Job, JobOutcome, JobPreview, JobReason, JobState, JobTask
from celery_monitor.records.page import Action, ListPage
from celery_monitor.records.task import Task, TaskState
from celery_monitor.store import schema
from celery_monitor.store.actions import put_action
from celery_monitor.store.engine import Store
from celery_monitor.store.schema import JOB_OUTCOME_CODES, STATES
from celery_monitor.store.tasks.keys import Cursor, from_key, read_cursor, to_key, write_cursor
from celery_monitor.store.tasks.page import Position, select_tasks
from celery_monitor.store.tasks.rows import read_tasks
from celery_monitor.store.tasks.where import SENT
from celery_monitor.store.terms import cluster_id, cluster_ids, cluster_names

MOST_TASKS = 1_000_000  # of one job
PREVIEW_SECONDS = 3600.0  # until an unconfirmed preview is deleted
KEEP_SECONDS = 30 * 86_400.0  # until the tasks of an ended job are deleted
_CHUNK = 1000
_BEGINNING: Position = (float("-inf"), -1)
_OUTCOMES = {code: outcome for outcome, code in JOB_OUTCOME_CODES.items()}
_list_columns = [column for column in schema.task.c if column.name != "traceback"]
_COPIED = (
    "id", "token", "verb", "query", "at", "actor", "reason", "rate", "total", "position", "started", "ended",
    "message", "batch",
)  # fmt: skip
_job = schema.job.c
_member = schema.job_task.c


class Member(NamedTuple):
    """A task of a job, as it is now; ``None`` where it was deleted. ``was``: its state when it was chosen."""

    number: int
    id: str
    was: TaskState
    task: Task | None


def sent_as(job: Job, task_id: str) -> str:
    """The id under which a job sends a task again: always the same one, so that it cannot be sent as two."""
    return str(uuid5(UUID(job.token), task_id))


def create_job(
    store: Store,
    cluster: str,
    verb: Literal["retry", "revoke"],
    wanted: Filter,
    query: str,
    actor: str,
    token: str | None = None,
    *,
    include_retried: bool = False,
) -> Job:
    """Chooses the tasks that match now, in one snapshot; returns the job as a preview.

    ``wanted`` must be limited to this cluster; a ``token`` is of one job only. Raises InvalidInput for too many tasks,
    Conflict while another request creates the job of the token. A job whose choosing was interrupted stays
    ``preparing`` and cannot be started.
    """
    now = time.time()
    with store.begin() as connection:
        values = {
            "token": token or str(uuid4()),
            "cluster_id": cluster_id(store, connection, cluster),
            "verb": verb,
            "query": query,
            "at": wanted.now or now,
            "actor": actor,
            "state": JobState.PREPARING.value,
            "include_retried": int(include_retried),
        }
        statement = store.insert(schema.job).values(values).on_conflict_do_nothing()
        number = connection.execute(statement.returning(_job.id)).scalar()
    if number is None:
        raise Conflict("The same request is in progress. Repeat it in a moment to get its job.")
    total = _choose(store, number, wanted)
    with store.begin() as connection:
        ready = {"state": JobState.PREVIEW.value, "total": total}
        connection.execute(update(schema.job).where(_job.id == number).values(ready))
    return read_job(store, number)


def _choose(store: Store, number: int, wanted: Filter) -> int:
    total = 0
    for rows in _matching(store, wanted):
        if total + len(rows) > MOST_TASKS:
            delete_job(store, number)
            raise InvalidInput(f"More than {MOST_TASKS} tasks match; narrow the filter and do it in parts.")
        members = [
            {"job_id": number, "number": total + place, "key": row.key, "state": row.state}
            for place, row in enumerate(rows)
        ]
        with store.begin() as connection:
            connection.execute(schema.job_task.insert(), members)
        total += len(rows)
    return total


def _matching(store: Store, wanted: Filter) -> Iterator[Sequence[Any]]:
    """Every task that matches, in one snapshot, the oldest first, in chunks."""
    table = schema.task.c
    with store.read() as connection:
        selection = select_tasks(connection, wanted, MOST_TASKS)
        place = _BEGINNING
        while True:
            found = selection.positions(_CHUNK, before=place).subquery()
            statement = select(table.key, table.state, found.c.sort_time, found.c.id).join(
                found, table.id == found.c.id
            )
            rows = connection.execute(statement.order_by(found.c.sort_time, found.c.id)).all()
            if not rows:
                return
            yield rows
            place = (rows[-1].sort_time, rows[-1].id)


def delete_job(store: Store, number: int) -> None:
    """Deletes a job that was never started."""
    with store.begin() as connection:
        _delete(connection, [number])


def _delete(connection: Connection, numbers: Sequence[int]) -> None:
    for table in (schema.job_task, schema.job_outcome):
        connection.execute(delete(table).where(table.c.job_id.in_(numbers)))
    connection.execute(delete(schema.job).where(_job.id.in_(numbers)))


def tidy_jobs(store: Store, now: float) -> None:
    """Deletes unconfirmed previews, and the tasks of jobs that ended long ago."""
    with store.read() as connection:
        unconfirmed = _job.state.in_([JobState.PREPARING.value, JobState.PREVIEW.value])
        previews = connection.execute(select(_job.id).where(unconfirmed, _job.at < now - PREVIEW_SECONDS))
        stale = list(previews.scalars())
        ended = connection.execute(select(_job.id).where(_job.ended < now - KEEP_SECONDS, _job.position >= 0))
        old = list(ended.scalars())
    if stale or old:
        with store.begin() as connection:
            _delete(connection, stale)
            connection.execute(delete(schema.job_task).where(_member.job_id.in_(old)))
            connection.execute(update(schema.job).where(_job.id.in_(old)).values(position=-1))


def save_preview(store: Store, number: int, preview: JobPreview) -> None:
    with store.begin() as connection:
        text = msgspec.json.encode(preview).decode()
        connection.execute(update(schema.job).where(_job.id == number).values(preview=text))


def read_job(store: Store, number: int) -> Job:
    """One job. Raises NotFound."""
    with store.read() as connection:
        found = _jobs(connection, select(schema.job).where(_job.id == number))
    if not found:
        raise NotFound(f"There is no job {number}; an unconfirmed preview is deleted after an hour.")
    return found[0]


def job_of(store: Store, token: str) -> Job | None:
    """The job that has this token."""
    with store.read() as connection:
        found = _jobs(connection, select(schema.job).where(_job.token == token))
    return found[0] if found else None


def read_jobs(store: Store, *, limit: int = 20, cluster: str | None = None) -> list[Job]:
    """Started jobs, the newest first."""
    previews = [JobState.PREPARING.value, JobState.PREVIEW.value]
    with store.read() as connection:
        statement = select(schema.job).where(_job.state.not_in(previews))
        if cluster is not None:
            statement = statement.where(_job.cluster_id.in_(cluster_ids(connection, cluster)))
        return _jobs(connection, statement.order_by(_job.id.desc()).limit(limit))


def _jobs(connection: Connection, statement: Any) -> list[Job]:
    clusters = cluster_names(connection)
    return [
        Job(
            **{name: getattr(row, name) for name in _COPIED},
            cluster=clusters[row.cluster_id],
            include_retried=bool(row.include_retried),
            state=JobState(row.state),
            preview=msgspec.json.decode(row.preview, type=JobPreview),
            reasons=_reasons(connection, row.id),
        )
        for row in connection.execute(statement).all()
    ]


def _reasons(connection: Connection, number: int) -> tuple[JobReason, ...]:
    table = schema.job_outcome.c
    statement = select(table.outcome, table.reason, table.count).where(table.job_id == number, table["count"] > 0)
    rows = connection.execute(statement.order_by(table["count"].desc())).all()
    return tuple(JobReason(outcome=_OUTCOMES[row[0]], reason=row[1], count=row[2]) for row in rows)


def read_job_tasks(
    store: Store, found: Job, *, outcome: JobOutcome | None = None, limit: int = 50, cursor: str | None = None
) -> ListPage[JobTask]:
    """The tasks of a job with their outcomes, in the order of sending."""
    place = read_cursor(cursor, "job").id if cursor is not None else -1
    statement = select(schema.job_task).where(_member.job_id == found.id, _member.number > place)
    if outcome is not None:
        statement = statement.where(_member.outcome == JOB_OUTCOME_CODES[outcome])
    with store.read() as connection:
        rows = connection.execute(statement.order_by(_member.number).limit(limit + 1)).all()
    more, rows = len(rows) > limit, rows[:limit]
    end = write_cursor(Cursor("job", "next", rows[-1].number, rows[-1].number)) if more else None
    return ListPage(items=[_job_task(found, row) for row in rows], next=end)


def _job_task(found: Job, row: Row[Any]) -> JobTask:
    task_id = from_key(row.key)
    outcome = _OUTCOMES[row.outcome]
    sent = found.verb == "retry" and outcome in SENT
    return JobTask(id=task_id, outcome=outcome, reason=row.reason, new_id=sent_as(found, task_id) if sent else None)


def next_members(store: Store, found: Job, limit: int) -> list[Member]:
    """The next tasks without an outcome."""
    open_ones = (_member.number >= found.position, _member.outcome == JOB_OUTCOME_CODES[JobOutcome.WAITING])
    return _members(store, found, select(schema.job_task).where(*open_ones).limit(limit))


def sample_members(store: Store, found: Job, most: int) -> list[Member]:
    """At most ``most`` tasks, evenly from the first to the last."""
    step = max(1, -(-found.total // most))
    return _members(store, found, select(schema.job_task).where(_member.number % step == 0).limit(most))


def _members(store: Store, found: Job, statement: Any) -> list[Member]:
    with store.read() as connection:
        rows = connection.execute(statement.where(_member.job_id == found.id).order_by(_member.number)).all()
        keys = [bytes(row.key) for row in rows]
        tasks = {task.id: task for task in _tasks(connection, found.cluster, keys)}
    ids = [from_key(key) for key in keys]
    return [Member(row.number, each, STATES[row.state], tasks.get(each)) for row, each in zip(rows, ids, strict=True)]


def _tasks(connection: Connection, cluster: str, keys: Sequence[bytes]) -> Iterator[Task]:
    numbers = cluster_ids(connection, cluster)
    table = schema.task.c
    for start in range(0, len(keys), _CHUNK):
        mine = (table.cluster_id.in_(numbers), table.key.in_(keys[start : start + _CHUNK]))
        yield from read_tasks(connection, select(*_list_columns).where(*mine))


def states_of(store: Store, found: Job) -> dict[TaskState, int]:
    """A job's tasks by their state when they were chosen."""
    statement = select(_member.state, func.count()).where(_member.job_id == found.id).group_by(_member.state)
    with store.read() as connection:
        return {STATES[code]: number for code, number in connection.execute(statement).all()}


def set_include_retried(store: Store, number: int, include: bool) -> None:
    """Sets whether a preview includes tasks that were retried before; ignored once the job is started."""
    with store.begin() as connection:
        changed = update(schema.job).where(_job.id == number, _job.state == JobState.PREVIEW.value)
        connection.execute(changed.values(include_retried=int(include)))


def retried_before(store: Store, found: Job) -> int:
    """How many of a job's tasks were retried before, under another id."""
    retry = schema.retry.c
    clusters = select(_job.cluster_id).where(_job.id == found.id).scalar_subquery()
    mine = (retry.cluster_id == clusters, retry.key == _member.key, retry.new_key != retry.key)
    again = select(retry.key).where(*mine).exists()
    with store.read() as connection:
        counted = select(func.count()).select_from(schema.job_task).where(_member.job_id == found.id, again)
        return connection.execute(counted).scalar_one()


ALREADY = "retried by somebody else after these tasks were chosen"
_OPEN = [JobState.WAITING.value, JobState.RUNNING.value, JobState.STOPPING.value]
_SENDING = JOB_OUTCOME_CODES[JobOutcome.SENDING]
_WAITING = JOB_OUTCOME_CODES[JobOutcome.WAITING]
_retry = schema.retry.c


class JobLeaseLost(Exception):
    """Another process runs the job now: the lease expired."""


class JobLease(NamedTuple):
    """The right to run a job: its owner, and the seconds for which each step renews it."""

    store: Store
    job: int
    owner: str
    seconds: float


class SentTask(NamedTuple):
    """A task to be sent again."""

    number: int
    id: str
    new_id: str
    fidelity: str


class EndedTask(NamedTuple):
    """The outcome of a task. ``counted_as`` is the reason without the parts that differ from task to task."""

    number: int
    outcome: JobOutcome
    reason: str = ""
    counted_as: str = ""


def start_job(store: Store, number: int, actor: str, reason: str | None, rate: float | None) -> bool:
    """Confirms a preview; False where it was confirmed before."""
    confirmed = {"state": JobState.WAITING.value, "actor": actor, "reason": reason, "rate": rate}
    with store.begin() as connection:
        changed = update(schema.job).where(_job.id == number, _job.state == JobState.PREVIEW.value)
        return connection.execute(changed.values(confirmed)).rowcount == 1


def stop_job(store: Store, number: int, message: str) -> bool:
    """Requests the end of a job; False where it has ended or is stopping already."""
    with store.begin() as connection:
        running = _job.state.in_([JobState.WAITING.value, JobState.RUNNING.value])
        changed = update(schema.job).where(_job.id == number, running)
        return connection.execute(changed.values(state=JobState.STOPPING.value, message=message)).rowcount == 1


def claim_job(store: Store, clusters: Collection[str], owner: str, now: float, seconds: float) -> Job | None:
    """Acquires the lease of a job of these clusters that nobody has; ``None`` where there is none."""
    free = (_job.state.in_(_OPEN), or_(_job.owner.is_(None), _job.lease < now))
    here = _job.cluster_id.in_(select(schema.cluster.c.id).where(schema.cluster.c.name.in_(list(clusters))))
    with store.read() as connection:
        numbers = list(connection.execute(select(_job.id).where(*free, here).order_by(_job.id)).scalars())
    for number in numbers:
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
    """Renews the lease and stores a message on the progress; returns the job's state. Raises JobLeaseLost."""
    with lease.store.begin() as connection:
        return _renew(connection, lease, now, message)


def _renew(connection: Connection, lease: JobLease, now: float, message: str | None = None) -> JobState:
    mine = (_job.id == lease.job, _job.owner == lease.owner)
    renewed = update(schema.job).where(*mine).values({"lease": now + lease.seconds})
    if connection.execute(renewed).rowcount != 1:
        raise JobLeaseLost
    state = JobState(connection.execute(select(_job.state).where(*mine)).scalar_one())
    if state is not JobState.STOPPING:  # its message says who stopped it
        connection.execute(update(schema.job).where(*mine).values(message=message))
    return state


def begin_batch(
    lease: JobLease, job: Job, token: str, batch: Sequence[SentTask], skipped: Sequence[EndedTask], now: float
) -> list[SentTask] | None:
    """Marks tasks as being sent and links them to the new ones; returns those to send now.

    Left out are those that somebody else has retried since they were chosen; ``skipped`` cannot be sent, and get their
    outcomes. ``None`` where the job is being stopped. Raises JobLeaseLost.
    """
    with lease.store.begin() as connection:
        if _renew(connection, lease, now) is JobState.STOPPING:
            return None
        number = cluster_id(lease.store, connection, job.cluster)
        # Locked, as two jobs might check at the same time whether the other has sent a task.
        connection.execute(select(schema.cluster.c.id).where(schema.cluster.c.id == number).with_for_update())
        others = _sent_by_others(connection, number, job.at, batch)
        sent = [each for each in batch if each.id not in others]
        retried = [EndedTask(each.number, JobOutcome.SKIPPED, ALREADY) for each in batch if each.id in others]
        _end(lease, connection, [*skipped, *retried])
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
    """Stores outcomes: every task before ``position`` has its outcome then.

    ``not_sent`` are the new ids of tasks that the broker certainly did not accept. Raises JobLeaseLost.
    """
    with lease.store.begin() as connection:
        state = _renew(connection, lease, now)
        _end(lease, connection, ended)
        _unlink(connection, cluster_id(lease.store, connection, job.cluster), not_sent)
        done = {"batch": None, "position": position}
        connection.execute(update(schema.job).where(_job.id == lease.job).values(done))
        return state


def tasks_being_sent(lease: JobLease) -> list[tuple[int, str]]:
    """Number and id of the tasks whose batch has begun and not ended."""
    statement = select(_member.number, _member.key).where(_member.job_id == lease.job, _member.outcome == _SENDING)
    with lease.store.read() as connection:
        return [(row.number, from_key(row.key)) for row in connection.execute(statement)]


def reset_batch(
    lease: JobLease, job: Job, batch: Sequence[tuple[int, str]], new_ids: Sequence[str], now: float
) -> None:
    """Puts a batch back that the broker certainly did not accept. Raises JobLeaseLost."""
    with lease.store.begin() as connection:
        _renew(connection, lease, now)
        _mark(connection, lease.job, [number for number, _ in batch], _WAITING)
        _unlink(connection, cluster_id(lease.store, connection, job.cluster), new_ids)
        connection.execute(update(schema.job).where(_job.id == lease.job).values(batch=None))


def finish_job(lease: JobLease, state: JobState, message: str, action: Action) -> None:
    """Ends a job and records its action. Raises JobLeaseLost."""
    with lease.store.begin() as connection:
        _renew(connection, lease, action.at)
        ended = {"state": state.value, "ended": action.at, "message": message, "owner": None, "lease": None}
        connection.execute(update(schema.job).where(_job.id == lease.job).values(ended))
        put_action(lease.store, connection, action)


def release(lease: JobLease) -> None:
    """Gives up the lease, so that another process need not wait until it expires."""
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
    others = [
        {"of_number": each.number, "new_outcome": JOB_OUTCOME_CODES[each.outcome], "new_reason": each.reason}
        for each in ended
        if each.reason or each.outcome is not JobOutcome.DONE
    ]
    if others:
        changed = update(schema.job_task).where(_member.job_id == lease.job, _member.number == bindparam("of_number"))
        changed = changed.values(outcome=bindparam("new_outcome"), reason=bindparam("new_reason"))
        connection.execute(changed, others)
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


def _chunks(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK)]
