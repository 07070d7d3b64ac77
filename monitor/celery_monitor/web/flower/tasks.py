"""Tasks and queues in Flower's words, from the record, and its language of the parameter ``search``.

    name:tasks.add state:SUCCESS (kwargs:order=17 OR "card refused")

Terms are of ``name``, ``worker``, ``args``, ``kwargs`` and ``result`` (a part of it), ``state`` (all of it), or of any
of these; words next to each other mean *and*. The errors are Flower's.
"""

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from starlette.responses import Response, StreamingResponse

from celery_monitor.core.filters.parser import Filter
from celery_monitor.core.filters.terms import (
    All,
    Expression,
    Interval,
    Limit,
    Match,
    Not,
    Pattern,
    State,
    Unknown,
    ValueRange,
    any_of,
    exactly,
    join,
)
from celery_monitor.core.filters.terms import (
    Any as AnyOf,
)
from celery_monitor.errors import InvalidInput, NotFound
from celery_monitor.records.task import Outcome, Run, Task, TaskState
from celery_monitor.store.queues import read_queues
from celery_monitor.store.tasks.detail import read_task
from celery_monitor.store.tasks.page import CHUNK, find_tasks, iterate_tasks
from celery_monitor.store.tasks.workflows import read_children
from celery_monitor.store.terms import find_terms
from celery_monitor.web.flower.call import JSON, FlowerCall, json_answer

FIELDS = frozenset({"name", "state", "worker", "args", "kwargs", "result"})
SHORTEST = 3  # characters of a part of a text
LONGEST, MOST_TOKENS, DEEPEST = 2048, 128, 5
NOTHING: Expression = All((Unknown("name"), Not(Unknown("name"))))
_PIECE = re.compile(r"""[()]|(?:\\["\\]|"(?:\\["\\]|[^"])*"|[^\s()"])+""")
_QUOTED = re.compile(r'\\(["\\])|"')


class SearchError(ValueError):
    """The search is not valid; the text is Flower's."""


class Token(NamedTuple):
    """``kind``: ( ) AND OR TERM END."""

    kind: str
    text: str
    at: int


def parse_search(text: str) -> Expression:
    """The condition that a search stands for; empty text matches everything. Raises SearchError."""
    query = text.strip()
    if len(query) > LONGEST:
        raise SearchError(f"Query exceeds {LONGEST} characters.")
    return _SearchParser([*_tokens(query), Token("END", "", len(query))]).parse()


def _error(words: str, at: int) -> SearchError:
    return SearchError(f"{words} at position {at}.")


def _tokens(query: str) -> Iterator[Token]:
    at = count = 0
    while at < len(query):
        if query[at].isspace():
            at += 1
            continue
        piece = _PIECE.match(query, at)
        if piece is None or (piece.end() < len(query) and query[piece.end()] == '"'):
            raise _error("Unterminated quoted phrase", at)
        count += 1
        if count > MOST_TOKENS:
            raise SearchError(f"Query exceeds {MOST_TOKENS} tokens.")
        yield _token(piece[0], at)
        at = piece.end()


def _token(piece: str, at: int) -> Token:
    if piece in {"(", ")", "AND", "OR"}:
        return Token(piece, piece, at)
    if piece == "NOT":
        raise _error("NOT is not supported", at)
    plain = _QUOTED.sub(lambda each: each[1] or "", piece)
    if not plain:
        raise _error("Empty search term", at)
    return Token("TERM", plain, at)


