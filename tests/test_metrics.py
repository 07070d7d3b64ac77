"""Metrics from a record, as Prometheus reads them."""

import re
import time
from collections.abc import Iterable, Iterator, Mapping

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text
from starlette.testclient import TestClient

from celery_monitor.metrics import collect, render
from celery_monitor.records.event import Event
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.rollups.totals import MOST_NAMES
from celery_monitor.store.terms import OTHER
from celery_monitor.store.writer import Writer
from tests.factories import make_event, make_id
from tests.web.shop import BASE, fill, serving
from tests.workers import ROOT

WORKER = "worker1@shop"
PAY = "shop.pay.charge"
Samples = Mapping[str, float]


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    store = open_store(database_url)
    yield store
    store.close()


def write(store: Store, events: Iterable[Event], settings: Settings | None = None, cluster: str = "shop") -> None:
    """As a receiver does that was just started."""
    Writer(store, cluster, settings or Settings()).write([Delivery(events=list(events), arrived=time.time())])


def run(number: int, *kinds: str, name: str = PAY, runtime: float = 0.3, **more: object) -> list[Event]:
    """The events of one task, a second apart."""
    at = time.time() - 100
    known = {"uuid": make_id(number), "pid": 7}
    return [
        make_event(
            f"task-{kind}",
            timestamp=at + second,
            **known,
            **({"name": name} if kind in {"sent", "received"} else {}),
            **({"runtime": runtime} if kind == "succeeded" else {}),
            **(more if kind == "received" else {}),
        )
        for second, kind in enumerate(kinds)
    ]


def families(store: Store, settings: Settings | None = None) -> list[Metric]:
    text = render(collect(store, settings or Settings())).decode()
    assert {each.name for each in read_openmetrics(openmetrics(store))} == {each.name for each in read_text(text)}
    return list(read_text(text))


def openmetrics(store: Store) -> str:
    return render(collect(store, Settings()), openmetrics=True).decode()


def samples(store: Store, settings: Settings | None = None) -> Samples:
    """By ``name{label=value,...}``, in the order of the labels' names; empty labels left out."""
    return {
        f"{each.name}{{{_labels(each.labels)}}}": each.value
        for family in families(store, settings)
        for each in family.samples
    }


def _labels(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()) if value)


def of_type(found: Samples, kind: str, task: str = PAY) -> float | None:
    return found.get(f"flower_events_total{{task={task},type=task-{kind}}}")


def test_events_are_counted_by_task_and_type(store: Store) -> None:
    write(store, [*run(1, "sent", "received", "started", "succeeded"), *run(2, "received", "started", "failed")])
    found = samples(store)
    assert [of_type(found, each) for each in ("sent", "received", "started", "succeeded", "failed")] == [1, 2, 2, 1, 1]
    assert of_type(found, "revoked") is None


def test_counters_go_on_after_a_restart(store: Store) -> None:
    for number in (1, 2, 3):
        write(store, run(number, "received", "started", "succeeded", runtime=number / 10))
    found = samples(store)
    assert of_type(found, "succeeded") == 3
    assert found[f"flower_task_runtime_seconds_count{{task={PAY}}}"] == 3
    assert found[f"flower_task_runtime_seconds_sum{{task={PAY}}}"] == pytest.approx(0.6)


def test_run_times_are_in_flowers_buckets(store: Store) -> None:
    write(store, run(1, "received", "started", "succeeded", runtime=0.3) + run(2, "received", "started", "failed"))
    found = samples(store)
    assert found[f"flower_task_runtime_seconds_bucket{{le=0.25,task={PAY}}}"] == 0
    assert found[f"flower_task_runtime_seconds_bucket{{le=0.5,task={PAY}}}"] == 1
    assert found[f"flower_task_runtime_seconds_bucket{{le=+Inf,task={PAY}}}"] == 1  # a failure reports no run time
    assert found[f"celery_monitor_task_run_seconds_count{{cluster=shop,task={PAY}}}"] == 2


def test_other_buckets_can_be_chosen(store: Store) -> None:
    write(store, run(1, "received", "started", "succeeded", runtime=45.0))
    found = samples(store, Settings(task_runtime_metric_buckets=(30.0, 60.0)))
    buckets = {name: value for name, value in found.items() if name.startswith("flower_task_runtime_seconds_bucket")}
    assert list(buckets.values()) == [0, 1, 1]


def test_wait_is_from_receipt_where_nothing_else_is_known(store: Store) -> None:
    write(store, run(1, "received", "started"))
    found = samples(store)
    assert found[f"celery_monitor_task_wait_seconds_bucket{{cluster=shop,le=0.5,task={PAY}}}"] == 0
    assert found[f"celery_monitor_task_wait_seconds_bucket{{cluster=shop,le=5.0,task={PAY}}}"] == 1


