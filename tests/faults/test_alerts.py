"""Two receivers with alerts, killed one after the other: each alert is sent once, and a storm is a few messages."""

import logging
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event

from celery_monitor.core.alerts.kinds import DEFAULT_RULES
from celery_monitor.records.alert import Channel, NotificationState, Rule
from celery_monitor.records.task import TaskState
from celery_monitor.store.alerts.facts import BEGAN
from celery_monitor.store.alerts.rules import add_channel, change_channel, save_rule
from celery_monitor.store.alerts.states import read_messages
from celery_monitor.store.engine import Store, open_store, put_value
from tests.alerts.listener import Listener, listening
from tests.faults.receivers import CLUSTER, Program, Record, receiving
from tests.workers import Worker, running_worker, wait_for

log = logging.getLogger(__name__)


def prepare(store: Store, there: Listener) -> None:
    with store.begin() as connection:
        put_value(store, connection, f"{BEGAN}{CLUSTER}", "0.0")
    for rule in DEFAULT_RULES.values():
        save_rule(store, Rule(name=rule.name, kind=rule.kind, enabled=rule.kind == "new failure", resolve=False))
    add_channel(store, Channel(name="team", kind="webhook", url=there.address))


def sent(there: Listener) -> Counter[int]:
    """How often each alert was sent."""
    return Counter(alert["id"] for each in list(there.requests) for alert in each.json["alerts"])


def fail(worker: Worker, letters: str) -> None:
    """Failures of so many causes."""
    for letter in letters:
        worker.send("fail", f"cause {letter * 3} of this round")


def fates(store: Store) -> Counter[NotificationState]:
    return Counter(message.state for message in read_messages(store))


def wait_for_fates(store: Store, **expected: int) -> None:
    wanted = {NotificationState(state): count for state, count in expected.items()}
    try:
        wait_for(lambda: fates(store) == wanted, 200, f"{expected}")
    except TimeoutError as error:
        raise AssertionError(f"{error}: {fates(store)}") from None


def test_no_alert_is_sent_twice_over_three_kills(redis_url: str, database_url: str, tmp_path: Path) -> None:
    """Killed while messages wait, while the other side has one and has not answered, and once all is sent."""
    with ExitStack() as stack:
        there = stack.enter_context(listening())
        store = stack.enter_context(closing(open_store(database_url)))
        prepare(store, there)
        record = Record(store)
        worker = stack.enter_context(running_worker(redis_url))
        leader = stack.enter_context(receiving(redis_url, database_url, tmp_path, "0"))
        record.wait_for_leader(leader)

        def kill(program: Program, successor: Program) -> Program:
            program.kill()
            record.wait_for_leader(successor)
            return successor

        def stand_by(number: int) -> Program:
            program = stack.enter_context(receiving(redis_url, database_url, tmp_path, f"{number}"))
            record.wait_for_standby(program)
            return program

        change_channel(store, 1, quiet_hours=this_hour())
        standby = stand_by(1)
        fail(worker, "abcde")
        wait_for_fates(store, waiting=5)
        leader, standby = kill(leader, standby), stand_by(2)
        there.hold = Event()
        change_channel(store, 1, quiet_hours="")
        wait_for(lambda: there.requests, 90, "the digest")
        leader = kill(leader, standby)
        there.hold.set()
        there.hold = None
        wait_for_fates(store, unconfirmed=5)
        standby = stand_by(3)
        fail(worker, "klmno")
        wait_for_fates(store, unconfirmed=5, sent=5)
        leader = kill(leader, standby)
        fail(worker, "x")
        wait_for_fates(store, unconfirmed=5, sent=6)
        assert set(sent(there).values()) == {1}
        assert len(sent(there)) == 11  # also those that are in doubt had arrived
        assert len(there.requests[0].json["alerts"]) == 5


def this_hour() -> str:
    """Quiet hours around now."""
    begin, end = (time.strftime("%H:%M", time.gmtime(time.time() + each * 3600)) for each in (-1, 1))
    return f"{begin}-{end}"


def test_storm_of_failures_in_500_groups_is_a_few_messages(redis_url: str, sqlite_url: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        there = stack.enter_context(listening())
        store = stack.enter_context(closing(open_store(sqlite_url)))
        prepare(store, there)
        record = Record(store)
        worker = stack.enter_context(running_worker(redis_url, concurrency=4))
        record.wait_for_leader(stack.enter_context(receiving(redis_url, sqlite_url, tmp_path, "0")))
        began = time.time()
        for number in range(10_000):
            worker.send("fail", f"cause {_letters(number % 500)}")
        failed = {TaskState.FAILURE: 10_000}
        wait_for(lambda: record.counts() == failed and len(sent(there)) >= 500, 400, "every failure and every alert")
        minutes = (time.time() - began) / 60
        log.info("%d messages of 500 alerts in %.1f min", len(there.requests), minutes)
        assert len(there.requests) <= 4 * (minutes + 1)
        assert max(sent(there).values()) == 1


def _letters(number: int) -> str:
    """A word for each number: digits are masked in the signature of a failure."""
    return "".join("bcdfghjklm"[int(digit)] + "aeiou"[int(digit) // 2] for digit in f"{number:03}")
