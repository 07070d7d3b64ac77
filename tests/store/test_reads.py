"""One task with all its runs, and what is beside the tasks: failures, series, workers, queues, actions."""

import pytest
from sqlalchemy import insert, select

from celery_monitor.core.filters.parser import UNHANDLED, parse
from celery_monitor.errors import InvalidInput, NotFound
from celery_monitor.records.event import Event
from celery_monitor.records.failure import FailureState
from celery_monitor.records.page import Action, Count
from celery_monitor.records.queue import Queue, QueueSample
from celery_monitor.records.receiver import Delivery, ReceiverHealth
from celery_monitor.records.task import Link, Outcome, TaskState
from celery_monitor.settings import Settings
from celery_monitor.store import schema
from celery_monitor.store.actions import read_actions, record_action
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import read_depths, read_queues, save_queues
from celery_monitor.store.receivers import (
    close_gap,
    open_gap,
    read_clusters,
    read_gaps,
    read_receiver_health,
    read_receiver_records,
    save_health,
)
from celery_monitor.store.rollups.failures import read_failure_group, read_failure_groups, set_failure_state
from celery_monitor.store.rollups.series import read_name_totals, read_series, record_began
from celery_monitor.store.tasks import page as task_page
from celery_monitor.store.tasks.detail import link_retry, read_lineage, read_task
from celery_monitor.store.tasks.facets import read_facets
from celery_monitor.store.tasks.page import (
    count_states,
    count_tasks,
    count_unhandled,
    find_tasks,
    read_longest_running,
)
from celery_monitor.store.terms import find_terms
from celery_monitor.store.workers import read_worker, read_workers
from celery_monitor.store.writer import Writer
from tests.factories import NOW, make_event, make_id

OLD, NEW = make_id(1), make_id(2)


def write(store: Store, *events: Event, cluster: str = "shop") -> None:
    Writer(store, cluster, Settings()).write([Delivery(list(events), NOW)])


def life(task_id: str, at: float = NOW, end: str = "succeeded", **fields: object) -> list[Event]:
    """A task that waits 0.5 s and runs 2 s."""
    given: dict[str, object] = {"name": "shop.pay", "hostname": "worker1@shop", "args": "(31,)", **fields}
    ended = (
        {"result": "'OK'", "runtime": 2.0} if end == "succeeded" else {"exception": "KeyError('k')", "traceback": "T"}
    )
    return [
        make_event("task-received", uuid=task_id, timestamp=at, **given),
        make_event("task-started", uuid=task_id, timestamp=at + 0.5, hostname=given["hostname"]),
        make_event(f"task-{end}", uuid=task_id, timestamp=at + 2.5, hostname=given["hostname"], **ended),
    ]


def test_a_task_has_all_its_runs_with_all_texts(store: Store) -> None:
    write(store, *life(OLD, end="retried", retries=0), *life(OLD, NOW + 10, end="failed", retries=1))
    found = read_task(store, OLD)
    assert [(run.retries, run.outcome, run.traceback) for run in found.runs] == [
        (0, Outcome.RETRIED, "T"),
        (1, Outcome.FAILED, "T"),
    ]
    assert (found.state, found.cluster, found.args, found.wait) == (TaskState.FAILURE, "shop", "(31,)", 8.0)


def test_the_same_id_on_two_clusters_is_the_one_asked_for_else_the_newest(store: Store) -> None:
    write(store, *life(OLD))
    write(store, *life(OLD, NOW + 60), cluster="eu")
    assert read_task(store, OLD).cluster == "eu"
    assert read_task(store, OLD, "shop").cluster == "shop"


def test_an_unknown_task_is_not_found(store: Store) -> None:
    write(store, *life(OLD))
    with pytest.raises(NotFound, match="on cluster eu"):
        read_task(store, OLD, "eu")
    with pytest.raises(NotFound, match="no task"):
        read_task(store, "order-31")


