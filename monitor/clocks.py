"""Workers' clocks that are set while they run. No I/O, no clock of its own.

A worker counts its events, whatever its clock says. So an event with a higher count and an earlier time tells that the
clock went back; one that is stamped later than it arrived, by all that is known of the clock, that it went forward.
From then on the worker's times are taken back to what its clock said before: what runs meanwhile has times that agree.
"""

import msgspec

from monitor.records import Event

JUMP_SECONDS = 5.0  # less than that is drift, or events that overtook each other


class Clocks:
    """The clocks of the workers of one cluster, by their processes."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int | None, int, float]] = {}  # process, count and time of the newest event
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

    def corrected(self, event: Event, arrived: float, skew: float) -> Event:
        """The event with the time that the clock would say if nobody had set it. ``skew`` is as it was before."""
        hostname, pid, stamp = event.hostname, event.pid, event.timestamp
        jump = self.jump_of(hostname, pid) if self._jumps else 0.0
        process, count, before = self._last.get(hostname, (None, 0, 0.0))
        clock = event.clock or 0
        if process == pid and clock > count:
            ahead = stamp - jump + skew - arrived
            if stamp < before - JUMP_SECONDS or (ahead > JUMP_SECONDS and stamp > before + JUMP_SECONDS):
                jump += ahead
                self._jumps[hostname] = (pid, jump)
        if process != pid or clock > count:
            self._last[hostname] = (pid, clock, stamp)
        return msgspec.structs.replace(event, timestamp=max(0.0, stamp - jump)) if jump else event
