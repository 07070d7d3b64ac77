import json
import re
import time
from base64 import b64decode
from html import unescape
from urllib.parse import quote

import pytest
import redis
from starlette.applications import Starlette

from celery_monitor.records.task import TaskState
from celery_monitor.store.actions import read_actions
from celery_monitor.store.tasks.detail import read_lineage, read_task
from celery_monitor.web.pages.task import timeline
from tests.factories import NOW, make_id, make_run, make_task
from tests.web import shop
from tests.web.pages.conftest import Browser


def sent(redis_url: str, queue: str = "payments") -> list[list[object]]:
    """The bodies (args, kwargs, embed) of what waits in the queue."""
    with redis.Redis.from_url(redis_url) as broker:
        return [json.loads(b64decode(json.loads(raw)["body"])) for raw in broker.lrange(queue, 0, -1)]


def test_failed_task_tells_why_with_what_and_where(browser: Browser) -> None:
    page = browser.get(f"/tasks/{shop.PROBABLE}").text
    assert re.search(r"<b>TimeoutError</b> <span>30 s</span>", page)
    assert "/srv/shop/pay.py" in page
    assert "[31, &#34;EUR&#34;]" in page
    assert "probable" in page
    assert "worker1@shop" in page
    assert "pid 4711" in page


def test_unknown_task_is_not_found_inside_the_shell(browser: Browser) -> None:
    response = browser.get(f"/tasks/{make_id(404)}")
    assert response.status_code == 404
    assert "is in the record" in response.text
    assert "<nav" in response.text


def test_odd_id_has_a_page(browser: Browser) -> None:
    response = browser.get(f"/tasks/{quote(shop.ODD, safe='')}")
    assert response.status_code == 200
    assert shop.ODD in unescape(response.text)


@pytest.mark.parametrize(
    ("task_id", "offered"),
    [
        (shop.PROBABLE, {"Retry", "Edit and retry"}),
        (shop.SUCCEEDED, {"Retry", "Edit and retry"}),
        (shop.RUNNING, {"Terminate"}),
    ],
)
def test_only_legal_actions_are_offered(browser: Browser, task_id: str, offered: set[str]) -> None:
    page = browser.get(f"/tasks/{task_id}").text
    head = page.partition('id="region-head"')[2].partition("task-id")[0]
    assert set(re.findall(r"<button[^>]*>([A-Z][^<]*)</button>", head)) == offered


def test_retry_shows_the_arguments_then_sends_them_and_shows_the_new_task(
    app: Starlette, browser: Browser, redis_url: str
) -> None:
    asked = browser.get(f"/tasks/{shop.PROBABLE}?panel=retry").text
    assert "Retry this task with these arguments?" in asked
    assert sent(redis_url) == []
    form = {name: unescape(value) for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', asked)}
    assert form["confirm"] == "1"
    form.pop("csrf_token")
    page = browser.submit(f"/tasks/{shop.PROBABLE}", f"/tasks/{shop.PROBABLE}/retry", **form)
    assert "Retried as" in page
    assert [body[:2] for body in sent(redis_url)] == [[[31, "EUR"], {}]]
    store = app.state.store
    (link,) = read_lineage(store, read_task(store, shop.PROBABLE)).retried_as
    assert f'href="/tasks/{link.id}"' in page
    (action,) = read_actions(store, limit=5).items
    assert (action.action, action.outcome, action.target) == ("task.retry", "done", shop.PROBABLE)


def test_truncated_arguments_are_refused_and_the_editor_opens_empty(browser: Browser, redis_url: str) -> None:
    page = browser.get(f"/tasks/{shop.TRUNCATED}?panel=retry").text
    assert "with the original arguments" in page
    assert "shortened by the sender" in page
    assert re.findall(r"<textarea[^>]*>([^<]*)</textarea>", page) == ["", ""]
    browser.submit(f"/tasks/{shop.TRUNCATED}", f"/tasks/{shop.TRUNCATED}/retry", confirm="1")
    assert sent(redis_url) == []


def test_wrong_json_is_explained_and_what_was_typed_stays(browser: Browser, redis_url: str) -> None:
    typed = {"edited": "1", "confirm": "1", "args": '[31, "EUR"', "kwargs": '{"card": "visa"}'}
    page = browser.submit(f"/tasks/{shop.TRUNCATED}", f"/tasks/{shop.TRUNCATED}/retry", **typed)
    assert '<p class="field-error" role="alert">args' in page
    assert '[31, "EUR"' in unescape(page)
    assert re.search(r'name="args"[^>]*aria-invalid="true"', page)
    assert sent(redis_url) == []


def test_edited_arguments_are_what_is_sent(browser: Browser, redis_url: str) -> None:
    typed = {"edited": "1", "confirm": "1", "args": '[7, "GBP"]', "kwargs": '{"card": "amex"}'}
    page = browser.submit(f"/tasks/{shop.TRUNCATED}", f"/tasks/{shop.TRUNCATED}/retry", **typed)
    assert "Retried as" in page
    assert [body[:2] for body in sent(redis_url)] == [[[7, "GBP"], {"card": "amex"}]]


def test_wrong_countdown_is_said_and_nothing_is_sent(browser: Browser, redis_url: str) -> None:
    typed = {"edited": "1", "confirm": "1", "args": "[7]", "kwargs": "{}", "countdown": "soon"}
    page = browser.submit(f"/tasks/{shop.TRUNCATED}", f"/tasks/{shop.TRUNCATED}/retry", **typed)
    assert "must be a number of seconds" in page
    assert sent(redis_url) == []


def test_task_id_that_ends_like_an_action_is_retried_itself(browser: Browser, redis_url: str) -> None:
    path = f"/tasks/{quote(shop.ODD, safe='')}"
    page = browser.submit(path, f"{path}/retry", confirm="1")
    assert "Retried as" in page
    assert len(sent(redis_url)) == 1


def test_revoking_what_is_over_says_so(browser: Browser) -> None:
    page = browser.submit(f"/tasks/{shop.SUCCEEDED}", f"/tasks/{shop.SUCCEEDED}/revoke")
    assert "there is nothing left to revoke" in page


def test_timeline_puts_waiting_before_running_on_one_scale() -> None:
    runs = [
        make_run(received=NOW + 10, started=NOW + 20, ended=NOW + 40),
        make_run(received=NOW + 60, started=NOW + 80, ended=NOW + 110),
    ]
    first, second = timeline(make_task(state=TaskState.FAILURE, sent=NOW + 10, runs=runs))
    assert (first.waited_from, first.ran_from, first.ends) == (0, 10, 30)
    assert (second.waited_from, second.ran_from, second.ends) == (50, 70, 100)
    assert (first.number, second.number) == (1, 2)


def test_timeline_of_a_running_task_is_open_at_its_end() -> None:
    (bar,) = timeline(make_task(sent=NOW - 4, runs=[make_run(received=NOW, started=NOW + 3, ended=None)]))
    assert not bar.ended
    assert 50 < bar.ran_from < 90
    assert bar.ends == 100


def test_timeline_of_a_task_that_nobody_has_is_empty() -> None:
    assert timeline(make_task(state=TaskState.PENDING, sent=None, runs=[])) == []


def test_page_of_a_task_does_not_depend_on_the_clock(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    first = browser.get(f"/tasks/{shop.PROBABLE}").text
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 20)
    assert browser.get(f"/tasks/{shop.PROBABLE}").text.partition("<main")[2] == first.partition("<main")[2]
