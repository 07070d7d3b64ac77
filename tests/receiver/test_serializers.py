"""Workers with another ``event_serializer`` than JSON: read, or refused by name with the setting to change."""

from functools import partial
from pathlib import Path

import pytest

from celery_monitor.core.health.judgement import HealthFacts, banners
from celery_monitor.errors import NotFound
from celery_monitor.records.task import TaskState
from celery_monitor.store.engine import Store
from celery_monitor.store.tasks.detail import read_task
from tests.receiver.conftest import RunReceiver, connected, health
from tests.test_doctor import examined
from tests.workers import running_worker, wait_for


@pytest.mark.parametrize("source", ["auto", "kombu"])
def test_msgpack_and_yaml_are_read_and_pickle_is_refused_by_name(
    store: Store, receiving: RunReceiver, broker_url: str, source: str, tmp_path: Path
) -> None:
    with receiving(broker_url, source=source) as receiver:
        wait_for(connected(receiver))
        for serializer in ("msgpack", "yaml"):
            config = {"event_serializer": serializer}
            with running_worker(broker_url, pool="solo", concurrency=1, config=config) as worker:
                task_id = worker.send("echo", 17, f"né {serializer}")
                wait_for(partial(succeeded, store, task_id))
            task = read_task(store, task_id)
            assert (task.worker, task.args, task.queue) == (worker.hostname, f"(17, 'né {serializer}')", worker.queue)
        assert (health(store).malformed_total, health(store).refused) == (0, ())

        with running_worker(broker_url, pool="solo", concurrency=1, config={"event_serializer": "pickle"}) as worker:
            worker.send("echo", 17)
            wait_for(lambda: worker.hostname in {each.hostname for each in health(store).refused})
            saved = health(store)
            assert {each.content_type for each in saved.refused} == {"application/x-python-serialize"}
            assert saved.malformed_total == 0
            shown = [
                each
                for each in banners(HealthFacts(now=saved.updated_at or 0.0, receivers=[saved]))
                if each.kind == "event serializer"
            ]
            assert worker.hostname in shown[0].text
            assert 'event_serializer = "json"' in shown[0].then
            if source == "auto":
                _, found = examined(broker_url, tmp_path)
                assert worker.hostname in found["event serializer"]["what"]
                assert 'event_serializer = "json"' in found["event serializer"]["fix"]
                assert "without-heartbeat" not in str(found)


def succeeded(store: Store, task_id: str) -> bool:
    try:
        return read_task(store, task_id).state is TaskState.SUCCESS
    except NotFound:
        return False
