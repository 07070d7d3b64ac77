"""Differences that events cannot decide, by name and with the reason. The command passes when no others occur."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.conformance.compare import Difference


@dataclass(frozen=True)
class Accepted:
    """All differences of one kind, of the tasks of one name; None where a difference is of no task."""

    kind: str
    name: str | None
    reason: str

    def covers(self, difference: Difference) -> bool:
        return (self.kind, self.name) == (difference.kind, difference.name)


ACCEPTED: tuple[Accepted, ...] = ()


def is_accepted(difference: Difference, accepted: Sequence[Accepted] = ACCEPTED) -> bool:
    return any(each.covers(difference) for each in accepted)


def stale(
    differences: Sequence[Difference], names: Iterable[str | None], accepted: Sequence[Accepted] = ACCEPTED
) -> list[Accepted]:
    """Those that no longer occur though tasks of their name ran: what was undecidable was decided."""
    ran = {None, *names}
    return [each for each in accepted if each.name in ran and not any(map(each.covers, differences))]
