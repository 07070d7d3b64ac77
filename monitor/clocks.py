"""Clocks that are set while they run: the workers' and our own. No I/O, no clock of its own.

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
OWN_SECONDS = 1.0


class OwnClock:
    """Our own clock beside one that nobody can set; it goes on while the machine sleeps."""

    def __init__(self, now: float, steady: float) -> None:
        self._ahead = now - steady
        self._set_by = 0.0  # of what has arrived and is not read yet, the time may be by the clock as it was before

    def set_by(self, now: float, steady: float) -> float:
        """Seconds by which the clock was set forward since this was last asked; 0 where it only drifted."""
        ahead = now - steady
        seconds, self._ahead = ahead - self._ahead, ahead
        if abs(seconds) < OWN_SECONDS:
            return 0.0
        self._set_by = seconds
        return seconds

    def read_again(self, arrived: float, now: float) -> float:
        """A time of arrival, in order, by the clock as it is now: of the two that it may be, what is nearer to now."""
        if self._set_by and abs(arrived + self._set_by - now) < abs(arrived - now):
            return arrived + self._set_by
        self._set_by = 0.0
        return arrived


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
