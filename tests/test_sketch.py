import math

from hypothesis import given
from hypothesis import strategies as st

from monitor.sketch import RELATIVE_ERROR
from monitor.sketch import Sketch
from monitor.sketch import bucket

durations = st.lists(st.floats(1e-5, 1e6), min_size=1)


@given(durations, st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_within_the_relative_error(values: list[float], q: float) -> None:
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    found = Sketch.of(values).quantile(q)
    assert found is not None
    assert abs(found - exact) <= exact * (RELATIVE_ERROR + 1e-9)


@given(durations, durations)
def test_sketches_of_parts_add_up_to_the_sketch_of_the_whole(left: list[float], right: list[float]) -> None:
    merged = Sketch.from_bytes(Sketch.of(left).to_bytes())
    merged.merge(Sketch.of(right))
    assert merged.counts == Sketch.of(left + right).counts


def test_what_is_taken_out_leaves_nothing() -> None:
    sketch = Sketch.of([0.5, 7.0])
    sketch.add({bucket(0.5): -1, bucket(7.0): -1})
    assert sketch.to_bytes() is None
    assert sketch.quantile(0.5) is None


def test_a_duration_of_zero_is_counted() -> None:
    assert Sketch.of([0.0, 0.0]).count == 2
