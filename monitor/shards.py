"""Which receiver of several takes which task: by a hash of its id, the same on every broker and machine. No I/O."""

from typing import NamedTuple
from zlib import crc32

LONGEST_ID = 512  # as intake.py cuts it
MOST = 64


class Shard(NamedTuple):
    """One of ``total`` receivers that share a cluster's tasks; the first also looks after its workers and queues."""

    number: int = 1
    total: int = 1

    def has(self, task_id: str) -> bool:
        """Whether this receiver takes the task. An id counts as it is stored."""
        if self.total == 1:
            return True
        stored = task_id.replace("\0", "\ufffd")[:LONGEST_ID].encode("utf-8", "replace")
        return crc32(stored) % self.total == self.number - 1

    @property
    def first(self) -> bool:
        """Does what is done once for a cluster."""
        return self.number == 1

    def takes_over(self, number: int) -> bool:
        """Whether what the receiver of that number left is ours: the first also has what more receivers left once."""
        return number == self.number or (self.first and number > self.total)

    @property
    def suffix(self) -> str:
        """Behind the names of what each has for itself: ``.2-of-3``; nothing where there is one receiver."""
        return "" if self.total == 1 else f".{self.number}-of-{self.total}"

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


EVERYTHING = Shard()