@pytest.mark.parametrize(
    ("kinds", "waiting", "wait"),
    [
        (("received",), 1, 0),
        (("received", "started"), 0, 1),
        (("received", "started", "succeeded"), 0, 0),
        (("received", "started", "failed"), 0, 0),
        (("received", "revoked"), 0, 0),
        (("received", "rejected"), 0, 0),
        (("received", "started", "revoked"), 0, 0),
    ],
)
def test_prefetched_tasks(store: Store, kinds: tuple[str, ...], waiting: int, wait: float) -> None:
    write(store, run(1, *kinds))
    found = samples(store)
    assert found[f"flower_worker_prefetched_tasks{{task={PAY}}}"] == waiting
    assert found[f"flower_task_prefetch_time_seconds{{task={PAY}}}"] == pytest.approx(wait)


def test_a_task_with_an_eta_did_not_wait_for_its_worker(store: Store) -> None:
    write(store, run(1, "received", "started", eta="2026-11-01T00:00:00+00:00"))
    assert samples(store)[f"flower_task_prefetch_time_seconds{{task={PAY}}}"] == 0


def test_names_of_workers_only_if_asked_for(store: Store) -> None:
    write(store, run(1, "sent", "received", "started", "succeeded"))
    assert not any("worker=" in each for each in samples(store) if "task=" in each)
    by_worker = Settings(metrics_by_worker=True)
    write(store, run(2, "sent", "received", "started", "succeeded"), by_worker)
    found = samples(store, by_worker)
    assert found[f"flower_events_total{{task={PAY},type=task-succeeded,worker={WORKER}}}"] == 1
    assert of_type(found, "sent") == 2  # a sender is no worker


def test_a_worker_is_online_while_it_sends_heartbeats(store: Store) -> None:
    now = time.time()
    write(store, [make_event("worker-heartbeat", timestamp=now, freq=2.0, active=3)])
    found = samples(store)
    assert found[f"flower_worker_online{{worker={WORKER}}}"] == 1
    assert found[f"flower_worker_number_of_currently_executing_tasks{{worker={WORKER}}}"] == 3
    assert found["celery_monitor_workers{cluster=shop,status=online}"] == 1
    write(store, [make_event("worker-offline", timestamp=now + 1)])
    found = samples(store)
    assert found[f"flower_worker_online{{worker={WORKER}}}"] == 0
    assert found[f"flower_worker_number_of_currently_executing_tasks{{worker={WORKER}}}"] == 0


def test_a_worker_that_is_gone_leaves(store: Store) -> None:
    by_worker = Settings(metrics_by_worker=True, purge_offline_workers=1e-6)
    write(
        store,
        [*run(1, "received", "started", "succeeded"), make_event("worker-online", timestamp=time.time())],
        by_worker,
    )
    assert any(WORKER in each for each in samples(store, by_worker))
    write(store, [make_event("worker-offline", timestamp=time.time())], by_worker)
    assert not any(WORKER in each for each in samples(store, by_worker))


def test_names_beyond_the_most_are_counted_together(sqlite_url: str) -> None:
    store = open_store(sqlite_url)
    for start in (0, MOST_NAMES):
        write(store, [each for n in range(start, start + MOST_NAMES) for each in run(n, "received", name=f"shop.t{n}")])
    found = samples(store)
    store.close()
    assert of_type(found, "received", OTHER) == MOST_NAMES
    assert sum(each.startswith("flower_events_total") for each in found) == MOST_NAMES + 1


def test_clusters_are_added_up_for_flower(store: Store) -> None:
    write(store, run(1, "received", "started", "succeeded"))
    write(store, run(1, "received", "started", "succeeded"), cluster="mail")
    found = samples(store)
    assert of_type(found, "succeeded") == 2
    assert found[f"flower_task_runtime_seconds_count{{task={PAY}}}"] == 2
    assert found[f"celery_monitor_task_run_seconds_count{{cluster=mail,task={PAY}}}"] == 1


def test_hostile_names_stay_within_their_quotes(store: Store) -> None:
    name = 'a"} 1\nflower_worker_online{worker="x\\'
    write(store, run(1, "received", name=name))
    (family,) = [each for each in families(store) if each.name == "flower_events"]
    assert [each.labels["task"] for each in family.samples] == [name]


def test_document_lists_every_metric_with_its_labels(sqlite_url: str) -> None:
    settings = Settings(broker=(Broker("shop", "redis://127.0.0.1:1/0"),), spool_dir=str(ROOT / "docs"))
    with serving(settings, sqlite_url) as app:
        fill(app.state.store)
        client = TestClient(app, base_url=BASE)
        client.get("/healthcheck")
        scrape = client.get("/metrics")
    documented = re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([\w, ]+) \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE
    )
    found = {family.name: family for family in read_text(scrape.text)}
    assert {name.removesuffix("_total"): kind for name, kind, _ in documented} == {
        name: family.type for name, family in found.items()
    }
    for name, _, labels in documented:
        for sample in found[name.removesuffix("_total")].samples:
            assert sample.labels.keys() - {"le"} == set(labels.split(", ")), name


def test_format_is_the_one_that_was_asked_for(sqlite_url: str) -> None:
    with serving(Settings(), sqlite_url) as app:
        client = TestClient(app, base_url=BASE)
        assert client.get("/metrics").headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        asked = client.get(
            "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
        )
        assert asked.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert asked.text.endswith("# EOF\n")
