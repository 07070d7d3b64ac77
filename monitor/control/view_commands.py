"""What a person may ask for about saved views. They belong to the dashboard: no cluster, no broker."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveView:
    """Keep a list under a name for everybody. ``query_string`` is what stands behind the ``?`` of its address."""

    action: ClassVar[str] = "view.save"
    cluster: ClassVar[None] = None
    name: str
    path: str
    query_string: str = ""
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RenameView:
    """Give a saved view another name."""

    action: ClassVar[str] = "view.rename"
    cluster: ClassVar[None] = None
    view: int
    name: str
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteView:
    """Take a saved view away from everybody."""

    action: ClassVar[str] = "view.delete"
    cluster: ClassVar[None] = None
    view: int
    reason: str | None = None


ViewCommand = SaveView | RenameView | DeleteView
