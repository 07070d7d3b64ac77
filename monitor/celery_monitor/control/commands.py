"""A command: one change that a person may request, as one Struct with everything about it.

Its class has the action under which it is allowed and recorded, the required role, the route in the JSON API and a note
for the document; the types of its fields are its limits, and ``run`` does it. The first paragraph of its docstring is
the summary in the JSON API and in docs/actions.md, the second describes the request body. Routes, the OpenAPI document,
the parsing of forms, the check of roles, the record of actions and docs/actions.md follow.
"""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from inspect import getdoc
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta, Struct
from msgspec.inspect import FloatType, IntType, LiteralType, Metadata, NoneType, StrType, Type, UnionType, VarTupleType

from celery_monitor.addresses import transport_of
from celery_monitor.brokers.application import configured_queues
from celery_monitor.brokers.event_queue.names import uses_queues
from celery_monitor.brokers.queues import ReadMessages
from celery_monitor.brokers.remote import Remote, Reply
from celery_monitor.core.arguments import Fidelity
from celery_monitor.core.filters.scope import Scope
from celery_monitor.core.words import counted
from celery_monitor.errors import ConfirmationRequired, Forbidden, InvalidInput, NotFound
from celery_monitor.records.job import Job
from celery_monitor.records.user import Actor, Role
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import read_queues
from celery_monitor.store.tasks.unfinished import queue_names
from celery_monitor.store.workers import read_workers

ANSWER_SECONDS = 2.0  # without an answer, after which a worker counts as silent


def require(actor: Actor, action: str, role: Role) -> None:
    """Raises Forbidden unless the actor's role may do the action."""
    if actor.role < role:
        raise Forbidden(f"{actor.name} is {actor.role.name.lower()}; {action} needs the role {role.name.lower()}")


@dataclass(frozen=True, slots=True)
class Target:
    """The cluster that a command acts on, and the name of the person it acts for."""

    store: Store
    settings: Settings
    broker: Broker
    actor: str = ""

    @property
    def cluster(self) -> str:
        return self.broker.cluster

    @property
    def remote(self) -> Remote:
        return Remote(self.broker, self.settings)

    @staticmethod
    def now() -> float:
        return time.time()

    def workers(self) -> list[Worker]:
        """Every worker, also for somebody whose scope has none: they have and consume the tasks inside."""
        return read_workers(self.store.whole, self.cluster)

    def living_workers(self) -> list[str]:
        """Workers that may have or consume a task: online, or silent because busy."""
        return [worker.hostname for worker in self.workers() if worker.status is not WorkerStatus.OFFLINE]

    def why_no_control(self) -> str | None:
        """Why no worker receives commands; ``None`` if some may."""
        if not uses_queues(self.broker, self.settings) or self.living_workers():
            return None
        return (
            f"Over {transport_of(self.broker.url)} Celery has no remote control: only workers with "
            "celery_monitor_capture receive commands, and none of these is up."
        )

    def queue_names(self) -> list[str]:
        """Queues of this cluster: sampled, consumed by a worker, named by tasks or configured by the application."""
        sampled = {queue.name for queue in read_queues(self.store, self.cluster)}
        consumed = {name for worker in self.workers() for name in worker.queues or ()}
        of_tasks = queue_names(self.store, self.cluster)
        others = consumed | configured_queues(self.broker, self.settings)
        scope = self.store.limits.scope
        return sorted(sampled | of_tasks | {name for name in others if scope.has_queue(self.cluster, name)})


def find_broker(settings: Settings, cluster: str) -> Broker:
    """The broker of a cluster. Raises NotFound, which lists the monitored clusters."""
    for broker in settings.broker:
        if broker.cluster == cluster:
            return broker
    raise NotFound(f"there is no cluster {cluster!r}; the monitored ones are {', '.join(settings.clusters) or 'none'}")


MAX_TASKS = 1000  # of one command; for more there are bulk jobs
NO_NUL = r"^[^\x00]*$"  # PostgreSQL refuses NUL, so nothing in the record has one
_unstorable = re.compile("[\\0\ud800-\udfff]")

