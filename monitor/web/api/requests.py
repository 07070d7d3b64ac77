"""What operations of several nouns may be asked. Whatever is not named is refused."""

from typing import Annotated

from msgspec import Meta
from msgspec import Struct

from monitor.control.commands import NO_NUL
from monitor.control.commands import Reason

DAY = 86400.0
LONGEST_SPAN = 731 * DAY  # as long as rollups are kept
MOST_ITEMS = 500
LATEST = 4_102_444_800.0  # the year 2100
Cluster = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Name of a cluster")]
Cursor = Annotated[
    str,
    Meta(pattern=NO_NUL, description="Where to go on: next of the page before", extra_json_schema={"format": "cursor"}),
]
Limit = Annotated[int, Meta(ge=1, le=MOST_ITEMS, description="Most items of a page")]
Query = Annotated[
    str, Meta(pattern=NO_NUL, description="Filter; see docs/filters.md", extra_json_schema={"format": "task-filter"})
]
TaskId = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="Id of a task, percent-encoded")]
Time = Annotated[float, Meta(ge=0, le=LATEST, description="Seconds since 1970, UTC")]
Name = Annotated[str, Meta(pattern=NO_NUL, min_length=1, description="This one only, by its whole name")]


class NoParameters(Struct, frozen=True, forbid_unknown_fields=True):
    """An operation without parameters."""


class InCluster(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One cluster, or all."""

    cluster: Cluster | None = None


class Why(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Nothing but a reason."""

    reason: Reason | None = None
