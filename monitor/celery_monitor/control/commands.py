"""A command: what a person asks for, as one Struct with everything about it.

Its class names the action under which it is allowed and recorded, the role that it needs, its address in the JSON API
and a note for the document; the types of its fields are its limits, and ``run`` does it. The first paragraph of its
docstring is the summary in the JSON API and in docs/actions.md, the second describes the request body. Routes, the
OpenAPI document, the parsing of forms, the check of roles, the record of actions and docs/actions.md follow.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from inspect import getdoc
from typing import Annotated, Any, ClassVar, Literal, get_args

import msgspec
from msgspec import Meta, Struct
from msgspec.inspect import FloatType, IntType, LiteralType, Metadata, NoneType, StrType, Type, UnionType, VarTupleType

from celery_monitor.brokers.queues import ReadMessages
from celery_monitor.control.target import Target, find_broker
from celery_monitor.core.arguments import Fidelity
from celery_monitor.errors import ConfirmationRequired, Forbidden, InvalidInput
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks. ``name`` goes into the record of actions."""

    name: str
    role: Role


ANONYMOUS = Actor("anonymous", Role.ADMIN)  # only behind a loopback address


def require(actor: Actor, action: str, needed: Role) -> None:
    """Raises Forbidden unless the actor's role may do the action."""
    if actor.role < needed:
        raise Forbidden(f"{actor.name} is {actor.role.name.lower()}; {action} needs the role {needed.name.lower()}")


MAX_TASKS = 1000  # of one command; more than a page is a job, not a click
NO_NUL = r"^[^\x00]*$"  # nothing in the record has one, and PostgreSQL refuses it
_unstorable = re.compile("[\\0\ud800-\udfff]")

