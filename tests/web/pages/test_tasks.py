import re
import time
from html import unescape
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
import redis
from starlette.applications import Starlette

from celery_monitor.core.filters.parser import UNHANDLED
from celery_monitor.records.receiver import Delivery
from celery_monitor.settings import Settings
from celery_monitor.store.writer import Writer
from tests.factories import make_event, make_id
from tests.web import shop
from tests.web.pages.conftest import Browser
from tests.web.pages.house import open_house

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "x" * 300,
    "\u202eexe.pay",
    "😀 \u200b zero",
    "bell\x07tab\tline\nend",
)


def keys(page: str) -> list[str]:
    return [unescape(key) for key in re.findall(r'<tr data-key="([^"]*)"', page)]


def write(app: Starlette, name: str, number: int) -> str:
    task_id = make_id(number)
    known = {"uuid": task_id, "name": name, "args": f"({name!r},)", "kwargs": "{}", "retries": 3}
    now = time.time()
    events = [
        make_event("task-sent", timestamp=now - 2, hostname="gen7@web", queue=name, routing_key=name, **known),
        make_event("task-received", timestamp=now - 1, hostname=name, **known),
        make_event("task-failed", timestamp=now, hostname=name, uuid=task_id, exception=name, traceback=name),
    ]
    Writer(app.state.store, "shop", Settings()).write([Delivery(events=events, arrived=now)])
    return task_id


def test_newest_task_stands_first_with_state_name_queue_and_worker(browser: Browser) -> None:
    page = browser.get("/tasks").text
    assert keys(page) == [
        f"shop {task_id}" for task_id in (shop.ODD, shop.RUNNING, shop.SUCCEEDED, shop.TRUNCATED, shop.PROBABLE)
    ]
    for word in ("shop.pay.charge", "payments", "worker1@shop", "succeeded", "started"):
        assert word in page


def test_failed_is_one_click_away_and_tells_the_reason_in_the_row(browser: Browser) -> None:
    assert urlencode({"q": UNHANDLED}, quote_via=quote) in browser.get("/tasks").text
    page = browser.get("/tasks?q=state:failed").text
    assert keys(page) == [f"shop {shop.TRUNCATED}", f"shop {shop.PROBABLE}"]
    assert re.search(r"<b>TimeoutError</b> 30 s", page)


def test_wrong_filter_points_at_its_column_lists_what_is_known_and_shows_no_task(browser: Browser) -> None:
    response = browser.get("/tasks", params={"q": "state:failed colour:red"})
    assert keys(response.text) == []
    assert "column 14" in response.text
    assert "state, retried, name, queue" in response.text
    assert f">{' ' * 13}▲<" in response.text


def test_facet_narrows_and_its_count_agrees_with_the_list(browser: Browser) -> None:
    page = browser.get("/tasks").text
    found = re.search(r'href="([^"]*)"[^>]*>\s*<span class="badge state-failed">.*?data-tint>(\d+)<', page, re.DOTALL)
    assert found
    narrowed = browser.get(unescape(found.group(1))).text
    assert len(keys(narrowed)) == int(found.group(2)) == 2


def test_chip_takes_its_condition_away_and_keeps_the_others(browser: Browser) -> None:
    page = browser.get("/tasks", params={"q": "state:failed queue:payments"}).text
    found = re.search(r'href="([^"]*)" aria-label="Remove state:failed"', page)
    assert found
    assert unescape(found.group(1)) == "/tasks?q=queue%3Apayments"


def test_older_and_newer_pages_join_without_gap_or_overlap(app: Starlette, browser: Browser) -> None:
    for number in range(200, 230):
        write(app, "shop.mail", number)
    first = browser.get("/tasks?limit=25").text
    older = re.search(r'rel="next" href="([^"]*)"', first)
    assert older
    second = browser.get(unescape(older.group(1))).text
    assert len(keys(first)) == 25
    assert len({*keys(first), *keys(second)}) == 35
    newer = re.search(r'rel="prev" href="([^"]*)"', second)
    assert newer
    assert keys(browser.get(unescape(newer.group(1))).text) == keys(first)


def test_columns_can_be_chosen(browser: Browser) -> None:
    page = browser.get("/tasks?col=name&col=result").text
    assert re.findall(r'<th class="c-(\w+)', page) == ["name", "result"]
    assert "&#39;paid&#39;" in page


