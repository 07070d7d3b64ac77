"""The files of deploy/: each of their queries names what a scrape has, and Prometheus itself takes them."""

import json
import logging
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from celery_monitor.settings import Settings
from tests.e2e.product import serving as product_of
from tests.servers import free_port, needs_program
from tests.web.shop import BASE, fill, serving
from tests.workers import ROOT, running_worker, wait_for

log = logging.getLogger(__name__)
DEPLOY = ROOT / "deploy"
DASHBOARD = DEPLOY / "grafana" / "celery-monitor.json"
RULES = [DEPLOY / "prometheus" / name for name in ("recording.yml", "alerts.yml")]
SECTIONS = ("Overview", "Queues", "Tasks", "Workers", "Beat")
METRIC = re.compile(r"\b((?:flower|celery_monitor)_\w+)")
RECORDED = re.compile(r"\b([a-z_]+:[a-z_]+:\w+)\b")
_ENDED = 'flower_events_total{type=~"task-failed|task-succeeded"}'
# The forms in which dashboards and alerts made for Flower ask for its names and labels. Written by hand: Flower's
# source archive has no such file.
FLOWER_QUERIES = (
    "flower_worker_online",
    "flower_worker_online == 1",
    "flower_worker_number_of_currently_executing_tasks",
    "flower_worker_prefetched_tasks",
    "sum(avg_over_time(flower_task_prefetch_time_seconds[15m])) by (task, worker)",
    "avg_over_time(flower_task_prefetch_time_seconds[15m]) >= 0",
    f'sum(avg_over_time(flower_events_total{{type="task-succeeded"}}[15m])) by (task)'
    f" / sum(avg_over_time({_ENDED}[15m])) by (task) * 100",
    f'sum(avg_over_time(flower_events_total{{type="task-failed"}}[15m])) by (task)'
    f" / sum(avg_over_time({_ENDED}[15m])) by (task) * 100",
    f'count(flower_events_total{{type="task-failed"}}) by (task) / count({_ENDED}) by (task)',
    "sum(rate(flower_events_total[1m])) by (type, worker)",
    "histogram_quantile(0.95, sum(rate(flower_task_runtime_seconds_bucket[1m])) by (le, task))",
    "rate(flower_task_runtime_seconds_sum[1m]) / rate(flower_task_runtime_seconds_count[1m])",
)
VARIABLES = {"$cluster": ".*", "$task": ".*", "$__rate_interval": "1m"}


def rules() -> list[dict[str, Any]]:
    groups = [each for file in RULES for each in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def dashboard_queries() -> list[str]:
    queries = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    for name, value in VARIABLES.items():
        queries = [query.replace(name, value) for query in queries]
    return queries


@pytest.fixture
def scraped(sqlite_url: str) -> set[str]:
    """The names of the samples of a real scrape."""
    with serving(Settings(), sqlite_url) as app:
        fill(app.state.store)
        text = TestClient(app, base_url=BASE).get("/metrics").text
    families = list(text_string_to_metric_families(text))
    return {each.name for each in families} | {sample.name for each in families for sample in each.samples}


def test_queries_name_what_a_scrape_has(scraped: set[str]) -> None:
    expressions = [*dashboard_queries(), *(rule["expr"] for rule in rules())]
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert len(expressions) > 30
    for query in expressions:
        assert METRIC.search(query) or RECORDED.search(query), query
        assert set(METRIC.findall(query)) - {"celery_monitor"} <= scraped, query
        assert set(RECORDED.findall(query)) <= recorded, query


def test_dashboard_has_its_sections_and_no_panel_over_another() -> None:
    assert tuple(each["title"] for each in panels() if each["type"] == "row") == SECTIONS
    cells = [
        (x, y)
        for each in panels()
        for x in range(each["gridPos"]["x"], each["gridPos"]["x"] + each["gridPos"]["w"])
        for y in range(each["gridPos"]["y"], each["gridPos"]["y"] + each["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))


def test_promtool_accepts_the_rules() -> None:
    command = [needs_program("promtool"), "check", "rules", *map(str, RULES)]
    checked = subprocess.run(command, check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count("SUCCESS") == len(RULES)


@contextmanager
def prometheus(directory: Path, target: str) -> Iterator[str]:
    """A Prometheus that scrapes the dashboard each second, with our rules; alerts do not wait here."""
    for file in RULES:
        text = re.sub(r"^ +for: .*\n", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
        (directory / file.name).write_text(text, encoding="utf-8")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["*.yml"],
        "scrape_configs": [{"job_name": "celery", "static_configs": [{"targets": [target]}]}],
    }
    (directory / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    port = free_port()
    command = [needs_program("prometheus"), f"--config.file={directory}/config.yaml"]
    command += [f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={directory}/data"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(15)


def ask(address: str, path: str) -> Any:
    try:
        with urlopen(f"{address}/api/v1/{path}", timeout=5) as response:
            return json.load(response)["data"]
    except URLError:  # not started yet
        return {}


def firing(address: str) -> set[str]:
    alerts = ask(address, "alerts").get("alerts", ())
    return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}


@pytest.mark.slow
def test_a_real_prometheus_fires_and_resolves_an_alert(redis_url: str, tmp_path: Path) -> None:
    needs_program("prometheus")
    with product_of(redis_url, tmp_path) as product:
        target = product.address.removeprefix("http://").rstrip("/")
        with prometheus(tmp_path, target) as address:
            wait_for(lambda: "CeleryNoWorker" in firing(address), what="the alert")
            with running_worker(redis_url) as worker:
                worker.send("add", 1, 2)
                wait_for(lambda: "CeleryNoWorker" not in firing(address), what="the end of the alert")
                succeeded = quote('flower_events_total{type="task-succeeded"}')
                wait_for(lambda: ask(address, f"query?query={succeeded}").get("result"), what="the task in Prometheus")
                for query in dashboard_queries():
                    assert ask(address, f"query?query={quote(query)}")["resultType"] == "vector", query


def test_queries_made_for_flower_name_what_a_scrape_has(scraped: set[str]) -> None:
    for query in FLOWER_QUERIES:
        assert set(METRIC.findall(query)) <= scraped, query


@pytest.mark.slow
def test_queries_made_for_flower_find_series_in_a_real_prometheus(redis_url: str, tmp_path: Path) -> None:
    needs_program("prometheus")
    with product_of(redis_url, tmp_path) as product, running_worker(redis_url) as worker:
        target = product.address.removeprefix("http://").rstrip("/")
        with prometheus(tmp_path, target) as address:
            for query in FLOWER_QUERIES:

                def found() -> Any:
                    worker.send("add", 1, 2)  # a rate needs samples that grow
                    worker.send("fail", "no stock")
                    return ask(address, f"query?query={quote(query)}").get("result")  # noqa: B023 - called at once

                series = wait_for(found, what=query)
                log.info("%d series: %s", len(series), query)
            worker.kill()
            offline = quote("flower_worker_online == 0")
            wait_for(lambda: ask(address, f"query?query={offline}").get("result"), what="a worker that is offline")
