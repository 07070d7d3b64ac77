"""Bulk actions: choosing their tasks once and for all, and reading how far they are."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid4, uuid5

import msgspec
from sqlalchemy import Connection, Row, delete, func, select, update

from celery_monitor.core.filters.parser import Filter
from celery_monitor.errors import Conflict, InvalidInput, NotFound
from celery_monitor.records.job import Job, JobOutcome, JobPreview, JobReason, JobState, JobTask
from celery_monitor.records.page import ListPage
from celery_monitor.records.task import Task, TaskState
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.schema import JOB_OUTCOME_CODES
from celery_monitor.store.tasks.keys import from_key, to_key
from celery_monitor.store.tasks.page import Cursor, Position, read_cursor, select_tasks, write_cursor
from celery_monitor.store.tasks.rows import STATES, cluster_names, read_tasks
from celery_monitor.store.terms import cluster_id

MOST_TASKS = 1_000_000  # of one job
PREVIEW_SECONDS = 3600.0  # for which somebody may think about it
KEEP_SECONDS = 30 * 86_400.0  # for which each task of a job that has ended is remembered
_CHUNK = 1000
_BEGINNING: Position = (float("-inf"), -1)
_OUTCOMES = {code: outcome for outcome, code in JOB_OUTCOME_CODES.items()}
_list_columns = [column for column in schema.task.c if column.name != "traceback"]
_job = schema.job.c
_member = schema.job_task.c


class Member(NamedTuple):
    """A task of a job as the record has it now: ``None`` when it is no longer kept. ``was``: its state when chosen."""

    number: int
    id: str
    was: TaskState
    task: Task | None


def sent_as(job: Job, task_id: str) -> str:
    """The id under which a job sends a task again: always the same one, so that nobody can make two of it."""
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
    """Chooses the tasks that match now, all at one moment; gives the job as a preview.

    ``wanted`` must be about this cluster alone; two jobs never have one ``token``. Raises InvalidInput for too many
    tasks, and Conflict where somebody else makes a job of the same token at this moment. A job that is not chosen to
    its end stays ``preparing``, and nobody can start it.
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
        raise Conflict("The same request is under way. Ask again in a moment, and you are told its job.")
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
            raise InvalidInput(f"More than {MOST_TASKS} tasks match: narrow the filter, and do it in parts.")
        members = [
            {"job_id": number, "number": total + place, "key": row.key, "state": row.state}
            for place, row in enumerate(rows)
        ]
        with store.begin() as connection:
            connection.execute(schema.job_task.insert(), members)
        total += len(rows)
    return total


def _matching(store: Store, wanted: Filter) -> Iterator[Sequence[Any]]:
    """Every task that matches at one moment, the oldest first, in chunks."""
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
    """Forgets a job that never began."""
    with store.begin() as connection:
        _delete(connection, [number])


def _delete(connection: Connection, numbers: Sequence[int]) -> None:
    for table in (schema.job_task, schema.job_outcome):
        connection.execute(delete(table).where(table.c.job_id.in_(numbers)))
    connection.execute(delete(schema.job).where(_job.id.in_(numbers)))


def tidy_jobs(store: Store, now: float) -> None:
    """Forgets previews that nobody confirmed, and the single tasks of jobs that ended long ago."""
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
    """One job with the most common reasons of its outcomes. Raises NotFound."""
    with store.read() as connection:
        found = _jobs(connection, select(schema.job).where(_job.id == number))
    if not found:
        raise NotFound(f"There is no job {number}; a preview that nobody confirms is forgotten after an hour.")
    return found[0]


def job_of(store: Store, token: str) -> Job | None:
    """The job that has this token."""
    with store.read() as connection:
        found = _jobs(connection, select(schema.job).where(_job.token == token))
    return found[0] if found else None


def read_jobs(store: Store, *, limit: int = 20, cluster: str | None = None) -> list[Job]:
    """The newest jobs that were started, the newest first."""
    previews = [JobState.PREPARING.value, JobState.PREVIEW.value]
    with store.read() as connection:
        statement = select(schema.job).where(_job.state.not_in(previews))
        if cluster is not None:
            numbers = [key for key, name in cluster_names(connection).items() if name == cluster]
            statement = statement.where(_job.cluster_id.in_(numbers))
        return _jobs(connection, statement.order_by(_job.id.desc()).limit(limit))


def _jobs(connection: Connection, statement: Any) -> list[Job]:
    clusters = cluster_names(connection)
    return [
        Job(
            id=row.id,
            token=row.token,
            cluster=clusters[row.cluster_id],
            verb=row.verb,
            query=row.query,
            at=row.at,
            actor=row.actor,
            reason=row.reason,
            rate=row.rate,
            include_retried=bool(row.include_retried),
            state=JobState(row.state),
            total=row.total,
            position=row.position,
            preview=msgspec.json.decode(row.preview, type=JobPreview),
            started=row.started,
            ended=row.ended,
            message=row.message,
            batch=row.batch,
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
    """What came of each task, in the order in which they are taken."""
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
    sent = found.verb == "retry" and outcome in {JobOutcome.SENDING, JobOutcome.DONE, JobOutcome.UNCONFIRMED}
    return JobTask(id=task_id, outcome=outcome, reason=row.reason, new_id=sent_as(found, task_id) if sent else None)


def next_members(store: Store, found: Job, limit: int) -> list[Member]:
    """The next tasks without an outcome."""
    open_ones = (_member.number >= found.position, _member.outcome == JOB_OUTCOME_CODES[JobOutcome.WAITING])
    return _members(store, found, select(schema.job_task).where(*open_ones).limit(limit))


def sample_members(store: Store, found: Job, most: int) -> list[Member]:
    """At most so many tasks, evenly from the first to the last; all where they are no more."""
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
    numbers = [key for key, name in cluster_names(connection).items() if name == cluster]
    table = schema.task.c
    for start in range(0, len(keys), _CHUNK):
        mine = (table.cluster_id.in_(numbers), table.key.in_(keys[start : start + _CHUNK]))
        yield from read_tasks(connection, select(*_list_columns).where(*mine))


def seen_ids(store: Store, found: Job, ids: Sequence[str]) -> set[str]:
    """Those of these ids that are in the record."""
    with store.read() as connection:
        return {task.id for task in _tasks(connection, found.cluster, [to_key(each) for each in ids])}


def states_of(store: Store, found: Job) -> dict[TaskState, int]:
    """How many of a job's tasks were in which state when they were chosen."""
    statement = select(_member.state, func.count()).where(_member.job_id == found.id).group_by(_member.state)
    with store.read() as connection:
        return {STATES[code]: number for code, number in connection.execute(statement).all()}


def set_include_retried(store: Store, number: int, include: bool) -> None:
    """Whether a preview's job sends tasks that were retried before; a job that was started stays as it is."""
    with store.begin() as connection:
        changed = update(schema.job).where(_job.id == number, _job.state == JobState.PREVIEW.value)
        connection.execute(changed.values(include_retried=int(include)))


def retried_before(store: Store, found: Job) -> int:
    """How many of a job's tasks somebody has retried before, under another id."""
    retry = schema.retry.c
    clusters = select(_job.cluster_id).where(_job.id == found.id).scalar_subquery()
    mine = (retry.cluster_id == clusters, retry.key == _member.key, retry.new_key != retry.key)
    again = select(retry.key).where(*mine).exists()
    with store.read() as connection:
        counted = select(func.count()).select_from(schema.job_task).where(_member.job_id == found.id, again)
        return connection.execute(counted).scalar_one()
