"""What is kept of merged sketches is never older than the record, on both databases."""

import time
from typing import Any

import pytest

from celery_monitor.records.event import Event
from celery_monitor.records.queue import Queue
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.series import Percentiles
from celery_monitor.settings import Settings
from celery_monitor.store.engine import Store
from celery_monitor.store.queues import save_queues
from celery_monitor.store.rollups.series import read_name_totals, read_series
from celery_monitor.store.writer import Writer
from tests.factories import make_event, make_id

START = 1_780_000_020.0 // 60 * 60


def ran(number: int, at: float, runtime: float, name: str = "shop.pay", worker: str = "w1@shop") -> list[Event]:
    known = {"uuid": make_id(number), "hostname": worker}
    return [
        make_event("task-received", timestamp=at, name=name, **known),
        make_event("task-succeeded", timestamp=at + 1, runtime=runtime, **known),
    ]


def write(store: Store, *events: Event) -> None:
    Writer(store, "shop", Settings()).write([Delivery(list(events), START + 900)])


def p50_by_minute(store: Store) -> list[float | None]:
    found = read_series(store, since=START, until=START + 300)
    return [None if bucket.run is None else round(bucket.run.p50) for bucket in found.buckets]


def test_late_event_changes_a_bucket_that_was_read(store: Store) -> None:
    write(store, *(event for n in range(5) for event in ran(n, START + 60 * n, 10.0, worker=f"w{n}@shop")))
    assert p50_by_minute(store) == [10] * 5
    write(store, *ran(11, START + 61, 90.0), *ran(12, START + 62, 90.0))
    assert [round(value or 0, -1) for value in p50_by_minute(store)] == [10, 90, 10, 10, 10]


def test_late_event_changes_the_totals_of_names(store: Store) -> None:
    write(store, *(event for n in range(5) for event in ran(n, START + 60 * n, 10.0)))
    span: dict[str, Any] = {"since": START, "until": START + 300}
    [before] = read_name_totals(store, **span)
    write(store, *ran(11, START + 61, 10.0, "shop.mail"), *ran(12, START + 62, 90.0))
    after = {each.name: each for each in read_name_totals(store, **span)}
    assert (before.runs, after["shop.pay"].runs, after["shop.mail"].runs) == (5, 6, 1)
    assert after["shop.pay"].seconds == pytest.approx(140, rel=0.03)
    again = {each.name: each for each in read_name_totals(store, **span)}
    assert again == after


def test_new_sample_stands_beside_depths_that_are_kept(store: Store) -> None:
    now = time.time()
    span: dict[str, Any] = {"since": now - 3 * 86_400, "until": now + 3600}
    for hours, ready in ((40, 7), (40, 31), (20, 5)):
        save_queues(store, "shop", [Queue(cluster="shop", name="mail", ready=ready)], at=now - hours * 3600)
    assert [sample.ready for sample in read_series(store, **span).depth] == [31, 5]
    save_queues(store, "shop", [Queue(cluster="shop", name="mail", ready=11)], at=now)
    save_queues(store, "shop", [Queue(cluster="shop", name="billing", ready=2)], at=now)
    assert [sample.ready for sample in read_series(store, **span).depth] == [31, 5, 13]
    assert [sample.ready for sample in read_series(store, **span, queue="mail").depth] == [31, 5, 11]
    later: dict[str, Any] = {"since": now - 30 * 3600, "until": now + 3600}
    assert [sample.ready for sample in read_series(store, **later).depth] == [5, 13]


def test_one_cluster_is_not_shown_what_all_of_them_took(store: Store) -> None:
    write(store, *ran(1, START, 10.0))
    Writer(store, "eu", Settings()).write([Delivery(ran(2, START, 90.0), START + 900)])
    p99 = [
        (found.run or Percentiles(0, 0, 0)).p99
        for cluster in (None, "shop", "eu")
        for found in read_series(store, since=START, until=START + 60, cluster=cluster).buckets[:1]
    ]
    assert p99 == pytest.approx([10, 10, 90], rel=0.03) or p99 == pytest.approx([90, 10, 90], rel=0.03)
    assert [each.runs for each in read_name_totals(store, since=START, until=START + 60, cluster="eu")] == [1]


def test_worker_that_comes_up_again_is_noted(store: Store) -> None:
    for at, pid in ((10, 31), (20, 31), (90, 47)):
        write(store, make_event("worker-heartbeat", timestamp=START + at, hostname="w1@shop", pid=pid, freq=2.0))
    found = read_series(store, since=START, until=START + 9000).starts
    assert [(each.cluster, each.hostname) for each in found] == [("shop", "w1@shop")]
    assert read_series(store, since=START, until=START + 9000, worker="w2@shop").starts == []
