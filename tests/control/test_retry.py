"""Retry where a broker or a process fails, and where two people press at once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import redis

from celery_monitor.brokers.publish import Route, publisher
from celery_monitor.control.arguments import FoundArguments, find_arguments
from celery_monitor.control.commands import Target
from celery_monitor.control.inspect import find_route
from celery_monitor.control.retry import RetryTask, RetryTasks, prepare, send_all
from celery_monitor.core.arguments import judge
from celery_monitor.errors import ConfirmationRequired, Conflict, Forbidden
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.user import Actor, Role
from celery_monitor.store.engine import open_store
from celery_monitor.store.tasks.detail import link_retry, read_lineage, read_task
from celery_monitor.store.writer import Writer
from tests.control.watch import CLUSTER, Watch, make_settings
from tests.factories import NOW, make_event, make_id, make_task
from tests.servers import running_redis

QUEUE = "payments"


@pytest.fixture
def watch(redis_url: str, tmp_path: Path) -> Iterator[Watch]:
    """A record of failed tasks 1 to 4, on a broker where nobody works."""
    settings = make_settings(redis_url, tmp_path)
    store = open_store(settings.database)
    events = []
    for number in range(1, 5):
        given = {"uuid": make_id(number), "timestamp": NOW + number}
        texts = {"name": "shop.charge", "args": f"({number},)", "kwargs": "{}", "retries": 0}
        events += [
            make_event("task-sent", queue=QUEUE, exchange="", routing_key=QUEUE, **given, **texts),
            make_event("task-received", **given, **texts),
            make_event("task-started", **given),
            make_event("task-failed", exception="ValueError('no')", traceback="...", **given),
        ]
    Writer(store, CLUSTER, settings).write([Delivery(events=events, arrived=NOW + 9)])
    yield Watch(store, settings)
    store.close()


def target_of(watch: Watch) -> Target:
    return Target(watch.store, watch.settings, watch.settings.broker[0])


def waiting(watch: Watch) -> int:
    with closing(redis.Redis.from_url(watch.settings.broker[0].url)) as client:
        return int(client.llen(QUEUE))


def test_two_presses_at_the_same_time_send_one_message(watch: Watch) -> None:
    command = RetryTask(cluster=CLUSTER, id=make_id(1), confirm=True, request_id="the form of 12:03")
    with ThreadPoolExecutor(8) as pool:
        performed = list(pool.map(lambda _: watch.perform(command), range(8)))
    assert len({each.results[0].new_id for each in performed}) == 1
    assert sum("Retried as" in each.message for each in performed) == 1
    assert waiting(watch) == 1


def test_a_link_without_a_task_says_that_nobody_has_seen_it(watch: Watch) -> None:
    """As after a crash between the link and the message."""
    link_retry(watch.store, CLUSTER, make_id(1), "never-sent", "probable", NOW)
    (link,) = read_lineage(watch.store, read_task(watch.store, make_id(1), CLUSTER)).retried_as
    assert (link.id, link.state, link.at) == ("never-sent", None, NOW)


def test_a_selection_leaves_out_what_somebody_retried_and_says_as_what(watch: Watch) -> None:
    ids = (make_id(1), make_id(2), make_id(3))
    new = watch.perform(RetryTask(cluster=CLUSTER, id=make_id(2), confirm=True)).results[0].new_id
    with pytest.raises(ConfirmationRequired) as caught:
        watch.perform(RetryTasks(cluster=CLUSTER, ids=ids))
    detail = caught.value.detail
    assert (detail["sendable"], detail["skipped"], detail["retried"]) == (2, 1, 1)
    performed = watch.perform(RetryTasks(cluster=CLUSTER, ids=ids, confirm=True, request_id="a form"))
    assert {each.id: each.outcome for each in performed.results} == dict(
        zip(ids, ("done", "skipped", "done"), strict=True)
    )
    assert f"Already retried as {new}, state unknown." in {each.message for each in performed.results}
    assert waiting(watch) == 3
    again = watch.perform(RetryTasks(cluster=CLUSTER, ids=ids[:1], confirm=True, request_id="a form"))
    assert (again.results[0].outcome, waiting(watch)) == ("done", 3)  # the same form: its own retry, not sent twice
    watch.perform(RetryTasks(cluster=CLUSTER, ids=ids, confirm=True, include_retried=True))
    assert waiting(watch) == 6


def test_two_people_who_retry_a_selection_at_the_same_time_send_each_task_once(watch: Watch) -> None:
    command = RetryTasks(cluster=CLUSTER, ids=(make_id(1), make_id(2)), confirm=True)
    with ThreadPoolExecutor(6) as pool:
        performed = list(pool.map(lambda _: watch.perform(command), range(6)))
    assert waiting(watch) == 2
    assert sum(each.outcome == "done" for one in performed for each in one.results) == 2


def test_one_task_that_was_retried_asks_first_and_says_when_and_as_what(watch: Watch) -> None:
    performed = watch.perform(RetryTask(cluster=CLUSTER, id=make_id(3), confirm=True))
    with pytest.raises(ConfirmationRequired) as caught:
        watch.perform(RetryTask(cluster=CLUSTER, id=make_id(3)))
    retried = f"already retried 0 s ago as {performed.results[0].new_id} (no event yet)."
    assert retried in caught.value.message
    assert waiting(watch) == 1


def test_a_broker_that_dies_between_two_messages_leaves_one_in_doubt_and_sends_no_more(
    watch: Watch, tmp_path: Path
) -> None:
    with running_redis(tmp_path) as server:
        url = f"redis://127.0.0.1:{server.port}/2"
        settings = make_settings(url, tmp_path)
        target = Target(watch.store, settings, settings.broker[0])
        tasks = [read_task(watch.store, make_id(number), CLUSTER) for number in (1, 2, 3, 4)]
        prepared = [prepare(target, task, find_arguments(target, task)) for task in tasks]
        with publisher(target.broker, settings) as sender:
            first = send_all(target, sender, prepared[:1], None)
            server.stop()
            rest = send_all(target, sender, prepared[1:], None)
    assert [result.outcome for result in first + rest] == ["done", "unconfirmed", "failed", "failed"]
    linked = [len(read_lineage(watch.store, task).retried_as) for task in tasks]
    assert linked == [1, 1, 0, 0]
    assert "may have arrived" in rest[0].message


def test_a_message_that_the_broker_refuses_leaves_no_link(watch: Watch, tmp_path: Path) -> None:
    with running_redis(tmp_path, "--maxmemory", "1") as server:
        settings = make_settings(f"redis://127.0.0.1:{server.port}/2", tmp_path)
        target = Target(watch.store, settings, settings.broker[0])
        task = read_task(watch.store, make_id(1), CLUSTER)
        with publisher(target.broker, settings) as sender:
            (result,) = send_all(target, sender, [prepare(target, task, find_arguments(target, task))], "one press")
    assert result.outcome == "failed"
    assert read_lineage(watch.store, task).retried_as == ()


def test_a_route_is_the_queue_else_the_exchange_else_a_question(watch: Watch) -> None:
    target = target_of(watch)
    assert find_route(target, make_task(queue="mail"), None) == Route("", "mail")
    assert find_route(target, make_task(queue="mail"), QUEUE) == Route("", QUEUE)
    keyed = make_task(queue=None, exchange="shop", routing_key="shop.mail")
    assert find_route(target, keyed, None) == Route("shop", "shop.mail")
    for unknown in (
        make_task(queue=None),
        make_task(queue=None, exchange="celery_delayed_27", routing_key="0.1.mail"),
        make_task(queue="cut" * 171),
        make_task(queue="ma\ufffdil"),
    ):
        with pytest.raises(Conflict) as caught:
            find_route(target, unknown, None)
        assert caught.value.detail["queues"] == [QUEUE]


def test_a_name_that_is_not_known_whole_is_not_called(watch: Watch) -> None:
    watch_target = target_of(watch)
    failed = read_task(watch.store, make_id(1), CLUSTER).state
    for name in (None, "n" * 512, "shop.\ufffd"):
        with pytest.raises(Conflict, match="full name is unknown"):
            prepare(watch_target, make_task(name=name, state=failed), FoundArguments(arguments=judge(make_task())))


def test_what_was_done_is_told_when_it_cannot_be_recorded(watch: Watch, redis_url: str) -> None:
    with watch.store.begin() as connection:
        connection.exec_driver_sql("CREATE TRIGGER full BEFORE INSERT ON action BEGIN SELECT RAISE(ABORT, 'full'); END")
    with pytest.raises(ConfirmationRequired):
        watch.perform(RetryTask(cluster=CLUSTER, id=make_id(1)))
    performed = watch.perform(RetryTask(cluster=CLUSTER, id=make_id(1), confirm=True))
    assert performed.outcome == "done"
    assert "Not added to the record of actions" in performed.message
    assert waiting(watch) == 1
    with pytest.raises(Forbidden, match="vera is viewer"):
        watch.perform(RetryTask(cluster=CLUSTER, id=make_id(1), confirm=True), Actor("vera", Role.VIEWER))