def test_nothing_found_says_what_to_do_next(browser: Browser) -> None:
    page = browser.get("/tasks", params={"q": "name:shop.refund"}).text
    assert "No matching tasks" in page
    assert "All tasks" in page


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_string_stays_text_in_every_column_and_facet(app: Starlette, browser: Browser, text: str) -> None:
    task_id = write(app, text, 300)
    for path in ("/tasks?col=name&col=args&col=queue&col=worker&col=id", f"/tasks/{task_id}", f"/tasks?q=id:{task_id}"):
        page = browser.get(path).text
        body = re.sub(r'\s(value|data-[\w-]+)="[^"]*"', "", page)  # what scripts and forms need as it is
        assert "<script>alert" not in page
        assert "<img" not in page
        assert not re.search(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', '""', page))
        assert 'href="javascript:' not in page
        assert "49" not in text or "{{ 7 * 7 }}" in unescape(page)
        for hidden in ("\u202e", "\u200b", "\x07"):
            assert hidden not in body


def test_bidi_control_is_shown_by_its_number(app: Starlette, browser: Browser) -> None:
    write(app, "\u202eexe.pay", 301)
    assert "⟦U+202E⟧exe.pay" in browser.get("/tasks").text


def test_selected_tasks_are_shown_before_they_are_sent_and_sent_once(browser: Browser, redis_url: str) -> None:
    selected = [f"shop {shop.PROBABLE}", f"shop {shop.TRUNCATED}"]
    preview = browser.submit("/tasks", "/tasks/retry?q=state:failed", task=selected)
    assert "Retry 1 of 2 selected tasks?" in preview
    assert "1 can't be retried" in preview
    assert "[31, &#34;EUR&#34;]" in preview
    with redis.Redis.from_url(redis_url) as broker:
        assert broker.llen("payments") == 0
        found = re.search(r'name="request_id" value="([^"]+)"', preview)
        assert found
        confirmed = {"task": selected, "confirm": "1", "request_id": found.group(1)}
        after = browser.submit("/tasks", "/tasks/retry?q=state:failed", **confirmed)
        browser.submit("/tasks", "/tasks/retry?q=state:failed", **confirmed)
        assert broker.llen("payments") == 1
    assert "1 task retried, 1 skipped." in after
    assert "Show new tasks" in after


def test_nothing_selected_is_said(browser: Browser) -> None:
    assert "No task is selected" in browser.submit("/tasks", "/tasks/retry")


def test_form_without_token_does_nothing(browser: Browser, redis_url: str) -> None:
    data = {"task": f"shop {shop.PROBABLE}", "confirm": "1"}
    response = browser.post("/tasks/retry", data=data, headers={"Origin": shop.BASE})
    assert response.status_code == 403
    with redis.Redis.from_url(redis_url) as broker:
        assert broker.llen("payments") == 0


def test_page_asks_for_few_and_small_files(browser: Browser) -> None:
    page = browser.get("/tasks").text
    files = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page))
    assert len(files) <= 8
    for address in files:
        response = browser.get(address, headers={"Accept-Encoding": "gzip"})
        assert response.status_code == 200
        assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"


def test_no_style_or_script_stands_in_the_page(browser: Browser) -> None:
    page = browser.get("/tasks").text
    assert not re.search(r"<style|\sstyle=|<script(?![^>]*\ssrc=)", page)


def test_a_wrong_filter_keeps_tabs_and_spans_and_names_the_field_that_was_meant(tmp_path: Path) -> None:
    with open_house(tmp_path) as house:
        page = house.text("/tasks?q=quue:mail")
        assert "did you mean queue?" in page
        assert all(each in page for each in ("Unfinished", "Succeeded", "any time", "24 h"))
        assert "for an argument use kwargs.language" in house.text("/tasks?q=language:pl")


def test_an_assignment_that_finds_nothing_suggests_the_argument(tmp_path: Path) -> None:
    with open_house(tmp_path) as house:
        page = house.html("/tasks?q=state:failed+language=pl")
        assert "q=state%3Afailed%20kwargs.language%3Apl" in page
        assert "Did you mean" not in house.html("/tasks?q=state:failed+nothing")
