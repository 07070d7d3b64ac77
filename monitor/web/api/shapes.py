"""What operations of several nouns answer, and how a record becomes an answer. Unknown is null."""

from collections.abc import Iterable
from typing import Any
from typing import Literal
from typing import TypeVar

from msgspec import Struct

Shape = TypeVar("Shape", bound=Struct)


def shape(kind: type[Shape], record: object, **more: object) -> Shape:
    """A record as the API shows it: the fields of ``kind``, by name."""
    fields: dict[str, Any] = {name: getattr(record, name) for name in kind.__struct_fields__ if name not in more}
    return kind(**fields, **more)


def shapes(kind: type[Shape], records: Iterable[object]) -> list[Shape]:
    return [shape(kind, record) for record in records]


class AnswerItem(Struct, frozen=True, kw_only=True):
    """What one worker answered, or that it did not."""

    worker: str
    outcome: Literal["done", "unconfirmed", "skipped", "failed"]
    message: str


class Told(Struct, frozen=True, kw_only=True):
    """``unconfirmed``: it was sent, and not everybody who should have answered did, or has done it yet."""

    outcome: Literal["done", "unconfirmed"]
    message: str
    answers: list[AnswerItem]
