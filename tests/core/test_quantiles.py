import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_monitor.core.quantiles import LONGEST, RELATIVE_ERROR, Sketch, bucket

durations = st.lists(st.floats(1e-5, 1e6), min_size=1)


@given(durations)
def test_quantiles_are_within_the_relative_error(values: list[float]) -> None:
    shares = (0.0, 0.5, 0.95, 0.99, 1.0)
    exact = [sorted(values)[math.floor(share * (len(values) - 1))] for share in shares]
    assert Sketch.of(values).quantiles(shares) == pytest.approx(exact, rel=RELATIVE_ERROR + 1e-9)


@given(durations, durations)
def test_sketches_of_parts_add_up_to_the_sketch_of_the_whole(left: list[float], right: list[float]) -> None:
    merged = Sketch.from_bytes(Sketch.of(left).to_bytes())
    merged.merge(Sketch.of(right))
    assert merged.counts == Sketch.of(left + right).counts


def test_what_is_taken_out_leaves_nothing() -> None:
    sketch = Sketch.of([0.5, 7.0])
    sketch.add({bucket(0.5): -1, bucket(7.0): -1})
    assert sketch.to_bytes() is None
    assert sketch.quantiles((0.5,)) is None


def test_a_duration_of_zero_is_counted() -> None:
    assert Sketch.of([0.0, 0.0]).count == 2


def test_every_number_has_a_bucket_and_sums_stay_numbers() -> None:
    odd = Sketch.of([math.inf, math.nan, 1e308, -1e308, 5e-324])
    assert odd.count == 5
    assert odd.total < math.inf
    (largest,) = odd.quantiles((1.0,)) or []
    assert largest == pytest.approx(LONGEST, rel=2 * RELATIVE_ERROR)
