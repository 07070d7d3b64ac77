import re
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import msgspec
import pytest

from celery_monitor.records.failure import FailureState
from celery_monitor.records.queue import Pause, Queue
from celery_monitor.records.receiver import StandbyReceiver
from celery_monitor.records.worker import WorkerStatus
from celery_monitor.store.queues import save_pause, save_queues
from celery_monitor.store.receivers import close_gap, open_gap, save_standby
from celery_monitor.store.rollups.failures import read_failure_groups, set_failure_state
from celery_monitor.store.tasks.detail import link_retry, read_task
from celery_monitor.web.charts import Chart
from tests.factories import make_event, make_id
from tests.web.pages.house import HOSTILE, House, open_house


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with open_house(tmp_path) as opened:
        yield opened


def fail(house: House, number: int, name: str = "shop.pay", exception: str = "TimeoutError('30 s')") -> None:
    at = house.now - 90
    known = {"uuid": make_id(number), "hostname": "worker1@shop"}
    house.write(
        make_event("task-received", timestamp=at, name=name, args="()", kwargs="{}", **known),
        make_event("task-started", timestamp=at + 2, **known),
        make_event("task-failed", timestamp=at + 9, exception=exception, traceback=f"Traceback\n{exception}", **known),
    )


def chart(html: str, name: str) -> Chart:
    found = re.search(rf'id="chart-{name}".*?data-chart="(.*?)"', html, re.DOTALL)
    assert found
    return msgspec.json.decode(unescape(found.group(1)), type=Chart)


def test_empty_record_says_what_to_do_next(house: House) -> None:
    text = house.text("/")
    assert "No receiver has written to this database yet" in text
    assert "celery-monitor serve --broker" in text
    assert "celery -A your_app worker -E" in text
    assert "task_send_sent_event = True" in text
    assert 'class="chart"' not in house.html("/")


def test_receiver_without_workers_is_told_apart(house: House) -> None:
    house.write()
    text = house.text("/")
    assert "Connected, waiting for the first event" in text
    assert "celery-monitor serve --broker" not in text


def test_sentence_names_workers_queue_and_failures(house: House) -> None:
    house.worker("worker1@shop", pool_size=4)
    house.worker("worker9@shop", online=False)
    for number in range(3):
        fail(house, number)
    for minutes, ready in ((3, 20), (2, 180), (0, 412)):
        known = {"consumers": 1, "oldest": house.now - 190, "oldest_exact": True}
        queue = Queue(cluster="shop", name="emails", ready=ready, **known)  # type: ignore[arg-type]
        save_queues(house.store, "shop", [queue], house.now - 60 * minutes)
    text = house.text("/")
    assert "1 of 2 workers up; worker9@shop is down. emails is growing: 412 waiting, oldest 3 min." in text
    assert "3 failures in 15 min, all TimeoutError in shop.pay." in text


def test_top_failures_lead_to_their_tasks(house: House) -> None:
    fail(house, 5)
    html = house.html("/")
    link = re.search(r'class="failure" href="(/failures/\d+\?range=15m)"', html)
    assert link
    assert "shop.pay" in house.text(link.group(1))


def test_sentence_list_and_chart_count_the_same_failures_when_some_are_muted(house: House) -> None:
    for number in range(5):
        fail(house, number)
    for number in range(5, 8):
        fail(house, number, name="shop.mail", exception="KeyError('to')")
    [muted, _] = read_failure_groups(house.store, since=house.now - 900)
    set_failure_state(house.store, muted.id, FailureState.MUTED, house.now)
    html, text = house.html("/?range=15m"), house.text("/?range=15m")
    assert "8 failures in 15 min, 5 of them muted, 3 of them KeyError in shop.mail." in text
    assert {each.name: each.summary for each in chart(html, "throughput").series}["failed"] == 8
    assert re.findall(r'class="failure" href="/failures/(\d+)', html) == [str(3 - muted.id)]
    assert "8 failures, 5 of them muted" in text[text.index("Top failures") :]


def test_charts_tell_what_the_record_says(house: House) -> None:
    for number in range(4):
        fail(house, number)
    html = house.html("/?range=15m")
    throughput = chart(html, "throughput")
    assert {each.name: each.summary for each in throughput.series} == {"succeeded": 0, "failed": 4}
    assert throughput.step == 60
    run = chart(html, "run")
    assert [each.summary for each in run.series] == pytest.approx([7.0] * 3, rel=0.03)
    wait = chart(html, "wait")
    assert wait.series[0].summary == pytest.approx(2.0, rel=0.03)


