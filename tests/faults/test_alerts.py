"""Two receivers with alerts, killed one after the other: each alert is sent once, and a storm is a few messages."""

import logging
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path

from celery_monitor.core.alerts.kinds import DEFAULT_RULES
from celery_monitor.records.alert import Channel, NotificationState, Rule
from celery_monitor.store.alerts.facts import BEGAN
from celery_monitor.store.alerts.rules import add_channel, save_rule
from celery_monitor.store.alerts.states import read_messages
from celery_monitor.store.engine import Store, open_store, put_value
from tests.alerts.listener import Listener, listening
from tests.faults.receivers import CLUSTER, Record, receiving
from tests.workers import running_worker, wait_for

KILLS = 3
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


def test_no_alert_is_sent_twice_over_three_kills(redis_url: str, database_url: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        there = stack.enter_context(listening())
        store = stack.enter_context(closing(open_store(database_url)))
        prepare(store, there)
        record = Record(store)
        worker = stack.enter_context(running_worker(redis_url))
        leader = stack.enter_context(receiving(redis_url, database_url, tmp_path, "0"))
        record.wait_for_leader(leader)
        for kill in range(KILLS):
            standby = stack.enter_context(receiving(redis_url, database_url, tmp_path, f"{kill + 1}"))
            record.wait_for_standby(standby)
            for number in range(5):
                worker.send("fail", f"cause {'abcd'[kill]}{'vwxyz'[number]} of this round")
            wait_for(lambda: len(there.requests) > kill, 90, "a message")  # noqa: B023 - called at once
            leader.kill()
            leader = standby
            record.wait_for_leader(leader)

        def settled() -> bool:
            open_states = (NotificationState.WAITING, NotificationState.SENDING)
            return not read_messages(store, states=open_states) and bool(read_messages(store))

        wait_for(settled, 200, "the fate of every message")
        found = sent(there)
        assert max(found.values()) == 1
        fates = Counter(message.state for message in read_messages(store))
        log.info("%d alerts in %d messages: %s", len(found), len(there.requests), fates)
        # One whose receiver was killed before it noted the answer has arrived or not.
        assert set(fates) <= {NotificationState.SENT, NotificationState.UNCONFIRMED}
        assert fates[NotificationState.SENT] <= len(found) <= fates.total() == 5 * KILLS


def test_storm_of_failures_in_500_groups_is_a_few_messages(redis_url: str, sqlite_url: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        there = stack.enter_context(listening())
        store = stack.enter_context(closing(open_store(sqlite_url)))
        prepare(store, there)
        record = Record(store)
        worker = stack.enter_context(running_worker(redis_url, concurrency=4))
        record.wait_for_leader(stack.enter_context(receiving(redis_url, sqlite_url, tmp_path, "0")))
        began = time.time()
        for number in range(2000):
            worker.send("fail", f"cause {_letters(number % 500)}")
        wait_for(lambda: len(sent(there)) >= 500, 280, "every alert in a message")
        minutes = (time.time() - began) / 60
        log.info("%d messages of 500 alerts in %.1f min", len(there.requests), minutes)
        assert len(there.requests) <= 4 * (minutes + 1)
        assert max(sent(there).values()) == 1


def _letters(number: int) -> str:
    """A word for each number: digits are masked in the signature of a failure."""
    return "".join("bcdfghjklm"[int(digit)] + "aeiou"[int(digit) // 2] for digit in f"{number:03}")