def test_lineage_goes_both_ways(store: Store) -> None:
    write(store, *life(OLD, end="failed"), *life(NEW))
    link_retry(store, "shop", OLD, NEW, "probable", NOW + 5)
    link_retry(store, "shop", OLD, "order-9", "exact", NOW + 6)
    old, new = (read_lineage(store, read_task(store, each)) for each in (OLD, NEW))
    assert old.retry_of is None
    assert old.retried_as == (
        Link(id=NEW, state=TaskState.SUCCESS, at=NOW + 5, fidelity="probable"),
        Link(id="order-9", state=None, at=NOW + 6, fidelity="exact"),
    )
    assert (new.retry_of, new.retried_as) == (OLD, ())


def test_a_task_is_marked_and_found_by_the_newest_task_as_which_it_was_retried(store: Store) -> None:
    failed, again, plain, same, unseen = (make_id(number) for number in range(41, 46))
    write(store, *life(failed, end="failed"), *life(again, end="failed"), *life(NEW), *life(plain, end="failed"))
    write(store, *life(same, end="failed"), *life(unseen, end="failed"))
    link_retry(store, "shop", failed, again, "probable", NOW + 5)
    link_retry(store, "shop", failed, NEW, "exact", NOW + 6)
    link_retry(store, "shop", same, same, "exact", NOW + 7)
    link_retry(store, "shop", unseen, "never-seen", "exact", NOW + 8)
    link_retry(store, "eu", plain, NEW, "exact", NOW + 9)  # another cluster's task of that id

    def found(query: str) -> set[str]:
        page = find_tasks(store, parse(query, NOW + 99))
        assert page.count == Count(len(page.items)) == count_tasks(store, parse(query, NOW + 99))
        return {task.id for task in page.items}

    assert found("retried:yes") == {failed, unseen}
    assert found("retried:succeeded") == {failed}
    assert found("retried:failed") == set()
    assert found('retried:""') == {unseen}
    assert found("retried:no") == found("-retried:yes") == {again, NEW, plain, same}
    assert found("state:failed -retried:succeeded") == {again, plain, same, unseen}
    assert found("retried:unfinished OR id:" + plain) == {plain}
    marks = {task.id: task.retried for task in find_tasks(store, parse("state:failed", NOW + 99)).items}
    assert marks == {
        failed: Link(id=NEW, state=TaskState.SUCCESS, at=NOW + 6, fidelity="exact"),
        unseen: Link(id="never-seen", state=None, at=NOW + 8, fidelity="exact"),
        **dict.fromkeys((again, plain, same)),
    }
    facets = read_facets(store, parse("state:failed retried:no", NOW + 99), ("retried",))["retried"]
    assert {(str(each.term), each.count) for each in facets} == {
        ("retried:succeeded", Count(1)),
        ('retried:""', Count(1)),
    }


def test_failures_that_need_somebody_are_neither_retried_nor_in_a_muted_or_resolved_group(store: Store) -> None:
    groups = {}
    for number, error in enumerate(("Muted", "Resolved", "Open", "Retried"), 51):
        task_id = make_id(number)
        write(store, *life(task_id, end="failed", name=f"shop.{error}"))
        groups[error] = read_task(store, task_id).failure_group or 0
    set_failure_state(store, groups["Muted"], FailureState.MUTED, NOW + 9)
    set_failure_state(store, groups["Resolved"], FailureState.RESOLVED, NOW + 9)
    link_retry(store, "shop", make_id(54), NEW, "exact", NOW + 6)
    page = find_tasks(store, parse(UNHANDLED, NOW + 99))
    assert ([task.id for task in page.items], page.count) == ([make_id(53)], Count(1))
    assert count_unhandled(store, None, NOW + 99) == Count(1)
    assert count_unhandled(store, "nowhere", NOW + 99) == Count(0)
    assert str(parse(UNHANDLED, NOW)) == UNHANDLED
    muted = find_tasks(store, parse("group:muted OR group:regressed", NOW + 99)).items
    assert [task.id for task in muted] == [make_id(51)]
    assert len(find_tasks(store, parse("group:open", NOW + 99)).items) == 2