def test_gap_is_in_every_chart(house: House) -> None:
    fail(house, 1)
    gap = open_gap(house.store, "shop", house.now - 300, "broker was away")
    close_gap(house.store, gap, house.now - 240)
    html = house.html("/?range=15m")
    for name in ("throughput", "depth", "wait", "run"):
        ((began, ended, cause),) = chart(html, name).gaps
        assert (ended or 0.0) - began == pytest.approx(60)
        assert cause == "broker was away"


def test_unknown_range_is_an_error_that_lists_the_known(house: House) -> None:
    assert "15m, 1h, 6h, 24h, 7d, 30d" in house.text("/?range=century", status=400)


def test_page_stays_the_same_while_nothing_happens(house: House) -> None:
    fail(house, 1)
    assert chart(house.html("/"), "throughput") == chart(house.html("/"), "throughput")


def test_longest_running_task_is_listed(house: House) -> None:
    known = {"uuid": make_id(8), "hostname": "worker1@shop"}
    house.write(
        make_event("task-received", timestamp=house.now - 800, name="shop.reports.year", **known),
        make_event("task-started", timestamp=house.now - 799, **known),
    )
    assert f'href="/tasks/{make_id(8)}"' in house.html("/")
    assert "shop.reports.year" in house.text("/")


def test_hostile_names_are_text(house: House) -> None:
    house.worker(HOSTILE)
    fail(house, 2, name=HOSTILE, exception=f"ValueError('{HOSTILE}')")
    save_queues(house.store, "shop", [Queue(cluster="shop", name=HOSTILE, ready=9, consumers=0)], house.now)
    html = house.html("/")
    assert "<img src=x" not in html
    assert "\u202e" not in html
    assert "\x00" not in html
    assert "⟦U+202E⟧" in html


def test_receiver_that_stands_by_is_said_until_it_is_silent(house: House) -> None:
    house.write()
    now = time.time()
    standby = StandbyReceiver(cluster="shop", host="<b>second", pid=812, since=now - 60, updated_at=now, listening=True)
    save_standby(house.store, standby)
    assert "Standby receiver of shop on <b>second (process 812)." in house.text("/")
    (told,) = house.client.get("/api/v1/health").json()["items"][0]["standbys"]
    assert (told["host"], told["pid"], told["listening"]) == ("<b>second", 812, True)
    save_standby(house.store, msgspec.structs.replace(standby, updated_at=now - 60))
    assert "stands by" not in house.text("/")


def test_silence_of_a_worker_without_heartbeats_is_not_said_to_be_none(house: House) -> None:
    house.worker("worker7@shop", status=WorkerStatus.SILENT, last_heartbeat=None)
    assert "worker7@shop is silent, perhaps just busy." in house.text("/")


def test_lost_and_paused_are_said_with_their_cause_and_lead_to_them(house: House) -> None:
    house.worker("worker1@shop")
    lost = {"uuid": make_id(71), "hostname": "worker1@shop"}
    house.write(
        make_event("task-received", timestamp=house.now - 400, name="shop.pay", **lost),
        make_event("task-lost", timestamp=house.now - 130, exception="gone", **lost),
    )
    emails = Queue(cluster="shop", name="emails", ready=22, consumers=0)
    save_queues(house.store, "shop", [emails], house.now)
    paused = Pause(cluster="shop", queue="emails", at=house.now - 300, by="ada", workers=("worker1@shop",))
    save_pause(house.store, paused)
    text = house.text("/")
    assert "1 task is lost, newest 2 min ago." in text
    assert "emails was paused by ada 5 min ago, 22 waiting." in text
    assert "no consumer" not in text
    page = house.client.get("/").text
    link = re.search(r'href="(/tasks[^"]*)">1 task is lost', page)
    assert link
    assert make_id(71) in house.client.get(unescape(link.group(1))).text
    house.text("/queues")
    assert "emails was paused by ada" in house.text("/queues")


def test_failed_counts_what_still_needs_somebody_and_leads_to_it(house: House) -> None:
    for number in (1, 2, 3):
        fail(house, number, name=f"shop.task{number}")
    link_retry(house.store, "shop", make_id(1), make_id(9), "exact", house.now)
    group = read_task(house.store, make_id(2)).failure_group
    set_failure_state(house.store, group or 0, FailureState.MUTED, house.now)
    page = house.client.get("/").text
    assert "1 task needs attention" in page
    label = '<span>Failed<span class="wide"> tasks</span></span><span class="count alarm"'
    link = re.search(rf'href="([^"]*)"[^>]*>(?:(?!</a>).)*{label}[^>]*>1<', page, re.DOTALL)
    assert link
    listed = house.client.get(unescape(link.group(1))).text
    assert re.findall(r'data-key="shop ([^"]*)"', listed) == [make_id(3)]
