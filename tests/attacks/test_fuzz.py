"""A thousandth of what fuzz.py does."""

from tests.attacks.fuzz import fuzz


def test_nothing_that_is_made_up_breaks_a_door() -> None:
    found = fuzz(1000, seed=20261201)
    assert sum(count for count, _, _ in found.values()) >= 1000