def test_a_task_that_was_retried_and_muted_is_handled_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [make_id(number) for number in range(61, 66)]
    for task_id in ids:
        write(store, *life(task_id, end="failed", name="shop.noisy"))
    write(store, *life(NEW, end="failed", name="shop.other"))
    assert count_unhandled(store, "shop", NOW + 99) == Count(6)
    set_failure_state(store, read_task(store, ids[0]).failure_group or 0, FailureState.MUTED, NOW + 9)
    link_retry(store, "shop", ids[1], "order-9", "exact", NOW + 6)
    assert count_unhandled(store, "shop", NOW + 99) == Count(1)
    monkeypatch.setattr(task_page, "COUNT_LIMIT", 4)  # the five are too many: counted one by one
    assert count_unhandled(store, "shop", NOW + 99) == find_tasks(store, parse(UNHANDLED, NOW + 99)).count == Count(1)


def test_every_state_has_its_count(store: Store) -> None:
    write(store, *life(OLD), *life(NEW, end="failed"))
    counts = count_states(store, "shop")
    assert set(counts) == set(TaskState)
    assert {state: number for state, number in counts.items() if number} == {TaskState.SUCCESS: 1, TaskState.FAILURE: 1}
    assert sum(count_states(store, "eu").values()) == 0


def test_the_longest_running_started_first(store: Store) -> None:
    for number, started in ((1, 9), (2, 3), (3, 6)):
        write(store, *(life(make_id(number), NOW + started)[:2]))
    write(store, *life(make_id(4)), *life(make_id(5), NOW - 50, "failed"))
    assert [each.id for each in read_longest_running(store, limit=2)] == [make_id(2), make_id(3)]
    assert read_longest_running(store, cluster="eu") == []


def test_failure_groups_count_within_the_window(store: Store) -> None:
    days = 86400
    for number, at in enumerate((NOW - 3 * days, NOW - 2 * days, NOW - 90, NOW)):
        write(store, *life(make_id(number), at, "failed"))
    write(store, *life(make_id(9), NOW - 5 * days, "failed", name="shop.mail"))
    (group,) = read_failure_groups(store, since=NOW - 1.5 * days)
    assert (group.name, group.exception_type, group.count) == ("shop.pay", "KeyError", 2)
    assert [each.count for each in read_failure_groups(store, since=NOW - 2.5 * days)] == [3]
    assert [each.count for each in read_failure_groups(store, since=NOW - 9 * days)] == [4, 1]
    assert read_failure_groups(store, since=NOW - 9 * days, cluster="eu") == []
    assert read_failure_group(store, group.id).count == 4
    with pytest.raises(NotFound, match="group 77"):
        read_failure_group(store, 77)


def test_a_series_has_every_bucket_and_only_what_was_measured(store: Store) -> None:
    minute = NOW // 60 * 60
    write(store, *life(OLD, minute), *life(NEW, minute + 120, "failed"))
    gap = open_gap(store, "shop", minute + 60, "broker away")
    close_gap(store, gap, minute + 90)
    found = read_series(store, since=minute, until=minute + 240, cluster="shop", name="shop.pay")
    assert found.resolution == 60
    assert [each.at - minute for each in found.buckets] == [0, 60, 120, 180]
    assert [(each.received, each.succeeded, each.failed) for each in found.buckets] == [
        (1, 1, 0),
        (0, 0, 0),
        (1, 0, 1),
        (0, 0, 0),
    ]
    assert [each.run is None for each in found.buckets] == [False, True, False, True]
    first = found.buckets[0]
    assert first.run is not None
    assert first.wait is not None
    assert first.run.p95 == pytest.approx(2.0, rel=0.02)
    assert first.wait.p50 == pytest.approx(0.5, rel=0.02)
    assert [(each.cause, each.ended) for each in found.gaps] == [("broker away", minute + 90)]
    for elsewhere in ({"name": "shop.mail"}, {"worker": "worker9@shop"}, {"queue": "mail"}, {"cluster": "eu"}):
        other = read_series(store, since=minute, until=minute + 240, **elsewhere)
        assert sum(each.received for each in other.buckets) == 0