Text = Annotated[str, Meta(pattern=NO_NUL)]
# RabbitMQ allows the name of a queue 255 bytes.
Name = Annotated[str, Meta(pattern=NO_NUL, min_length=1, max_length=255, extra={"bytes": True})]
TypedName = Annotated[Name, Meta(extra={"bytes": True, "strip": True})]  # of a form: blanks around it are removed
Signal = Literal["SIGTERM", "SIGKILL", "SIGINT", "SIGQUIT", "SIGUSR1"]
SIGNALS: tuple[str, ...] = get_args(Signal)
Reason = Annotated[
    str,
    Meta(pattern=NO_NUL, max_length=1000, description="Why; kept in the record of actions", extra={"strip": True}),
]
RequestId = Annotated[
    str,
    Meta(
        pattern=NO_NUL,
        min_length=1,
        max_length=200,
        description="Repeated requests with this id are done once; the header Idempotency-Key is the same",
    ),
]
Seconds = Annotated[
    float,
    Meta(ge=0, le=31_536_000, description="Seconds to wait before the task may run", extra={"unit": " seconds"}),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """The result of one task; or of a worker or a failure group, whose name or number is then the ``id``."""

    id: str
    outcome: Literal["done", "unconfirmed", "skipped", "failed"]
    message: str
    new_id: str | None = None
    fidelity: Fidelity | None = None


def done(name: str, message: str) -> TaskResult:
    return TaskResult(id=name, outcome="done", message=message)


def unconfirmed(name: str, message: str) -> TaskResult:
    return TaskResult(id=name, outcome="unconfirmed", message=message)


def failed(name: str, message: str) -> TaskResult:
    return TaskResult(id=name, outcome="failed", message=message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Performed:
    """The result of a command. ``unconfirmed``: sent, but not everything that should have answered did."""

    outcome: Literal["done", "unconfirmed", "failed"]
    message: str
    results: tuple[TaskResult, ...] = ()
    reading: ReadMessages | None = None  # messages of a queue, which do not go into the record of actions
    details: Mapping[str, object] = field(default_factory=dict)
    replies: Mapping[str, Reply] = field(default_factory=dict)  # of the workers, word for word; not recorded
    secret: str | None = field(default=None, repr=False)  # shown once, and in no record

    @classmethod
    def of_one(cls, result: TaskResult, details: Mapping[str, object]) -> "Performed":
        """The result of a command with a single target."""
        outcome = "failed" if result.outcome == "skipped" else result.outcome
        return cls(outcome=outcome, message=result.message, results=(result,), details=details)


class Command(Struct, frozen=True, kw_only=True):
    """A change that a person may request; by default only an admin."""

    action: ClassVar[str]
    role: ClassVar[Role] = Role.ADMIN
    route: ClassVar[str] = ""  # in the JSON API, below /api/v1/
    body: ClassVar[str] = "ReasonBody"  # name of the request body in the OpenAPI document
    note: ClassVar[str] = ""  # for docs/actions.md
    subject: ClassVar[str] = ""  # format of the target, for the record of actions
    address: ClassVar[tuple[str, ...]] = ("cluster",)  # fields that the address of the request gives
    finds_cluster: ClassVar[bool] = False  # by find_cluster, where none is named
    # Whether somebody may do it who sees a part of a cluster. It has to read its targets from the target's store, which
    # has only what is inside the scope, or to compare them in check_scope.
    in_part: ClassVar[bool] = False
    cluster: str | None = None
    reason: Reason | None = None

    @property
    def subjects(self) -> tuple[str, ...]:
        """The targets, for the record of actions."""
        return (self.subject.format(self),) if self.subject else ()

    def check(self) -> None:
        """Raises InvalidInput for a value outside its limits, or ConfirmationRequired, before anything is done."""
        for name, kind in kinds_of(type(self)).items():
            _check_value(name, kind, getattr(self, name))

    def check_texts(self) -> None:
        """Raises InvalidInput for a text that is too long for the record of actions, or that databases refuse."""
        for name in {"reason", "request_id"} & set(self.__struct_fields__):
            limit = plain(kinds_of(type(self))[name]).max_length  # type: ignore[attr-defined]
            if len(getattr(self, name) or "") > limit:
                raise InvalidInput(f"{name} is longer than {limit} characters")
        values = [getattr(self, name) for name in self.__struct_fields__ if name not in {"args", "kwargs"}]
        for text in (*self.subjects, *values):
            if isinstance(text, str) and _unstorable.search(text):
                raise InvalidInput("a text contains a NUL or half of a surrogate pair")

    def check_scope(self, scope: Scope) -> None:
        """Raises Forbidden for what a scope does not allow, NotFound for what is outside of it."""
        if scope.terms and not self.in_part and (self.cluster is None or not scope.covers(self.cluster)):
            raise Forbidden(f"{self.action} is for users who see all of the cluster; this one sees {scope}")

    def prepare(self, store: Store, settings: Settings, by: str) -> Callable[[], Performed]:
        """A call that does it, in the name of ``by``. Raises NotFound for a cluster that is not monitored."""
        return partial(self.run, Target(store, settings, find_broker(settings, self.cluster or ""), by))

    def run(self, target: Target) -> Performed:
        """Does it. Raises a MonitorError with the reason where nothing was done."""
        raise NotImplementedError

    def find_cluster(self, store: Store, settings: Settings) -> str:
        """The cluster to act on. Only called where ``finds_cluster``."""
        raise NotImplementedError

    def preview(self, target: Target) -> Job:
        """What ``run`` would do, as a job; nothing is done. Of bulk commands only."""
        raise NotImplementedError


class Allowed(NamedTuple):
    """Who may do an action."""

    role: Role
    in_part: bool


class ClusterCommand(Command, frozen=True, kw_only=True):
    """A command for one cluster, which has to be named."""

    cluster: str


@cache
def kinds_of(command: type[Command]) -> Mapping[str, Type]:
    """The types of its fields, with their limits and without ``None``."""
    return {each.name: _kind(msgspec.inspect.type_info(each.type)) for each in msgspec.structs.fields(command)}


def given_fields(command: type[Command]) -> list[msgspec.structs.FieldInfo]:
    """The fields of the request body or form: those that are not in the address."""
    return [each for each in msgspec.structs.fields(command) if each.name not in command.address]


def summary_of(command: type[Command]) -> str:
    """The first paragraph of the docstring, in one line."""
    return (getdoc(command) or "").partition("\n\n")[0].replace("\n", " ").rstrip(".")


def verb_of(command: type[Command]) -> str:
    """The last part of its address, the same for the form and for the JSON API."""
    return command.route.rpartition("/")[2]


def is_whole(kind: Type) -> bool:
    """Whether only whole numbers are allowed. In JSON 3.0 is one, so their type may be float."""
    return isinstance(kind, IntType) or (isinstance(kind, FloatType) and kind.multiple_of == 1)


def plain(kind: Type) -> Type:
    """The type without its ``Meta.extra``."""
    return kind.type if isinstance(kind, Metadata) else kind


def noted(kind: Type, name: str) -> Any:
    """An entry of its ``Meta.extra``."""
    return (kind.extra or {}).get(name) if isinstance(kind, Metadata) else None


def require_typed(typed: str | None, name: str, purpose: str) -> None:
    """Raises ConfirmationRequired unless the name was typed exactly."""
    if typed != name:
        raise ConfirmationRequired(f"To {purpose}, type its name exactly: {name}.", name=name, field="confirm")


def distinct(ids: Sequence[str]) -> list[str]:
    """Each id once, in order; InvalidInput for none or too many."""
    once = list(dict.fromkeys(ids))
    if not 0 < len(once) <= MAX_TASKS:
        raise InvalidInput(f"{len(once)} tasks were named; name 1 to {MAX_TASKS}")
    return once


def summary(text: str, results: Sequence[TaskResult], noun: str = "task", **details: object) -> Performed:
    """One outcome for many: failed if anything failed or nothing was done, else unconfirmed if anything is.

    ``text`` is about those that are done, such as ``{} revoked``.
    """
    outcomes = Counter(result.outcome for result in results)
    others = [f", {outcomes[word]} {word}" for word in ("unconfirmed", "skipped", "failed") if outcomes[word]]
    message = f"{text.format(counted(outcomes['done'], noun))}{''.join(others)}."
    return Performed(outcome=overall(outcomes.keys()), message=message, results=tuple(results), details=details)


def overall(words: Collection[str]) -> Literal["done", "unconfirmed", "failed"]:
    """The outcome of many."""
    if "failed" in words or not {"done", "unconfirmed"} & set(words):
        return "failed"
    return "unconfirmed" if "unconfirmed" in words else "done"


def _kind(kind: Type) -> Type:
    if isinstance(kind, UnionType):
        return next(each for each in kind.types if not isinstance(each, NoneType))
    return kind


def _check_value(name: str, kind: Type, value: Any) -> None:
    limits = plain(kind)
    if isinstance(limits, FloatType) and value is not None and limits.le is not None:
        low = limits.gt if limits.gt is not None else limits.ge or 0.0
        if not (math.isfinite(value) and low <= value <= limits.le) or value == limits.gt:
            span = f"between {_number(low)} and {_number(limits.le)}{noted(kind, 'unit') or ''}"
            raise InvalidInput(f"{name} {value} is not {span}", field=name)
    elif isinstance(limits, StrType) and value is not None and noted(kind, "bytes"):
        if not (limits.min_length or 0) <= len(value.encode(errors="replace")) <= (limits.max_length or 0):
            raise InvalidInput(f"{name} must have {limits.min_length} to {limits.max_length} bytes", field=name)
    elif isinstance(limits, LiteralType) and value not in limits.values:
        raise InvalidInput(f"{name} {value!r} is not one of {', '.join(map(str, limits.values))}", field=name)
    elif isinstance(limits, VarTupleType) and limits.max_length is not None:
        least, most = limits.min_length or 0, limits.max_length
        if not least <= len(value) <= most:
            raise InvalidInput(f"{len(value)} {name} were given; give {least} to {most}", field=name)
        for each in value:
            _check_value(name.removesuffix("s"), limits.item_type, each)


def _number(value: float) -> str:
    return f"{value:g}" if value % 1 else f"{value:.0f}"
