"""The tasks that a job made of those it was given: what ``job:7`` finds, and how many of them are in which state."""

from sqlalchemy import ColumnElement
from sqlalchemy import Connection
from sqlalchemy import ScalarSelect
from sqlalchemy import Select
from sqlalchemy import and_
from sqlalchemy import any_
from sqlalchemy import case
from sqlalchemy import func
from sqlalchemy import select

from monitor.records import Job
from monitor.records import JobOutcome
from monitor.records import TaskState
from monitor.store import schema
from monitor.store.engine import Store
from monitor.store.rows import STATES
from monitor.store.schema import JOB_OUTCOME_CODES

SENT = (JobOutcome.SENDING, JobOutcome.DONE, JobOutcome.UNCONFIRMED)
_job = schema.job.c
_member = schema.job_task.c
_task = schema.task.c


def in_job(number: int) -> ColumnElement[bool]:
    """The task was sent again by this job, under whatever id, or revoked by it."""
    # Both columns in one row value and SQLite would look at every task of the cluster.
    return and_(_task.cluster_id == _cluster(number), _task.key.in_(_keys_alone(number)))


def just_those_of_job(number: int, *, is_sqlite: bool) -> ColumnElement[bool]:
    """The same tasks where nothing else narrows the search: each is looked up by its key.

    PostgreSQL would sort the keys of ``in_job`` and then read every task; it would search an array for each row of
    another path.
    """
    if is_sqlite:
        return in_job(number)
    keys = func.array(_keys_alone(number).scalar_subquery())
    return and_(_task.cluster_id == _cluster(number), _task.key == any_(keys))


def _cluster(number: int) -> ScalarSelect[int]:
    return select(_job.cluster_id).where(_job.id == number).scalar_subquery()


def _keys_alone(number: int) -> Select[tuple[bytes]]:
    keys = _keys(number).subquery()
    return select(keys.c.key)


def states_of_sent(store: Store, job: Job) -> dict[TaskState, int]:
    """How many of the tasks that a job sent again, or revoked, are in which state; of some nothing may be known yet."""
    with store.read() as connection:
        return _states(connection, job.id)


def _states(connection: Connection, number: int) -> dict[TaskState, int]:
    keys = _keys(number).subquery()
    same = and_(_task.cluster_id == keys.c.cluster_id, _task.key == keys.c.key)
    counted = select(_task.state, func.count()).select_from(keys.join(schema.task, same)).group_by(_task.state)
    return {STATES[code]: many for code, many in connection.execute(counted).all()}


def _keys(number: int) -> Select[tuple[int, bytes]]:
    """Where a task was sent again several times, the job's is the first since its tasks were chosen: it skips those
    that somebody else sent meanwhile."""
    link, earlier = schema.retry.alias("link"), schema.retry.alias("earlier")
    since = and_(link.c.cluster_id == _job.cluster_id, link.c.key == _member.key, link.c.at >= _job.at)
    mine = (earlier.c.cluster_id == link.c.cluster_id, earlier.c.key == link.c.key)
    others = select(earlier.c.at).where(*mine, earlier.c.at >= _job.at, earlier.c.at < link.c.at).exists()
    key = case((_job.verb == "retry", link.c.new_key), else_=_member.key).label("key")
    members = schema.job.join(schema.job_task, _member.job_id == _job.id).outerjoin(link, since)
    chosen = (_job.id == number, _member.outcome.in_([JOB_OUTCOME_CODES[each] for each in SENT]))
    return select(_job.cluster_id, key).select_from(members).where(*chosen, ~others)