@pytest.mark.parametrize(("hours", "resolution"), [(0.25, 60), (12, 60), (24, 3600), (720, 3600), (2400, 86400)])
def test_the_span_decides_the_resolution(store: Store, hours: float, resolution: int) -> None:
    write(store, *life(OLD))
    found = read_series(store, since=NOW - hours * 3600 + 60, until=NOW + 60)
    assert found.resolution == resolution
    assert len(found.buckets) <= 752
    assert sum(each.received for each in found.buckets) == 1


@pytest.mark.parametrize("until", [NOW, NOW - 1, NOW + 1e9, float("inf"), float("nan")])
def test_a_span_without_sense_is_refused(store: Store, until: float) -> None:
    with pytest.raises(InvalidInput, match="two years"):
        read_series(store, since=NOW, until=until)


def test_depth_is_the_largest_of_a_bucket_and_summed_over_queues(store: Store) -> None:
    minute = NOW // 60 * 60
    for at, ready in ((minute, 5), (minute + 20, 9)):
        save_queues(store, "shop", [Queue(cluster="shop", name="mail", ready=ready, oldest=at)], at)
    save_queues(store, "shop", [Queue(cluster="shop", name="pay", ready=2, unacked=3)], minute)
    found = read_series(store, since=minute, until=minute + 60)
    assert [(each.ready, each.unacked, each.consumers) for each in found.depth] == [(11, 3, None)]
    only = read_series(store, since=minute, until=minute + 60, queue="mail").depth
    assert [(each.at, each.ready, each.unacked) for each in only] == [(minute, 9, None)]
    history = read_depths(store, since=minute)["shop", "mail"]
    assert history == [QueueSample(at=minute, ready=9, unacked=None, consumers=None, oldest=minute + 20)]
    assert [(each.name, each.ready) for each in read_queues(store)] == [("mail", 9), ("pay", 2)]
    assert read_queues(store, "eu") == []


def test_totals_of_names_have_their_runs_and_seconds(store: Store) -> None:
    for number in range(6):
        write(store, *life(make_id(number)))
    slow = life(make_id(9), name="shop.report")
    write(store, *slow[:2], make_event("task-succeeded", uuid=make_id(9), timestamp=NOW + 9, runtime=8.5, result="1"))
    totals = {each.name: each for each in read_name_totals(store, since=NOW - 60, until=NOW + 60)}
    pay, report = totals["shop.pay"], totals["shop.report"]
    assert (pay.runs, pay.failed, report.runs) == (6, 0, 1)
    assert pay.seconds == pytest.approx(12.0, rel=0.02)
    assert report.seconds == pytest.approx(8.5, rel=0.02)
    assert report.run is not None
    assert report.run.p95 == pytest.approx(8.5, rel=0.02)


def test_workers_and_health(store: Store) -> None:
    write(store, make_event("worker-heartbeat", freq=3.0, active=4, processed=9), *life(OLD))
    write(store, make_event("worker-heartbeat", hostname="a@eu", freq=3.0), cluster="eu")
    assert read_clusters(store) == ["shop", "eu"]
    assert [each.hostname for each in read_workers(store)] == ["worker1@shop", "a@eu"]
    assert [each.active for each in read_workers(store, "shop")] == [4]
    assert read_worker(store, "a@eu").cluster == "eu"
    with pytest.raises(NotFound, match="a@eu"):
        read_worker(store, "a@eu", "shop")
    save_health(store, ReceiverHealth(cluster="eu", connected=True, events_total=31))
    assert [(each.cluster, each.events_total) for each in read_receiver_records(store)] == [("eu", 31)]


