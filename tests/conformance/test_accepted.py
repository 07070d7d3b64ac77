"""What is accepted is one kind of difference of one task, and is asked for as long as it is listed."""

import pytest

from tests.conformance.accepted import ACCEPTED, Accepted, is_accepted, stale
from tests.conformance.compare import KINDS, Difference

LIST = [Accepted("runs", "shop.pack", "no event tells"), Accepted("count by state", None, "follows from it")]


@pytest.mark.parametrize(
    ("kind", "name", "accepted"),
    [
        ("runs", "shop.pack", True),
        ("state", "shop.pack", False),
        ("runs", "shop.unpack", False),
        ("count by state", None, True),
        ("workflow", None, False),
    ],
)
def test_only_the_kind_and_the_name_that_are_listed_are_accepted(kind: str, name: str | None, accepted: bool) -> None:
    assert is_accepted(Difference(kind, "9f3c", name, [None], ["replaced"]), LIST) is accepted


def test_what_no_longer_differs_is_stale() -> None:
    runs = Difference("runs", "9f3c", "shop.pack", [None], ["replaced"])
    assert stale([runs], {"shop.pack"}, LIST) == LIST[1:]
    assert stale([], {"shop.pack"}, LIST) == LIST


def test_what_did_not_run_is_not_stale() -> None:
    assert stale([], {"shop.unpack"}, LIST) == LIST[1:]


def test_each_that_is_accepted_is_of_a_kind_that_is_compared_and_says_why() -> None:
    assert all(each.kind in KINDS and each.reason for each in ACCEPTED)
