"""Workers' clocks that are set while they run. No I/O, no clock of its own.

A worker counts its events, whatever its clock says. So an event with a higher count and an earlier time tells that the
clock went back; one that is stamped later than it arrived, by all that is known of the clock, that it went forward.
From then on the worker's times are taken back to what its clock said before: what runs meanwhile has times that agree.
"""

from collections.abc import Mapping
from collections.abc import Sequence

import msgspec

from monitor.lifecycle import CAPTURED
from monitor.records import Event

JUMP_SECONDS = 5.0  # less than that is drift, or events that overtook each other


class Newest(msgspec.Struct):
    """The event with the highest count that a worker's process has sent."""

    pid: int | None
    clock: int
    stamp: float


class Clocks:
    """The clocks of the workers of one cluster, by their processes."""

    def __init__(self) -> None:
        self._last: dict[str, Newest] = {}
        self._jumps: dict[str, tuple[int | None, float]] = {}

    def forget(self) -> None:
        """Nothing that is in memory is sure; what was stored is restored."""
        self._last.clear()
        self._jumps.clear()

    def restore(self, hostname: str, pid: int | None, jump: float) -> None:
        """What an earlier receiver found out."""
        if jump and hostname not in self._jumps:
            self._jumps[hostname] = (pid, jump)

    def jump_of(self, hostname: str, pid: int | None) -> float:
        """Seconds by which this process's clock was set forward since it was first heard."""
        process, jump = self._jumps.get(hostname, (None, 0.0))
        return jump if process == pid else 0.0

    def steady(self, events: Sequence[Event]) -> bool:
        """Nobody has set a clock, as the last event of each worker shows: none of these is to be corrected."""
        if self._jumps:
            return False
        newest = {event.hostname: event for event in events}
        for hostname, event in newest.items():
            last = self._last.get(hostname)
            if last is None or last.pid != event.pid or abs(event.timestamp - last.stamp) > JUMP_SECONDS:
                return False
        for hostname, event in newest.items():
            self._hear(self._last[hostname], event)
        return True

    def corrected(self, event: Event, arrived: float, skews: Mapping[str, float]) -> Event:
        """The event with the time that the clock would say if nobody had set it. ``skews`` are as they were before."""
        hostname, pid, stamp = event.hostname, event.pid, event.timestamp
        last = self._last.get(hostname)
        if last is not None and last.pid == pid and abs(stamp - last.stamp) <= JUMP_SECONDS:
            self._hear(last, event)
        elif hostname in skews and event.type != CAPTURED:
            self._look(event, stamp + skews[hostname] - arrived)
        jump = self.jump_of(hostname, pid)
        return msgspec.structs.replace(event, timestamp=max(0.0, stamp - jump)) if jump else event

    @staticmethod
    def _hear(last: Newest, event: Event) -> None:
        if (event.clock or 0) > last.clock:
            last.clock, last.stamp = event.clock or 0, event.timestamp

    def _look(self, event: Event, ahead: float) -> None:
        """Whether the clock was set since the worker's newest event. ``ahead``: seconds it arrived before its stamp."""
        hostname, pid, stamp = event.hostname, event.pid, event.timestamp
        last = self._last.get(hostname)
        if last is not None and last.pid == pid:
            if (event.clock or 0) <= last.clock:
                return
            jump = self.jump_of(hostname, pid)
            if stamp < last.stamp or ahead - jump > JUMP_SECONDS:
                self._jumps[hostname] = (pid, ahead)
        self._last[hostname] = Newest(pid, event.clock or 0, stamp)