Text = Annotated[str, Meta(pattern=NO_NUL)]
# RabbitMQ allows the name of a queue 255 bytes.
Name = Annotated[str, Meta(pattern=NO_NUL, min_length=1, max_length=255, extra={"bytes": True})]
TypedName = Annotated[Name, Meta(extra={"bytes": True, "strip": True})]  # in a form, blanks around it are a slip
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
        description="The same request, however often it comes, is done once; the header Idempotency-Key may say it too",
    ),
]
Seconds = Annotated[
    float,
    Meta(ge=0, le=31_536_000, description="Seconds to wait before the task may run", extra={"unit": " seconds"}),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """What came of one task; of a worker or a failure group, whose name or number is then the ``id``."""

    id: str
    outcome: Literal["done", "unconfirmed", "skipped", "failed"]
    message: str
    new_id: str | None = None
    fidelity: Fidelity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Performed:
    """What came of a command. ``unconfirmed``: it was sent, and not everybody who should have answered did."""

    outcome: Literal["done", "unconfirmed", "failed"]
    message: str
    results: tuple[TaskResult, ...] = ()
    reading: ReadMessages | None = None  # what was read, of which nothing goes into the record of actions
    details: Mapping[str, object] = field(default_factory=dict)
    secret: str | None = field(default=None, repr=False)  # shown once, and in no record


class Command(Struct, frozen=True, kw_only=True):
    """Something that a person asks for. Admins alone may, unless its class says otherwise."""

    action: ClassVar[str]
    role: ClassVar[Role] = Role.ADMIN
    route: ClassVar[str] = ""  # in the JSON API, below /api/v1/
    body: ClassVar[str] = "Why"  # name of the request body in the OpenAPI document
    note: ClassVar[str] = ""  # what else to know, for docs/actions.md
    subject: ClassVar[str] = ""  # format of what it is done to, for the record of actions
    address: ClassVar[tuple[str, ...]] = ("cluster",)  # fields that the address of the request gives
    cluster: str | None = None
    reason: Reason | None = None

    @property
    def subjects(self) -> tuple[str, ...]:
        """What it is done to, for the record of actions."""
        return (self.subject.format(self),) if self.subject else ()

    def check(self) -> None:
        """Raises InvalidInput for a value beyond its limits, or ConfirmationRequired, before anything is done."""
        for name, kind in kinds_of(type(self)).items():
            _check_value(name, kind, getattr(self, name))

    def check_texts(self) -> None:
        """Raises InvalidInput for a text that no record of actions has room for, or no database stores."""
        for name in {"reason", "request_id"} & set(self.__struct_fields__):
            limit = plain(kinds_of(type(self))[name]).max_length  # type: ignore[attr-defined]
            if len(getattr(self, name) or "") > limit:
                raise InvalidInput(f"{name} is longer than {limit} characters")
        values = [getattr(self, name) for name in self.__struct_fields__ if name not in {"args", "kwargs"}]
        for text in (*self.subjects, *values):
            if isinstance(text, str) and _unstorable.search(text):
                raise InvalidInput("a NUL or half of a surrogate pair stands in a text")

    def prepare(self, store: Store, settings: Settings, by: str) -> Callable[[], Performed]:
        """What does it, in the name of ``by``. Raises NotFound for a cluster that is not watched."""
        return partial(self.run, Target(store, settings, find_broker(settings, self.cluster or ""), by))

    def run(self, target: Target) -> Performed:
        """Does it. Raises a MonitorError with the reason where nothing was done."""
        raise NotImplementedError


class ClusterCommand(Command, frozen=True, kw_only=True):
    """Something that is asked of one cluster, which is named."""

    cluster: str


@cache
def kinds_of(command: type[Command]) -> Mapping[str, Type]:
    """Its fields with their types and limits; of one that may be ``None``, what it is else."""
    return {each.name: _kind(msgspec.inspect.type_info(each.type)) for each in msgspec.structs.fields(command)}


def given_fields(command: type[Command]) -> list[msgspec.structs.FieldInfo]:
    """What the request or the form gives beside its address."""
    return [each for each in msgspec.structs.fields(command) if each.name not in command.address]


def summary_of(command: type[Command]) -> str:
    """What it does, in one line."""
    return (getdoc(command) or "").partition("\n\n")[0].replace("\n", " ").rstrip(".")


def verb_of(command: type[Command]) -> str:
    """The last part of its addresses, of the form and of the JSON API alike."""
    return command.route.rpartition("/")[2]


def is_whole(kind: Type) -> bool:
    """JSON knows no whole numbers: to it, 3.0 is one."""
    return isinstance(kind, IntType) or (isinstance(kind, FloatType) and kind.multiple_of == 1)


def plain(kind: Type) -> Type:
    """The type without what was noted about it."""
    return kind.type if isinstance(kind, Metadata) else kind


def noted(kind: Type, name: str) -> Any:
    """What its ``Meta.extra`` has under this name."""
    return (kind.extra or {}).get(name) if isinstance(kind, Metadata) else None


def require_typed(typed: str | None, name: str, purpose: str) -> None:
    """Raises ConfirmationRequired unless the name was typed as it is."""
    if typed != name:
        raise ConfirmationRequired(f"To {purpose}, type its name as it stands: {name}.", name=name, field="confirm")


def distinct(ids: Sequence[str]) -> list[str]:
    """Each id once, in order; InvalidInput for none or too many."""
    once = list(dict.fromkeys(ids))
    if not 0 < len(once) <= MAX_TASKS:
        raise InvalidInput(f"{len(once)} tasks were named; name 1 to {MAX_TASKS}")
    return once


def summary(verb: str, results: Sequence[TaskResult], **details: object) -> Performed:
    """One outcome for many: failed if anything failed or nothing was done, else unconfirmed if anything is."""
    outcomes = [result.outcome for result in results]
    counted = {word: outcomes.count(word) for word in ("done", "unconfirmed", "skipped", "failed") if word in outcomes}
    message = f"{verb}: " + ", ".join(f"{number} {word}" for word, number in counted.items())
    return Performed(outcome=_overall(counted.keys()), message=message, results=tuple(results), details=details)


def _overall(words: Collection[str]) -> Literal["done", "unconfirmed", "failed"]:
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
