"""A filter in this database: names and ids become numbers (``resolve``), and these a condition (``where``).

Conditions are written so that the database cannot choose an index for them: plan.py chooses it. ``job:7`` finds the
tasks that job 7 sent or revoked. A task that was sent again under its own id does not count as retried.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    ScalarSelect,
    Select,
    Table,
    and_,
    any_,
    case,
    false,
    func,
    literal_column,
    or_,
    select,
    true,
)

from celery_monitor.core.filters.scope import UNLIMITED, Limits
from celery_monitor.core.filters.terms import (
    GROUPS_BY_WORD,
    NO,
    STATES_BY_WORD,
    YES,
    All,
    Any,
    Expression,
    InGroups,
    Interval,
    Leaf,
    Match,
    Not,
    Pattern,
    RetriedCondition,
    State,
    Unknown,
    ValueRange,
    Word,
    leaves,
)
from celery_monitor.errors import FilterError
from celery_monitor.records.job import Job, JobOutcome
from celery_monitor.records.task import TaskState
from celery_monitor.store import schema
from celery_monitor.store.engine import Store, numbers
from celery_monitor.store.schema import JOB_OUTCOME_CODES, STATE_CODES, STATES, TERM_KINDS, UNKNOWN
from celery_monitor.store.tasks.keys import KeySpan, id_spans, is_alone, spans_of_word
from celery_monitor.store.terms import cluster_names

SENT = (JobOutcome.SENDING, JobOutcome.DONE, JobOutcome.UNCONFIRMED)
_job = schema.job.c
_member = schema.job_task.c
_task = schema.task.c


def in_job(number: int) -> ColumnElement[bool]:
    """The task was sent or revoked by this job."""
    # With both columns in one row value, SQLite would read every task of the cluster.
    return and_(_task.cluster_id == _cluster(number), _task.key.in_(_keys_alone(number)))


def tasks_of_job(number: int, *, is_sqlite: bool) -> ColumnElement[bool]:
    """``in_job`` as the only condition with an index: each task is looked up by its key.

    PostgreSQL would sort the keys of ``in_job`` and then read every task; as an array, it looks up each key.
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
    """Tasks that a job sent or revoked, by their state now; those without any event yet are missing."""
    with store.read() as connection:
        return _states(connection, job.id)


def _states(connection: Connection, number: int) -> dict[TaskState, int]:
    keys = _keys(number).subquery()
    same = and_(_task.cluster_id == keys.c.cluster_id, _task.key == keys.c.key)
    counted = select(_task.state, func.count()).select_from(keys.join(schema.task, same)).group_by(_task.state)
    return {STATES[code]: many for code, many in connection.execute(counted).all()}


def _keys(number: int) -> Select[tuple[int, bytes]]:
    """Cluster and key of the sent tasks. Of several retries of a task, the job's is the first since its tasks were
    chosen: it skips those that somebody else retried before."""
    link, earlier = schema.retry.alias("link"), schema.retry.alias("earlier")
    since = and_(link.c.cluster_id == _job.cluster_id, link.c.key == _member.key, link.c.at >= _job.at)
    mine = (earlier.c.cluster_id == link.c.cluster_id, earlier.c.key == link.c.key)
    others = select(earlier.c.at).where(*mine, earlier.c.at >= _job.at, earlier.c.at < link.c.at).exists()
    key = case((_job.verb == "retry", link.c.new_key), else_=_member.key).label("key")
    members = schema.job.join(schema.job_task, _member.job_id == _job.id).outerjoin(link, since)
    chosen = (_job.id == number, _member.outcome.in_([JOB_OUTCOME_CODES[each] for each in SENT]))
    return select(_job.cluster_id, key).select_from(members).where(*chosen, ~others)


HIDDEN_FIELDS = frozenset({"args", "kwargs", "result", "exception", "traceback"})
COUNTED_FIELDS = {"state", "cluster", "name", "queue", "worker"}  # with a column in task_count
_FEW = 1000  # ids that are looked up in advance
_ZERO = literal_column("0", Integer)