def test_health_of_receivers_that_once_shared_a_cluster_is_left_out(store: Store) -> None:
    save_health(store, ReceiverHealth(cluster="shop", connected=True, events_total=31))
    with store.begin() as connection:
        table = schema.receiver
        first = connection.execute(select(table.c.cluster_id, table.c.record)).one()
        connection.execute(insert(table).values(cluster_id=first.cluster_id, shard=2, record=first.record))
    assert [(each.cluster, each.events_total) for each in read_receiver_records(store)] == [("shop", 31)]
    found = read_receiver_health(store, "shop")
    assert found is not None
    assert found.events_total == 31
    assert read_receiver_health(store, "eu") is None


def test_gaps_that_reach_into_the_time(store: Store) -> None:
    old = open_gap(store, "shop", NOW - 100, "restart")
    close_gap(store, old, NOW - 50, dropped=7)
    open_gap(store, "shop", NOW - 70, "broker away")
    assert [(each.cause, each.dropped) for each in read_gaps(store, NOW - 60)] == [
        ("restart", 7),
        ("broker away", None),
    ]
    assert [each.cause for each in read_gaps(store, NOW - 40)] == ["broker away"]
    assert read_gaps(store, NOW - 40, "eu") == []


def test_actions_are_paged_both_ways(store: Store) -> None:
    for number in range(7):
        record_action(
            store, Action(at=NOW + number, actor="ada", action="retry", cluster="shop", parameters={"n": number})
        )
    first = read_actions(store, limit=3)
    second = read_actions(store, limit=3, cursor=first.next)
    third = read_actions(store, limit=3, cursor=second.next)
    assert [each.parameters["n"] for page in (first, second, third) for each in page.items] == [6, 5, 4, 3, 2, 1, 0]
    assert (first.previous, third.next) == (None, None)
    assert read_actions(store, limit=3, cursor=third.previous).items == second.items
    back = read_actions(store, limit=3, cursor=second.previous)
    assert (back.items, back.previous) == (first.items, None)
    with pytest.raises(InvalidInput, match="1 to 1000"):
        read_actions(store, limit=0)


def test_a_cluster_of_which_only_the_name_is_known_is_empty(store: Store) -> None:
    with store.begin() as connection:
        connection.execute(insert(schema.cluster).values(name="eu"))
    assert read_clusters(store) == ["eu"]
    assert read_workers(store, "eu") == []


def test_what_no_record_can_hold_is_not_found(store: Store) -> None:
    write(store, *life(OLD))
    for text in ("\0", "a\0b", "\ud800"):
        with pytest.raises(NotFound):
            read_task(store, text)
        with pytest.raises(NotFound):
            read_worker(store, text)
        assert find_terms(store, "name", text) == []
        found = read_series(store, since=NOW - 90, until=NOW + 60, name=text)
        assert not any(each.received for each in found.buckets)
    for number in (0, -1, 2**31, 2**70):
        with pytest.raises(NotFound):
            read_failure_group(store, number)


@pytest.mark.parametrize("since", [float("nan"), float("inf"), -1e300])
def test_what_is_no_time_is_refused(store: Store, since: float) -> None:
    for read in (read_gaps, lambda store, since: read_failure_groups(store, since=since)):
        with pytest.raises(InvalidInput, match="not a time"):
            read(store, since)
    with pytest.raises(InvalidInput, match="not a time"):
        read_series(store, since=since, until=NOW)


def test_record_begins_with_its_first_minute(store: Store) -> None:
    assert record_began(store) is None
    write(store, *life(OLD, NOW), *life(NEW, NOW - 400))
    began = record_began(store)
    assert began is not None
    assert NOW - 460 < began <= NOW - 400
