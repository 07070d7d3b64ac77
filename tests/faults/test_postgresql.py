"""A PostgreSQL that restarts or ends all our sessions: events wait, and nothing is lost or counted twice."""

from contextlib import ExitStack, closing
from pathlib import Path

import psycopg

from celery_monitor.records.task import TaskState
from celery_monitor.store.engine import open_store
from celery_monitor.store.receivers import read_gaps
from tests.faults.receivers import Record, receiving
from tests.receiver.sources.conftest import delete_queue
from tests.servers import running_postgres
from tests.workers import running_worker, wait_for

TASKS = 120
TERMINATIONS = 5
END_ALL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


def test_sessions_that_are_ended_and_a_server_that_restarts_lose_nothing(broker_url: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(running_postgres())
        record = Record(stack.enter_context(closing(open_store(server.url))))
        if broker_url.startswith("amqp"):
            stack.callback(delete_queue, f"celeryev.test-{tmp_path.name}")
        program = stack.enter_context(receiving(broker_url, server.url, tmp_path, "only"))
        record.wait_for_leader(program)
        worker = stack.enter_context(running_worker(broker_url))
        for round_ in range(TERMINATIONS):
            for number in range(TASKS // TERMINATIONS):
                worker.send("add", number, round_)
            with psycopg.connect(server.url, autocommit=True) as connection:
                connection.execute(END_ALL)
        record.wait_for_counts({TaskState.SUCCESS: TASKS})
        server.stop()
        for number in range(TASKS):
            worker.send("add", number, 1)
        wait_for(lambda: worker.log.count("succeeded in") == 2 * TASKS, what="the end of all tasks")
        wait_for(lambda: "cannot write the database" in program.log, what="a word of the trouble")
        server.start()
        record.wait_for_counts({TaskState.SUCCESS: 2 * TASKS})
        record.wait_for_leader(program)
        health = record.health()
        assert health is not None
        assert (health.dropped_total, health.malformed_total) == (0, 0)
        assert [gap for gap in read_gaps(record.store, 0.0) if gap.dropped != 0] == []
        assert record.earlier_runs() == 0
        assert "Traceback" not in program.log