@dataclass
class Resolved:
    """Conditions that must all hold, and the numbers and rows of their leaves in this database at this moment."""

    terms: tuple[Expression, ...]
    clusters: dict[int, str]
    is_sqlite: bool
    few_retried: bool = False  # so few tasks were retried that each can be looked up
    numbers: dict[Leaf, frozenset[int]] = field(default_factory=dict)  # states, clusters and names that a leaf means
    rows: dict[Leaf, frozenset[int]] = field(default_factory=dict)  # rows whose id a leaf names, where they are few
    roots: dict[Leaf, frozenset[bytes]] = field(default_factory=dict)  # trees in which a parent's children are
    texts: bool = True  # whether arguments, results and errors may be searched

    @cached_property
    def counted(self) -> tuple[Expression, ...]:
        """The terms with columns in ``task_count``."""
        return tuple(each for each in self.terms if all(leaf.field in COUNTED_FIELDS for leaf in leaves(each)))

    @property
    def is_counted(self) -> bool:
        """Whether ``task_count`` alone has the answer."""
        return len(self.counted) == len(self.terms)

    def only(self, terms: Iterable[Expression]) -> "Resolved":
        """Other conditions, with leaves that were resolved here."""
        return replace(self, terms=tuple(terms))


def limits_of(connection: Connection) -> Limits:
    """The limits of the store that this connection is of."""
    found: Limits = connection.get_execution_options().get("limits", UNLIMITED)
    return found


def resolve(connection: Connection, terms: Iterable[Expression]) -> Resolved:
    """Looks up what the leaves name. Large sets (a job's tasks, retried ones, failure groups) stay subqueries.

    The terms of a scope are added, for the plan: rows outside are not there anyway. Raises InvalidInput for a
    condition on texts that are hidden, which would tell by its count.
    """
    limits = limits_of(connection)
    given = tuple(terms)
    tree = Resolved(
        (*given, *(each for each in limits.scope.terms if each not in given)),
        {},
        connection.dialect.name == "sqlite",
        texts=limits.arguments,
    )
    if not tree.terms:
        return tree
    if not tree.texts:
        _check_fields(tree)
    tree.clusters = cluster_names(connection)
    for leaf in {leaf for each in tree.terms for leaf in leaves(each)}:
        if isinstance(leaf, Word):
            tree.numbers[leaf] = _names(connection, "name", leaf.pattern, contains)
            _find_rows(connection, tree, leaf, spans_of_word(leaf.pattern))
        elif isinstance(leaf, Match) and leaf.field in {"id", "root", "parent"}:
            _find_rows(connection, tree, leaf, id_spans(leaf.pattern))
        elif leaf.field in COUNTED_FIELDS:
            tree.numbers[leaf] = _numbers(connection, tree, leaf)
    if any(isinstance(each, RetriedCondition) and each.word != NO for each in tree.terms):
        tree.few_retried = few_retried(connection, tree.clusters)
    return tree


def _check_fields(tree: Resolved) -> None:
    for field_name in HIDDEN_FIELDS & {leaf.field for each in tree.terms for leaf in leaves(each)}:
        raise FilterError(f"{field_name}: arguments, results and errors are hidden from viewers on this dashboard", 1)


def _numbers(connection: Connection, tree: Resolved, leaf: Leaf) -> frozenset[int]:
    if isinstance(leaf, State):
        return frozenset(STATE_CODES[each] for each in leaf.states)
    if not isinstance(leaf, Match):
        return frozenset({UNKNOWN})
    if leaf.field == "cluster":
        return frozenset(key for key, name in tree.clusters.items() if leaf.pattern.matches(name))
    return _names(connection, leaf.field, leaf.pattern, Pattern.matches)


def _names(connection: Connection, kind: str, pattern: Pattern, fits: Callable[[Pattern, str], bool]) -> frozenset[int]:
    term = schema.term.c
    statement = select(term.id, term.text).where(term.kind == TERM_KINDS[kind])
    if pattern.literal and fits is Pattern.matches:
        statement = statement.where(term.text == pattern.pieces[0])
    return frozenset(row.id for row in connection.execute(statement) if fits(pattern, row.text))


def _find_rows(connection: Connection, tree: Resolved, leaf: Word | Match, wanted: list[KeySpan]) -> None:
    """The rows with these keys, and the trees of their children, unless they are more than a few."""
    rows: set[int] = set()
    for cluster in tree.clusters:
        for span in wanted:
            statement = select(_task.id).where(_task.cluster_id == cluster, span.holds(_task.key)).limit(_FEW + 1)
            rows.update(connection.execute(statement).scalars())
            if len(rows) > _FEW:
                return
    tree.rows[leaf] = frozenset(rows)
    if leaf.field == "parent":
        found = _roots(connection, rows)
        if found and None not in found:
            tree.roots[leaf] = frozenset(each for each in found if each is not None)


def _roots(connection: Connection, rows: Iterable[int]) -> set[bytes | None]:
    """The root of each of these rows; ``None`` where that is unknown."""
    statement = select(_task.key, _task.root).where(_task.id.in_(list(rows)))
    return {None if row.root is None else bytes(row.root) or bytes(row.key) for row in connection.execute(statement)}


