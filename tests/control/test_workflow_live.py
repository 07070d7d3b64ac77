"""A workflow has the state of what goes on in it, on a real worker."""

from pathlib import Path

from celery import chain, signature

from celery_monitor.records.task import TaskState
from celery_monitor.store.tasks.workflows import read_workflows
from tests.apps.basic import make_app
from tests.control.watch import watching
from tests.workers import running_worker


def test_a_chain_whose_root_succeeded_is_running_until_its_member_ends(broker_url: str, tmp_path: Path) -> None:
    with watching(broker_url, tmp_path) as watch, running_worker(broker_url) as worker:
        watch.wait_for_worker(worker)
        app = make_app(broker_url)
        first = signature("basic.add", (31, 11), app=app, queue=worker.queue)
        second = signature("basic.sleep", (3.5,), app=app, queue=worker.queue, immutable=True)
        last = signature("basic.fail", ("no such order",), app=app, queue=worker.queue, immutable=True)
        ended = chain(first, second, last).apply_async()
        running, root = ended.parent.id, ended.parent.parent.id
        watch.wait_for(running, TaskState.STARTED)
        watch.wait_for(root, TaskState.SUCCESS)  # which another pool process may report later than the next one's start
        (listed,) = read_workflows(watch.store).items
        assert (listed.root.id, listed.root.state, listed.state) == (root, TaskState.SUCCESS, "running")
        watch.wait_for(ended.id, TaskState.FAILURE)
        assert read_workflows(watch.store).items[0].state == "failed"
        app.close()
