"""Many tasks by real workers: what is stored equals a ledger that the tasks keep themselves."""

import os
from typing import Any

import pytest
import redis
from sqlalchemy import func, select

from celery_monitor.records.task import TaskState
from celery_monitor.store import schema
from celery_monitor.store.engine import Store
from celery_monitor.store.schema import STATE_CODES
from celery_monitor.store.tasks.keys import to_key
from celery_monitor.store.tasks.page import count_states
from tests.apps.ledger import LEDGER_VARIABLE
from tests.receiver.conftest import RunReceiver, connected, health
from tests.workers import running_worker, wait_for

TASKS = int(os.environ.get("TEST_LEDGER_TASKS", "1500"))
FAILING_EACH = 20  # one in so many


@pytest.mark.timeout(600)
def test_the_record_equals_the_ledger(
    broker_url: str, redis_url: str, receiving: RunReceiver, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEDGER_VARIABLE, redis_url)
    book: Any = redis.Redis.from_url(redis_url)
    with receiving(broker_url) as receiver:
        wait_for(connected(receiver))
        with running_worker(broker_url, app="tests.apps.ledger", concurrency=8) as worker:
            sent = [worker.send("entry", number % FAILING_EACH == 0) for number in range(TASKS)]
            wait_for(lambda: book.hlen("ledger:failed") + book.hlen("ledger:succeeded") == TASKS, 60 + TASKS / 50)
            wait_for(lambda: sum(count_states(store).get(each, 0) for each in _FINISHED) == TASKS)
    entered = {outcome: _entered(book, outcome) for outcome in ("failed", "succeeded")}
    book.close()
    assert set(entered["failed"]) | set(entered["succeeded"]) == set(sent)
    stored = count_states(store)
    assert stored[TaskState.FAILURE] == len(entered["failed"]) == TASKS // FAILING_EACH
    assert stored[TaskState.SUCCESS] == len(entered["succeeded"])
    assert sum(stored.values()) == TASKS
    assert health(store).dropped_total == health(store).malformed_total == 0
    with store.read() as connection:
        table = schema.task
        rows = connection.execute(select(table.c.state, func.count()).group_by(table.c.state)).all()
        failures = select(table.c.key).where(table.c.state == STATE_CODES[TaskState.FAILURE])
        failed = set(connection.execute(failures).scalars())
        runs = connection.execute(select(func.count()).select_from(schema.run)).scalar_one()
    assert {row[0]: row[1] for row in rows} == {STATE_CODES[state]: n for state, n in stored.items() if n}
    assert failed == {to_key(each) for each in entered["failed"]}
    ran = sum(sum(each.values()) for each in entered.values())
    assert TASKS + runs == ran  # each run of the ledger is a run of the record


def _entered(book: Any, outcome: str) -> dict[str, int]:
    return {key.decode(): int(runs) for key, runs in book.hgetall(f"ledger:{outcome}").items()}


_FINISHED = tuple(state for state in TaskState if state.finished)