def contains(pattern: Pattern, text: str) -> bool:
    """Whether a bare word is in the text: a part of it, or with wildcards all of it; in any case."""
    folded = Pattern(tuple(piece.casefold() for piece in pattern.pieces))
    return folded.pieces[0] in text.casefold() if folded.literal else folded.matches(text.casefold())


def where(tree: Resolved) -> ColumnElement[bool]:
    """The conditions on a row of ``task``."""
    return _condition(All(tree.terms), tree, schema.task)


def where_counts(tree: Resolved) -> ColumnElement[bool]:
    """The conditions on a row of ``task_count``, which has the columns of COUNTED_FIELDS alone.

    All of the key's first columns are named, so that a name needs no scan.
    """
    columns = schema.task_count.c
    anywhere = (numbers(columns.cluster_id, tree.clusters), numbers(columns.state, STATE_CODES.values()))
    return and_(*anywhere, _condition(All(tree.terms), tree, schema.task_count)) if tree.terms else true()


def _condition(expression: Expression, tree: Resolved, table: Table) -> ColumnElement[bool]:
    if isinstance(expression, All):
        return and_(true(), *(_condition(each, tree, table) for each in expression.terms))
    if isinstance(expression, Any):
        return or_(false(), *(_condition(each, tree, table) for each in expression.terms))
    if isinstance(expression, Not):  # NULL does not match, so it matches the negation
        return _condition(expression.term, tree, table).is_not(true())
    if expression.field in COUNTED_FIELDS:
        column: ColumnElement[int] = table.c["state" if expression.field == "state" else f"{expression.field}_id"]
        return numbers(column if table is schema.task_count else column + _ZERO, tree.numbers[expression])
    return _leaf(expression, tree)


def _leaf(leaf: Leaf, tree: Resolved) -> ColumnElement[bool]:
    if isinstance(leaf, Word):
        return _word(leaf, tree)
    if isinstance(leaf, Match):
        return _identity(leaf, tree) if leaf.field in {"id", "root", "parent"} else _text(leaf, tree)
    if isinstance(leaf, RetriedCondition):
        return mark_retried(leaf.word)
    if isinstance(leaf, InGroups):
        return _in_groups(leaf)
    if isinstance(leaf, Unknown):
        return _measures[leaf.field].is_(None) if leaf.field in _measures else _task[leaf.field].is_(None)
    if isinstance(leaf, ValueRange):
        return in_job(leaf.interval.number) if leaf.field == "job" else within(_measures[leaf.field], leaf.interval)
    raise TypeError(f"no condition for {leaf!r}")


def _in_groups(leaf: InGroups) -> ColumnElement[bool]:
    group = schema.failure_group.c
    words = [state.value for state in GROUPS_BY_WORD[leaf.word]]
    return (_task.failure_group_id + _ZERO).in_(select(group.id).where(group.state.in_(words)))


# Run.wait of the latest run, in SQL.
_ready = func.coalesce(_task.ready, case((_task.eta > _task.received, _task.eta), else_=_task.received))
WAIT: ColumnElement[float] = case((_task.started < _ready, 0.0), else_=_task.started - _ready)
_measures: dict[str, ColumnElement[float]] = {
    "group": _task.failure_group_id + _ZERO,
    "retries": _task.retries,
    "runtime": _task.runtime,
    "wait": WAIT,
    "sent": _task.sent,
    "received": _task.received,
    "started": _task.started,
    "finished": _task.ended,
}


def within(column: ColumnElement[float], interval: Interval) -> ColumnElement[bool]:
    """The column is in the interval, and not NULL."""
    conditions: list[ColumnElement[bool]] = [column.is_not(None)]
    if interval.low:
        low = interval.low
        conditions.append(column >= low.value if low.inclusive else column > low.value)
    if interval.high:
        high = interval.high
        conditions.append(column <= high.value if high.inclusive else column < high.value)
    return and_(*conditions)


def like(column: ColumnElement[str], text: str, tree: Resolved) -> ColumnElement[bool]:
    """Case-insensitive; for ASCII, SQLite's LIKE is anyway."""
    return column.like(text, escape="\\") if tree.is_sqlite else column.ilike(text, escape="\\")


