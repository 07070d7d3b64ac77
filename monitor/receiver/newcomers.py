"""Which worker processes have not yet answered a question about themselves, and when each is asked again."""

from collections.abc import Iterable
from collections.abc import Sequence
from dataclasses import dataclass

from monitor.receiver.switches import ANSWER_SECONDS
from monitor.receiver.switches import Process
from monitor.records import Worker

FIRST_SECONDS = 0.15  # between the first questions to a worker that just came up
GROWTH = 0.25  # of the time since the first question: a worker that is busy, or answers nobody, is asked ever less


@dataclass(slots=True)
class _Questions:
    """What one process was asked so far."""

    since: float
    next_at: float


class Newcomers:
    """The worker processes of one cluster that are up and did not answer yet.

    A worker sends its first heartbeat before it listens to remote control (celery/worker/consumer: Heart starts
    before Control), so the first question of all may go to nobody.
    """

    def __init__(self, longest: float) -> None:
        self._longest = longest
        self._open: dict[Process, _Questions] = {}
        self._answered: set[Process] = set()

    def due(self, workers: Sequence[Worker], now: float) -> list[str]:
        """The names of those to be asked now. ``workers`` are all that are up."""
        processes = {(worker.hostname, worker.pid): worker for worker in workers}
        self._answered &= processes.keys()
        self._open = {
            process: self._open.get(process) or _Questions(now, now)
            for process, worker in processes.items()
            if process not in self._answered or worker.queues is None
        }
        return sorted({name for (name, _), questions in self._open.items() if questions.next_at <= now})

    def patience(self, names: Iterable[str], now: float) -> float:
        """Seconds to wait for the answers of these: short for those that come up just now."""
        wanted = set(names)
        ages = [now - each.since for (name, _), each in self._open.items() if name in wanted]
        return min(ANSWER_SECONDS, max(FIRST_SECONDS, GROWTH * max(ages, default=0.0)))

    def asked(self, names: Iterable[str], now: float) -> None:
        """These were asked; those that did not answer are asked again later."""
        wanted = set(names)
        for (name, _), each in self._open.items():
            if name in wanted:
                each.next_at = now + min(self._longest, max(FIRST_SECONDS, GROWTH * (now - each.since)))

    def answered(self, processes: Iterable[Process]) -> None:
        """These said which queues they consume."""
        self._answered.update(processes)

    def seconds_left(self, now: float) -> float | None:
        """Until the next question is due; ``None``: nobody is new."""
        return min((max(0.0, each.next_at - now) for each in self._open.values()), default=None)
