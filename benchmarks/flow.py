"""A stream without an end, stamped as it is sent, for next to no CPU: a block of messages whose ids, times and numbers
are written anew each time it comes round."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks.stream import Message, Publisher, heartbeat, messages
from celery_monitor.records.task import TaskState

HEARTBEAT_SECONDS = 2.0
TICK_SECONDS = 0.02
SPREAD = 0x9E3779B1  # ids of one round lie nowhere near those of the next, as random ones do
ENDS = {"task-succeeded": TaskState.SUCCESS, "task-failed": TaskState.FAILURE}
MARK = "\x00"


class Template(NamedTuple):
    """A message with gaps: the ids of its tasks by their place in the block, and the time in each of its events."""

    key: str
    text: bytes
    tasks: tuple[int, ...]  # -1 stands for the time
    begun: int
    ends: Counter[TaskState]
    events: int


class Flow:
    """Received, started and ended of task after task; ``sent`` says how many tasks end in which way."""

    def __init__(self, per_message: int = 10, block: int = 30_000, *, stamped: bool = False) -> None:
        self.sent: Counter[TaskState] = Counter()
        self.events = 0
        self.tasks = 0  # that were received
        self._numbers: dict[str, int] = {}
        self._stamped = stamped
        self._templates = [self._template(each) for each in messages(block, per_message)]
        self._firsts = [int(uuid[:8], 16) for uuid in self._numbers]

    def _template(self, message: Message) -> Template:
        key, body = message
        events = json.loads(body)
        events = events if isinstance(events, list) else [events]
        for event in events:
            number = self._numbers.setdefault(event["uuid"], len(self._numbers))
            event["timestamp"] = f"{MARK}-1{MARK}"
            for name in ("uuid", "root_id"):
                if name in event:
                    event[name] = f"{MARK}{number}{MARK}{event[name][8:]}"
            if self._stamped and "args" in event:
                event["args"] = f"({MARK}-1{MARK},)"
        parts = json.dumps(events).replace("\\u0000", MARK).replace("%", "%%").split(MARK)
        tasks = tuple(int(each) for each in parts[1::2])
        text = "%b".join(parts[::2]).replace('"timestamp": "%b"', '"timestamp": %b')
        ends = Counter(ENDS[each["type"]] for each in events if each["type"] in ENDS)
        begun = sum(each["type"] == "task-received" for each in events)
        return Template(key, text.encode(), tasks, begun, ends, len(events))

    def __iter__(self) -> Iterator[Message]:
        turn = 0
        while True:
            turn += 1
            values = [b"%08x" % ((first + turn * SPREAD) & 0xFFFFFFFF) for first in self._firsts]
            values.append(b"")
            for each in self._templates:
                values[-1] = b"%.6f" % time.time()
                self.sent += each.ends
                self.events += each.events
                self.tasks += each.begun
                yield each.key, each.text % tuple([values[number] for number in each.tasks])


class Sending(threading.Thread):
    """Puts a flow on a broker at a steady rate, with the heartbeats of its workers, until told to stop."""

    def __init__(self, out: Publisher, flow: Flow, rate: float, *, enough: Callable[[], bool] = lambda: False) -> None:
        super().__init__(daemon=True, name="sending")
        self._out = out
        self._flow = flow
        self._rate = rate
        self._enough = enough
        self._over = threading.Event()
        self.seconds = 0.0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._send()
        except Exception as error:  # noqa: BLE001 - finish() raises it
            self.error = error

    def _send(self) -> None:
        began, source, before = time.monotonic(), iter(self._flow), self._flow.events
        beat_at = 0.0
        while not self._over.is_set() and not self._enough():
            now = time.monotonic()
            if now >= beat_at:
                self._out.publish(heartbeat())
                beat_at = now + HEARTBEAT_SECONDS
            due: list[Message] = []
            while self._flow.events - before < (now - began) * self._rate and len(due) < 2000:
                due.append(next(source))
            if due:
                self._out.publish(due, careful=False)
            self.seconds = time.monotonic() - began
            time.sleep(max(0.0, now + TICK_SECONDS - time.monotonic()))

    def finish(self) -> float:
        """Stops; gives the events per second that were really sent."""
        self._over.set()
        self.join(60)
        if self.error is not None:
            raise self.error
        return self._flow.events / self.seconds