def escaped(text: str) -> str:
    """The text, escaped for LIKE."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _like_pattern(pattern: Pattern) -> str:
    return f"%{escaped(pattern.pieces[0])}%" if pattern.literal else "%".join(map(escaped, pattern.pieces))


def _text(leaf: Match, tree: Resolved) -> ColumnElement[bool]:
    column = _task[leaf.field]
    if leaf.key is None:
        return and_(column.is_not(None), like(column, _like_pattern(leaf.pattern), tree))
    found = [like(column, f"%{text}%", tree) for text in _keyword_forms(leaf.key, leaf.pattern)]
    return and_(column.is_not(None), or_(*found))


def _keyword_forms(key: str, pattern: Pattern) -> list[str]:
    """One entry of a dict as ``repr`` writes it; the text after the value keeps 31 from matching 310."""
    value = escaped(pattern.pieces[0])
    entries = [f"'{escaped(key)}': {quote}{value}" for quote in ("", "'", '"')]
    if not pattern.literal:
        return entries
    quotes = ("", "'", '"')
    return [f"{entry}{quote}{end}" for entry, quote in zip(entries, quotes, strict=True) for end in (",", "}")]


def _identity(leaf: Match, tree: Resolved) -> ColumnElement[bool]:
    wanted = id_spans(leaf.pattern)
    if leaf.field == "parent":
        return or_(*(span.holds(_task.parent) for span in wanted))
    rows = tree.rows.get(leaf)
    own = or_(*(span.holds(_task.key) for span in wanted)) if rows is None else numbers(_task.id, rows)
    if leaf.field == "id":
        return own
    return or_(and_(own, is_alone()), *(span.holds(_task.root) for span in wanted))


def _word(leaf: Word, tree: Resolved) -> ColumnElement[bool]:
    text = _like_pattern(leaf.pattern)
    found = [like(_task[name], text, tree) for name in ("args", "kwargs", "exception") if tree.texts]
    found.append(numbers(_task.name_id + _ZERO, tree.numbers[leaf]))
    if leaf in tree.rows:
        found.append(numbers(_task.id, tree.rows[leaf]))
    return or_(*found)


FEW_RETRIED = 25_000  # links that are looked up one by one
_link = schema.retry.alias("link")
_again = schema.task.alias("again")
_other = _link.c.new_key != _link.c.key


def mark_retried(word: str) -> ColumnElement[bool]:
    """The condition ``retried:WORD`` on a row of ``task``."""
    if word == YES:
        return _links_of_row().exists()
    if word == NO:
        return ~_links_of_row().exists()
    state = newest_state()
    if not word:
        return and_(_links_of_row().exists(), state.is_(None))
    return numbers(state, (STATE_CODES[each] for each in STATES_BY_WORD[word]))


def newest_state() -> ColumnElement[int]:
    """The state of the newest retry of a row of ``task``; NULL: there is none, or its state is unknown."""
    statement = select(_again.c.state).select_from(_link.outerjoin(_again, _same_task()))
    newest = statement.where(*_of_row()).order_by(_link.c.at.desc(), _link.c.new_key.desc()).limit(1)
    return newest.correlate(schema.task).scalar_subquery()


def _same_task() -> ColumnElement[bool]:
    return and_(_again.c.cluster_id == _link.c.cluster_id, _again.c.key == _link.c.new_key)


def _of_row() -> tuple[ColumnElement[bool], ...]:
    return (_link.c.cluster_id == _task.cluster_id, _link.c.key == _task.key, _other)


def _links_of_row() -> Select[tuple[bytes]]:
    return select(_link.c.key).where(*_of_row()).correlate(schema.task)


def few_retried(connection: Connection, clusters: Iterable[int]) -> bool:
    """Whether at most FEW_RETRIED tasks were retried, so that each can be looked up by its key."""
    links = select(_link.c.key).where(_link.c.cluster_id.in_(clusters), _other).limit(FEW_RETRIED + 1).subquery()
    return connection.execute(select(func.count()).select_from(links)).scalar_one() <= FEW_RETRIED


def retried_tasks(clusters: Iterable[int], *, is_sqlite: bool) -> tuple[ColumnElement[bool], ...]:
    """Retried tasks, by cluster, each looked up by its key."""
    return tuple(_retried_in(cluster, is_sqlite=is_sqlite) for cluster in clusters)


def _retried_in(cluster: int, *, is_sqlite: bool) -> ColumnElement[bool]:
    """As an array for PostgreSQL: see ``tasks_of_job``."""
    keys = select(_link.c.key).where(_link.c.cluster_id == cluster, _other).distinct()
    if is_sqlite:
        return and_(_task.cluster_id == cluster, _task.key.in_(keys))
    return and_(_task.cluster_id == cluster, _task.key == any_(func.array(keys.scalar_subquery())))
