"""The tables. Names are stored once in ``term``; a term's id of 0 is *unknown*.

Times are UTC epoch seconds. A task's ``key`` is its id in as few bytes as possible: see tasks/keys.py.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    event,
    false,
    text,
)

from celery_monitor.records.job import JobOutcome
from celery_monitor.records.task import Outcome, TaskState

metadata = MetaData()

# Codes are stored: never renumber, only add.
STATE_CODES: dict[TaskState, int] = {
    TaskState.PENDING: 1,
    TaskState.SCHEDULED: 2,
    TaskState.RECEIVED: 3,
    TaskState.STARTED: 4,
    TaskState.RETRY: 5,
    TaskState.SUCCESS: 6,
    TaskState.FAILURE: 7,
    TaskState.REVOKED: 8,
    TaskState.REJECTED: 9,
    TaskState.LOST: 10,
}
STATES = {code: state for state, code in STATE_CODES.items()}
JOB_OUTCOME_CODES: dict[JobOutcome, int] = {
    JobOutcome.WAITING: 0,
    JobOutcome.SENDING: 1,
    JobOutcome.DONE: 2,
    JobOutcome.SKIPPED: 3,
    JobOutcome.FAILED: 4,
    JobOutcome.UNCONFIRMED: 5,
}
OUTCOME_CODES: dict[Outcome, int] = {
    Outcome.SUCCEEDED: 1,
    Outcome.FAILED: 2,
    Outcome.RETRIED: 3,
    Outcome.REVOKED: 4,
    Outcome.REJECTED: 5,
    Outcome.REQUEUED: 6,
    Outcome.CANCELLED: 7,
    Outcome.LOST: 8,
    Outcome.REPLACED: 9,
}
TERM_KINDS = {"name": 1, "queue": 2, "worker": 3, "client": 4, "exchange": 5, "routing_key": 6}
UNKNOWN = 0

_big = BigInteger().with_variant(Integer, "sqlite")

meta = Table("meta", metadata, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))

cluster = Table(
    "cluster",
    metadata,
    Column("id", SmallInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
)

term = Table(
    "term",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("kind", SmallInteger, nullable=False),
    Column("text", Text, nullable=False),
    UniqueConstraint("kind", "text"),
)


def _run_columns() -> list[Column[object]]:
    """Columns of a run: in ``task`` for the latest one, in ``run`` for the others."""
    return [
        Column("worker_id", Integer, nullable=False, server_default="0"),
        Column("outcome", SmallInteger),
        Column("retries", Integer),
        Column("pid", Integer),
        Column("received", Double),
        Column("started", Double),
        Column("ended", Double),
        Column("eta", Double),
        Column("runtime", Double),
        Column("ready", Double),  # when it could run, if that was before its receipt
    ]


def _run_texts() -> list[Column[object]]:
    return [Column("result", Text), Column("exception", Text), Column("traceback", Text)]


task = Table(
    "task",
    metadata,
    Column("id", _big, primary_key=True, autoincrement=False),
    Column("cluster_id", SmallInteger, nullable=False),
    Column("key", LargeBinary, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("sort_time", Double, nullable=False),  # received, else sent, else the first event: the order of lists
    Column("name_id", Integer, nullable=False, server_default="0"),
    Column("queue_id", Integer, nullable=False, server_default="0"),
    *_run_columns(),
    Column("sent", Double),
    Column("expires", Double),
    Column("client_id", Integer, nullable=False, server_default="0"),
    Column("exchange_id", Integer, nullable=False, server_default="0"),
    Column("routing_key_id", Integer, nullable=False, server_default="0"),
    Column("earlier_runs", SmallInteger, nullable=False, server_default="0"),
    Column("failure_group_id", Integer),
    Column("root", LargeBinary),  # empty: the task is its own root
    Column("parent", LargeBinary),
    Column("args", Text),
    Column("kwargs", Text),
    *_run_texts(),
    Column("discovered_at", Double),  # found on a worker or in a queue, before any event of its sending
    Column("replacing", SmallInteger),  # how the latest run's message replaced another one: invocations.py
    Index("task_key", "cluster_id", "key", unique=True).ddl_if(dialect="sqlite"),  # else one for each partition
    Index("task_seen", "sort_time", "id"),  # the older name of the column: SQLite cannot rename an index
    Index("task_name", "name_id", "sort_time", "id"),
    postgresql_partition_by="RANGE (id)",
)
NOT_SUCCEEDED = f"state <> {STATE_CODES[TaskState.SUCCESS]}"


def _partial_index(name: str, where: str, *columns: Column[Any]) -> None:
    Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


_partial_index("task_state", NOT_SUCCEEDED, task.c.state, task.c.sort_time, task.c.id)
_partial_index("task_root", "root IS NOT NULL AND length(root) > 0", task.c.root)
_partial_index("task_eta", f"state = {STATE_CODES[TaskState.SCHEDULED]}", task.c.eta)
_partial_index(
    "task_failure_group", "failure_group_id IS NOT NULL", task.c.failure_group_id, task.c.sort_time, task.c.id
)

run = Table(
    "run",
    metadata,
    Column("task_id", _big, primary_key=True),
    Column("ordinal", SmallInteger, primary_key=True),
    *_run_columns(),
    *_run_texts(),
    Column("replacing", SmallInteger),
    Column("message", LargeBinary),  # records.task.Invocation as msgpack, if it is not that of the task
    postgresql_partition_by="RANGE (task_id)",
)

# Partitions of PostgreSQL: see retention/partitions.py. The kept partition always exists.
CLUSTER_SHIFT = 50
KEPT = "_kept"
KEPT_BOUNDS = f"FROM (MINVALUE) TO ({1 << CLUSTER_SHIFT})"
_CREATE_KEPT = {
    "task": (
        "CREATE TABLE task_kept PARTITION OF task",
        "CREATE UNIQUE INDEX task_kept_key ON task_kept (cluster_id, key)",
    ),
    "run": ("CREATE TABLE run_kept PARTITION OF run",),
}


@event.listens_for(task, "after_create")
@event.listens_for(run, "after_create")
def _create_kept(created: Table, connection: Connection, **_: object) -> None:
    if connection.dialect.name == "postgresql":
        create, *indexes = _CREATE_KEPT[created.name]
        for statement in (f"{create} FOR VALUES {KEPT_BOUNDS}", *indexes):
            connection.exec_driver_sql(statement)


# Numbers of tasks. Counts of lists and facets are sums over it.
task_count = Table(
    "task_count",
    metadata,
    Column("cluster_id", SmallInteger, primary_key=True),
    Column("state", SmallInteger, primary_key=True),
    Column("name_id", Integer, primary_key=True),
    Column("queue_id", Integer, primary_key=True),
    Column("worker_id", Integer, primary_key=True),
    Column("count", _big, nullable=False),
    sqlite_with_rowid=False,
)

# Runs by minute, hour and day, with sketches of core.quantiles.
rollup = Table(
    "rollup",
    metadata,
    Column("resolution", Integer, primary_key=True),  # seconds: 60, 3600 or 86400
    Column("at", _big, primary_key=True),  # start of the bucket
    Column("cluster_id", SmallInteger, primary_key=True),
    Column("name_id", Integer, primary_key=True),
    Column("queue_id", Integer, primary_key=True),
    Column("worker_id", Integer, primary_key=True),
    *[
        Column(name, Integer, nullable=False, server_default="0")
        for name in ("received", "started", "succeeded", "failed", "retried", "revoked", "rejected", "lost")
    ],
    Column("wait", LargeBinary),
    Column("run", LargeBinary),
    Column("since_receipt", Integer),  # starts whose wait counts from receipt; NULL, before migration 0010: all
    sqlite_with_rowid=False,
)

# Counters that only grow, for metrics.
total = Table(
    "total",
    metadata,
    Column("cluster_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("name_id", Integer, primary_key=True, autoincrement=False),
    Column("worker_id", Integer, primary_key=True, autoincrement=False),  # 0: of all workers
    Column("record", LargeBinary, nullable=False),  # rollups.totals.Total as msgpack
    sqlite_with_rowid=False,
)

failure_group = Table(
    "failure_group",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("cluster_id", SmallInteger, nullable=False),
    Column("signature", LargeBinary, nullable=False),
    Column("name", Text),
    Column("exception_type", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("frame", Text),
    Column("first_seen", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
    Column("count", _big, nullable=False, server_default="0"),
    Column("state", Text, nullable=False, server_default="open"),
    Column("state_at", Double),  # when the state changed, by a person or by a new failure
    UniqueConstraint("cluster_id", "signature"),
)

# Messages of a failure group that differ in names: the first MOST_VARIANTS; all others count under ''.
failure_variant = Table(
    "failure_variant",
    metadata,
    Column("group_id", Integer, primary_key=True, autoincrement=False),
    Column("message", Text, primary_key=True),
    Column("count", _big, nullable=False),
    sqlite_with_rowid=False,
)
MOST_VARIANTS = 50

failure_rollup = Table(
    "failure_rollup",
    metadata,
    Column("resolution", Integer, primary_key=True),
    Column("at", _big, primary_key=True),
    Column("group_id", Integer, primary_key=True),
    Column("worker_id", Integer, primary_key=True),
    Column("count", Integer, nullable=False),
    sqlite_with_rowid=False,
)

worker = Table(
    "worker",
    metadata,
    Column("cluster_id", SmallInteger, primary_key=True),
    Column("hostname", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("first_seen", Double),
    Column("last_heartbeat", Double),
    Column("record", LargeBinary, nullable=False),  # records.worker.Worker as msgpack
)

queue = Table(
    "queue",
    metadata,
    Column("cluster_id", SmallInteger, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("ready", _big),
    Column("unacked", _big),
    Column("consumers", Integer),
    Column("oldest", Double),
    Column("sampled_at", Double),
    Column("workers", Text, nullable=False, server_default="[]"),
    Column("oldest_exact", Boolean, nullable=False, server_default=false()),
)

queue_sample = Table(
    "queue_sample",
    metadata,
    Column("cluster_id", SmallInteger, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("at", _big, primary_key=True),  # start of the minute
    Column("ready", _big),  # the largest of the minute
    Column("unacked", _big),
    Column("consumers", Integer),
    Column("oldest", Double),
    sqlite_with_rowid=False,
)

receiver = Table(
    "receiver",
    metadata,
    Column("cluster_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("shard", SmallInteger, primary_key=True, autoincrement=False, server_default="1"),  # always 1
    Column("record", LargeBinary, nullable=False),  # records.receiver.ReceiverHealth as msgpack
)

gap = Table(
    "gap",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("cluster_id", SmallInteger, nullable=False),
    Column("began", Double, nullable=False),
    Column("ended", Double),
    Column("cause", Text, nullable=False),
    Column("dropped", _big),
    Column("shard", SmallInteger, nullable=False, server_default="1"),  # as in receiver
    Column("reconciliation", Text),  # records.receiver.Reconciliation as JSON
    Index("gap_began", "cluster_id", "began"),
)

action = Table(
    "action",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("cluster_id", SmallInteger, nullable=False),
    Column("target", Text),
    Column("query", Text),
    Column("count", _big),
    Column("reason", Text),
    Column("parameters", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("message", Text),
)

# Retries by people: which task was sent again as which.
retry = Table(
    "retry",
    metadata,
    Column("cluster_id", SmallInteger, primary_key=True),
    Column("key", LargeBinary, primary_key=True),
    Column("new_key", LargeBinary, primary_key=True),
    Column("at", Double, nullable=False),
    Column("fidelity", Text, nullable=False),
    Index("retry_new_key", "cluster_id", "new_key"),
)

# Captured messages, apart from tasks, as they are large, secret, and expire earlier.
message = Table(
    "message",
    metadata,
    Column("cluster_id", SmallInteger, primary_key=True),
    Column("key", LargeBinary, primary_key=True),
    Column("at", Double, nullable=False),
    Column("size", _big, nullable=False),  # bytes that are stored
    Column("body", LargeBinary),  # NULL where it was too large
    Column("record", LargeBinary, nullable=False),  # records.event.Message without its body, as msgpack
    Index("message_at", "cluster_id", "at", "size"),
)

# When a worker started with a new process.
worker_start = Table(
    "worker_start",
    metadata,
    Column("cluster_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("at", Double, primary_key=True),
    Column("hostname", Text, primary_key=True),
    sqlite_with_rowid=False,
)

# Entries of beat's schedule.
schedule = Table(
    "schedule",
    metadata,
    Column("cluster_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("record", LargeBinary, nullable=False),  # records.schedule.ScheduleEntry as msgpack
)

# Saved views of the dashboard, of no cluster.
saved_view = Table(
    "saved_view",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
    Column("path", Text, nullable=False),
    Column("query", Text, nullable=False),
    Column("actor", Text, nullable=False, server_default=""),  # who saved it
    Column("at", Double),
)

# A bulk job: its request, its progress, and which process runs it until when.
job = Table(
    "job",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("token", Text, nullable=False, unique=True),  # as another database may assign the same id
    Column("cluster_id", SmallInteger, nullable=False),
    Column("verb", Text, nullable=False),
    Column("query", Text, nullable=False),
    Column("at", Double, nullable=False),  # when its tasks were chosen, and the base of relative times
    Column("actor", Text, nullable=False),
    Column("reason", Text),
    Column("rate", Double),  # tasks per second
    Column("state", Text, nullable=False),
    Column("total", _big, nullable=False, server_default="0"),
    Column("position", _big, nullable=False, server_default="0"),  # every task before it has an outcome
    Column("preview", Text, nullable=False, server_default="{}"),
    Column("started", Double),
    Column("ended", Double),
    Column("message", Text),
    Column("owner", Text),
    Column("lease", Double),
    Column("batch", Text),  # token of the batch that is being sent
    Column("include_retried", SmallInteger, nullable=False, server_default="0"),
    Index("job_state", "state"),
)

job_task = Table(
    "job_task",
    metadata,
    Column("job_id", Integer, primary_key=True, autoincrement=False),
    Column("number", _big, primary_key=True),
    Column("key", LargeBinary, nullable=False),
    Column("state", SmallInteger, nullable=False),  # of the task when it was chosen
    Column("outcome", SmallInteger, nullable=False, server_default="0"),
    Column("reason", Text),
    sqlite_with_rowid=False,
)

# Numbers of a job's tasks by outcome and reason.
job_outcome = Table(
    "job_outcome",
    metadata,
    Column("job_id", Integer, primary_key=True, autoincrement=False),
    Column("outcome", SmallInteger, primary_key=True),
    Column("reason", Text, primary_key=True),
    Column("count", _big, nullable=False),
    sqlite_with_rowid=False,
)

# Tasks whose messages were deleted from here, until the receiver has ended them.
removal = Table(
    "removal",
    metadata,
    Column("cluster_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("key", LargeBinary, primary_key=True),
    Column("at", Double, nullable=False),
    Column("text", Text, nullable=False),  # who deleted it, and how
    sqlite_with_rowid=False,
)

# Who may sign in, beside the users of the setting basic_auth.
user_account = Table(
    "user_account",
    metadata,
    Column("name", Text, primary_key=True),
    Column("role", SmallInteger, nullable=False),
    Column("password", Text),  # argon2 hash
    Column("disabled", SmallInteger, nullable=False, server_default="0"),
    Column("created_at", Double, nullable=False),
    Column("scope", Text, nullable=False, server_default=""),  # of core/filters/scope.py; empty: everything
    sqlite_with_rowid=False,
)

# Browsers that have signed in. The key is the SHA-256 of what their cookie holds.
user_session = Table(
    "user_session",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("id", Text, nullable=False, unique=True),  # names it where the key must not stand
    Column("user", Text, nullable=False),
    Column("role", SmallInteger),  # of a user who is not stored; else the role that the user has now
    Column("source", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("used_at", Double, nullable=False),
    Column("address", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("scope", Text, nullable=False, server_default=""),  # with the role
    Index("user_session_user", "user", "used_at"),
    sqlite_with_rowid=False,
)

# Keys for scripts: the SHA-256 of each.
api_token = Table(
    "api_token",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("key", LargeBinary, nullable=False, unique=True),
    Column("name", Text, nullable=False, unique=True),
    Column("role", SmallInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("used_at", Double),
    Column("scope", Text, nullable=False, server_default=""),
)

# Rules of alerts that are not the defaults. A rule of the file has precedence over one of the page.
alert_rule = Table(
    "alert_rule",
    metadata,
    Column("name", Text, primary_key=True),
    Column("source", Text, primary_key=True),  # page, file
    Column("record", LargeBinary, nullable=False),  # records.alert.Rule as msgpack
    sqlite_with_rowid=False,
)

# Where messages of alerts go.
alert_channel = Table(
    "alert_channel",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
    Column("record", LargeBinary, nullable=False),  # records.alert.Channel as msgpack, with its secrets
    Column("sent_at", Double),
    Column("digest_at", Double),
    Column("error", Text),  # of the last message that was not accepted
)

# Alerts from their first excess on; one that did not fire is deleted.
alert = Table(
    "alert",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("cluster_id", SmallInteger, nullable=False),
    Column("rule", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("fired_at", Double),
    Column("resolved_at", Double),
    Column("record", LargeBinary, nullable=False),  # records.alert.Alert as msgpack
    Index("alert_fired", "fired_at", "id"),
)
Index(
    "alert_open",
    alert.c.cluster_id,
    alert.c.rule,
    alert.c.subject,
    unique=True,
    sqlite_where=text("resolved_at IS NULL"),
    postgresql_where=text("resolved_at IS NULL"),
)

# Messages of alerts, one for each transition and channel. Several are sent as one batch.
alert_message = Table(
    "alert_message",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("channel_id", Integer, nullable=False),
    Column("alert_id", Integer),  # NULL: a test
    Column("transition", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("due_at", Double, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("batch", Text),
    Column("claimed_at", Double),
    Column("sent_at", Double),
    Column("error", Text),
    UniqueConstraint("channel_id", "alert_id", "transition"),
    Index("alert_message_state", "state", "due_at"),
    Index("alert_message_sent", "channel_id", "sent_at"),
)