class _SearchParser:
    """Recursive descent; ``place`` is the next token."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.place = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.place]

    def parse(self) -> Expression:
        if self.next.kind == "END":
            return All()
        found = self._alternatives(0)
        if self.next.kind != "END":
            raise _error(f"Unexpected {self.next.text!r}", self.next.at)
        return found

    def _alternatives(self, depth: int) -> Expression:
        terms = [self._together(depth)]
        while self._operator("OR"):
            terms.append(self._together(depth))
        return join(AnyOf, terms)

    def _together(self, depth: int) -> Expression:
        terms = [self._one(depth)]
        while self.next.kind not in {"END", ")", "OR"}:
            self._operator("AND")
            terms.append(self._one(depth))
        return join(All, terms)

    def _operator(self, name: str) -> bool:
        operator = self.next
        if operator.kind != name:
            return False
        self.place += 1
        if self.next.kind in {"END", ")", "AND", "OR"}:
            raise _error(f"{name} must be followed by a search term", operator.at)
        return True

    def _one(self, depth: int) -> Expression:
        token = self.next
        if token.kind not in {"TERM", "("}:
            raise _error("Expected a search term", token.at)
        if token.kind == "(" and depth >= DEEPEST:
            raise _error(f"Query nesting exceeds {DEEPEST} levels", token.at)
        self.place += 1
        if token.kind == "TERM":
            return _term(token)
        if self.next.kind == ")":
            raise _error("Empty group", token.at)
        inside = self._alternatives(depth + 1)
        if self.next.kind != ")":
            raise _error("Missing closing parenthesis", token.at)
        self.place += 1
        return inside


def _term(token: Token) -> Expression:
    name, colon, value = token.text.partition(":")
    field = name.casefold() if colon and name.casefold() in FIELDS else None
    value = value if field else token.text
    if field is None and value.startswith("-"):
        raise _error("Negation with '-' is not supported", token.at)
    if not value:
        raise _error("Search qualifier requires a value", token.at)
    if field == "state":
        return in_state(value)
    if field == "kwargs" and "=" in value:
        key, _, wanted = value.partition("=")
        return Match("kwargs", Pattern((wanted.strip(),)), key.strip())
    if len(value.strip()) < SHORTEST:
        raise _error(f"Substring search terms must contain at least {SHORTEST} characters", token.at)
    if field is not None:
        return contains(field, value)
    fields = ("name", "worker", "args", "kwargs", "result")
    by_id = Match("id", Pattern((value, "")))
    return any_of([by_id, *(contains(each, value) for each in fields), *_in_state_like(value)])


def in_state(word: str) -> Expression:
    """In the state of this name, in any case; an unknown name matches nothing."""
    if word.upper() not in TaskState.__members__:
        return NOTHING
    if word.upper() == TaskState.RECEIVED:  # Celery has no state of its own for a task that waits for its ETA
        return any_of([State(TaskState.RECEIVED.word), State(TaskState.SCHEDULED.word)])
    return State(TaskState[word.upper()].word)


def _in_state_like(part: str) -> list[Expression]:
    return [State(state.word) for state in TaskState if part.casefold() in state.casefold()]


def contains(field: str, part: str) -> Expression:
    """The part is in the field; names are compared as they are written."""
    return Match(field, Pattern(("", part, "")) if field in {"name", "worker"} else Pattern((part,)))


SORTS = ("name", "received", "started", "state")
TIME = "%Y-%m-%d %H:%M"
ANY = "All"
MOST_TYPES = 10_000
ENDS = {
    "succeeded": {Outcome.SUCCEEDED},
    "failed": {Outcome.FAILED},
    "retried": {Outcome.RETRIED},
    "revoked": {Outcome.REVOKED},
    "rejected": {Outcome.REJECTED, Outcome.REQUEUED},
}


def list_types(call: FlowerCall) -> Response:
    """The names of all tasks that were ever seen."""
    return json_answer({"task-types": sorted(find_terms(call.store, "name", "", MOST_TYPES))})


def queue_lengths(call: FlowerCall) -> Response:
    """Waiting messages of every queue as last measured; those that workers have are not waiting."""
    queues = sorted(read_queues(call.store, call.text("cluster")), key=lambda each: each.name)
    return json_answer({"active_queues": [{"name": each.name, "messages": each.ready} for each in queues]})


def task_info(call: FlowerCall) -> Response:
    try:
        task = read_task(call.store, call.target, call.text("cluster"))
    except NotFound:
        raise NotFound(f"Unknown task '{call.target}'") from None
    return json_answer(task_item(task, read_children(call.store, [task]).get(task.id, [])))


def list_tasks(call: FlowerCall) -> Response:
    """``{uuid: task}``, the newest first. Without ``limit`` it is written while it is read."""
    limit, offset = call.value("limit", int, None), max(call.value("offset", int, default=0), 0)
    sort = call.text("sort_by") or ""
    if sort and sort.lstrip("-") not in SORTS:
        raise InvalidInput(f"Invalid sort_by '{sort}', expected one of {', '.join(SORTS)}")
    try:
        wanted = _wanted(call)
    except SearchError as error:
        answer = json_answer({"error": str(error)})
        answer.status_code = 400
        return answer
    end = None if limit is None else offset + max(limit, 0)
    tasks = islice(_sorted(call, wanted, sort), offset, end)
    if limit is None:
        return StreamingResponse(_written(call, tasks), headers={"Content-Type": JSON})
    return Response(b"".join(_written(call, tasks)), headers={"Content-Type": JSON})


def _wanted(call: FlowerCall) -> Filter:
    """Raises SearchError, and InvalidInput for a time that is not one."""
    found = Filter(parse_search(call.text("search") or ""), time.time()).in_cluster(call.text("cluster"))
    for field, name in (("worker", call.text("workername")), ("name", call.text("taskname"))):
        if name and name != ANY:
            found &= exactly(field, name)
    if (state := call.text("state")) and state != ANY:
        found &= in_state(state)
    low, high = _time(call, "received_start"), _time(call, "received_end")
    if low is not None or high is not None:
        text = f"{'' if low is None else _iso(low)}..{'' if high is None else _iso(high)}"
        limits = [None if each is None else Limit(each, inclusive=True) for each in (low, high)]
        found &= any_of([Unknown("received"), ValueRange("received", Interval(text, *limits))])
    return found


def _time(call: FlowerCall, name: str) -> float | None:
    """In the time zone of this machine, as Flower reads it."""
    text = call.text(name)
    if not text:
        return None
    try:
        return time.mktime(time.strptime(text, TIME))
    except (ValueError, OverflowError):
        expected = "expected format 'YYYY-MM-DD HH:MM'"
        raise InvalidInput(f"Invalid received_start or received_end, {expected}") from None


def _sorted(call: FlowerCall, wanted: Filter, sort: str) -> Iterator[Task]:
    """States are sorted by name, so each is read by itself."""
    if sort.lstrip("-") == "state":
        for state in sorted({_state_of(each) for each in TaskState}, reverse=sort.startswith("-")):
            yield from _sorted(call, wanted & in_state(state), "")
    elif sort in {"", "-received"}:
        for chunk in iterate_tasks(call.store, wanted, tracebacks=True):
            yield from chunk
    else:
        yield from _paged(call, wanted, sort)


def _paged(call: FlowerCall, wanted: Filter, sort: str) -> Iterator[Task]:
    cursor = None
    while True:
        page = find_tasks(call.store, wanted, sort=sort, limit=CHUNK, cursor=cursor, tracebacks=True)
        yield from page.items
        if (cursor := page.next) is None:
            return


def _written(call: FlowerCall, tasks: Iterator[Task]) -> Iterator[bytes]:
    """A JSON object, in pieces."""
    separator = b"{"
    while chunk := list(islice(tasks, CHUNK)):
        children = read_children(call.store, chunk)
        items = {task.id: task_item(task, children.get(task.id, [])) for task in chunk}
        yield separator + msgspec.json.encode(items)[1:-1]
        separator = b","
    yield b"{}" if separator == b"{" else b"}"


def task_item(task: Task, children: list[str]) -> dict[str, Any]:
    """A task with Flower's keys. ``clock`` is not recorded; a time is of the last run that ended so."""
    run = task.run or Run()
    moments = [at for at in (task.sent, run.received, run.started, run.ended) if at is not None]
    item: dict[str, Any] = {
        "uuid": task.id,
        "name": task.name,
        "state": _state_of(task.state),
        "received": run.received,
        "sent": task.sent,
        "started": run.started,
        **{key: _last_end(task, outcomes) for key, outcomes in ENDS.items()},
        "args": task.args,
        "kwargs": task.kwargs,
        "eta": _iso(run.eta),
        "expires": _iso(task.expires),
        "retries": run.retries,
        "result": run.result,
        "exception": run.exception,
        "timestamp": max(moments, default=None),
        "runtime": run.runtime if run.outcome is Outcome.SUCCEEDED else None,
        "traceback": run.traceback,
        "exchange": task.exchange,
        "routing_key": task.routing_key,
        "clock": None,
        "client": task.client,
        "root": task.root_id,
        "root_id": task.root_id,
        "parent": task.parent_id,
        "parent_id": task.parent_id,
        "children": children,
    }
    return item | ({} if run.worker is None else {"worker": run.worker})


def _state_of(state: TaskState) -> str:
    """Celery's name for it: there, a task that waits for its ETA is received."""
    return TaskState.RECEIVED if state is TaskState.SCHEDULED else state


def _last_end(task: Task, outcomes: set[Outcome]) -> float | None:
    return next((run.ended for run in reversed(task.runs) if run.outcome in outcomes), None)


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()
