"""Percentiles that can be merged: a histogram with buckets of 2 % relative error (as in DDSketch).

A bucket's number is the logarithm of its values, so sketches of minutes add up to hours, and corrections can be
subtracted. The library ddsketch cannot subtract, and stores sketches with protobuf.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

import msgspec

RELATIVE_ERROR = 0.02
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_SCALE = 1 / math.log(_GAMMA)
SHORTEST = 1e-6  # seconds; anything shorter counts as this
LONGEST = 1e10  # seconds, as shown: an old record may have longer ones, whose sums would not be numbers

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[int, int]).decode


def bucket(seconds: float) -> int:
    """The number of the bucket that a duration falls into; any number has one."""
    try:
        return math.ceil(math.log(max(SHORTEST, seconds)) * _SCALE)
    except OverflowError:  # infinite
        return _LAST_BUCKET


_LAST_BUCKET = bucket(LONGEST)


def to_bytes(counts: Mapping[int, int]) -> bytes | None:
    """Counts of durations by bucket, as stored; ``None`` if empty."""
    return _encode(counts) if counts else None


class Sketch:
    """Counts of durations by bucket."""

    __slots__ = ("counts",)

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts = dict(counts or {})

    @classmethod
    def from_bytes(cls, blob: bytes | None) -> "Sketch":
        """The sketch from ``to_bytes``; empty for ``None``."""
        return cls(_decode(blob) if blob else None)

    @classmethod
    def of(cls, durations: Iterable[float]) -> "Sketch":
        """A sketch of durations in seconds."""
        sketch = cls()
        for seconds in durations:
            sketch.add({bucket(seconds): 1})
        return sketch

    def to_bytes(self) -> bytes | None:
        """As stored; ``None`` if empty."""
        return to_bytes(self.counts)

    def add(self, counts: Mapping[int, int]) -> None:
        """Adds counts by bucket, also negative ones; empty buckets are removed."""
        for number, count in counts.items():
            total = self.counts.get(number, 0) + count
            if total > 0:
                self.counts[number] = total
            else:
                self.counts.pop(number, None)

    def merge(self, other: "Sketch") -> None:
        self.add(other.counts)

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    @property
    def total(self) -> float:
        """The sum of the durations, in seconds, within the relative error."""
        return sum(middle(number) * count for number, count in self.counts.items())

    def quantiles(self, shares: Sequence[float]) -> list[float] | None:
        """The durations in seconds below which these shares lie; ``None`` if empty."""
        if not self.counts:
            return None
        numbers = sorted(self.counts)
        passed = list(accumulate(map(self.counts.__getitem__, numbers)))
        return [middle(numbers[bisect_right(passed, share * (passed[-1] - 1))]) for share in shares]


@lru_cache(4096)
def middle(number: int) -> float:
    """The duration that a bucket stands for, in seconds."""
    return float(2 * _GAMMA ** min(number, _LAST_BUCKET) / (_GAMMA + 1))
