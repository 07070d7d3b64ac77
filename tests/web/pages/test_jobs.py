import re
import time

from starlette.applications import Starlette

from celery_monitor.records.job import JobOutcome, JobState
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.user import Role
from celery_monitor.settings import Settings
from celery_monitor.store.jobs import read_job, sent_as
from celery_monitor.store.tasks.detail import link_retry
from celery_monitor.store.writer import Writer
from celery_monitor.web.present import Watched
from tests.web import shop
from tests.web.pages.conftest import Browser
from tests.workers import wait_for


def choose(browser: Browser, query: str = "state:failed", verb: str = "retry") -> str:
    return browser.submit("/tasks", f"/tasks/bulk-{verb}?q={query}")


def test_all_that_match_are_offered_with_their_number_and_only_what_may_be_done(browser: Browser) -> None:
    failed = browser.get("/tasks?q=state:failed").text
    assert 'data-verbs="retry" data-count="2">Select all 2<' in failed
    running = browser.get("/tasks?q=state:started").text
    assert 'data-verbs="revoke" data-count="1">Select all 1<' in running
    assert "that match<" not in browser.get("/tasks?q=name:nothing").text


def test_all_that_match_is_a_choice_of_the_list_without_a_script_too(browser: Browser) -> None:
    """The rows that stand on the page are not what is meant then."""
    page = browser.submit("/tasks", "/tasks/retry?q=state:failed", all="1", task=f"shop {shop.RUNNING}")
    assert "Retry 2 tasks on shop?" in page
    page = browser.submit("/tasks", "/tasks/revoke?q=state:started", all="1")
    assert "Revoke 1 task on shop?" in page
    assert re.search(r'id="pick-matching" checked', browser.get("/tasks?q=state:failed&select=all").text)
    assert not re.search(r'id="pick-matching" checked', browser.get("/tasks?q=state:failed").text)


def test_preview_shows_query_count_fidelity_samples_and_the_verb_on_the_button(browser: Browser) -> None:
    page = choose(browser)
    assert "Retry 2 tasks on shop?" in page
    assert "<code>state:failed</code>" in page
    assert re.search(r"<dt>probable</dt><dd[^>]*>1<", page)
    assert re.search(r"<dt>unknown</dt><dd[^>]*>1<", page)
    assert "[31, &#34;EUR&#34;]" in page
    assert ">Retry 1 task<" in page
    assert "1 skipped: arguments unknown" in page


def test_yes_makes_a_job_that_ends_with_what_was_skipped_and_why(browser: Browser, app: Starlette) -> None:
    choose(browser)
    after = browser.submit("/jobs/1", "/jobs/1/start", reason="gateway is back", rate="")
    again = browser.submit("/jobs/1", "/jobs/1/start", reason="gateway is back", rate="")
    assert "Job 1 started: retry 2 tasks." in after
    assert "Nothing was started twice" in again
    store = app.state.store
    wait_for(lambda: read_job(store, 1).state is JobState.DONE, what="the end of the job")
    page = browser.get("/jobs/1").text
    assert "Job 1: done" in page
    assert "gateway is back" in page
    assert "arguments unknown" in page
    new_id = sent_as(read_job(store, 1), shop.PROBABLE)
    assert new_id in browser.get("/jobs/1?outcome=done").text
    assert shop.TRUNCATED in browser.get("/jobs/1?outcome=skipped").text
    actions = browser.get("/actions").text
    assert "Retry, job 1" in actions
    assert "1 task retried, 1 skipped." in actions


def test_it_shows_what_became_of_those_that_were_sent_again(browser: Browser, app: Starlette) -> None:
    choose(browser)
    browser.submit("/jobs/1", "/jobs/1/start")
    store = app.state.store
    wait_for(lambda: read_job(store, 1).state is JobState.DONE, what="the end of the job")
    new_id = sent_as(read_job(store, 1), shop.PROBABLE)
    assert re.search(
        rf"{new_id}</a></td><td data-tint><span[^>]*><i[^>]*>○</i>(sent|pending)<", browser.get("/jobs/1").text
    )
    ended = shop.events_of(new_id, time.time() - 7, "succeeded", result="'paid'", runtime=1.75)
    Writer(store, "shop", Settings()).write([Delivery(events=ended, arrived=time.time())])
    assert re.search(rf"{new_id}</a></td><td data-tint><span[^>]*><i[^>]*>✓</i>succeeded<", browser.get("/jobs/1").text)


def test_totals_of_what_became_of_them_lead_to_just_these(browser: Browser, app: Starlette) -> None:
    choose(browser)
    browser.submit("/jobs/1", "/jobs/1/start")
    store = app.state.store
    wait_for(lambda: read_job(store, 1).state is JobState.DONE, what="the end of the job")
    assert "1 not seen yet" in words(browser, "/jobs/1")
    new_id = sent_as(read_job(store, 1), shop.PROBABLE)
    ended = shop.events_of(new_id, time.time() - 7, "failed", exception="Declined('again')")
    Writer(store, "shop", Settings()).write([Delivery(events=ended, arrived=time.time())])
    assert "1 retried : 1 ✕ failed" in words(browser, "/jobs/1")
    assert "of which the record has nothing" not in words(browser, "/jobs/1")
    found = re.search(r'href="([^"]+q=job%3A1(?:\+|%20)state%3Afailed[^"]*)"', browser.get("/jobs/1").text)
    assert found
    listed = browser.get(found.group(1).replace("&amp;", "&")).text
    assert new_id in listed
    assert shop.TRUNCATED not in listed


def words(browser: Browser, path: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", browser.get(path).text).split())


def test_an_abort_ends_it(browser: Browser, app: Starlette) -> None:
    choose(browser)
    browser.submit("/jobs/1", "/jobs/1/start", rate="0.05")
    store = app.state.store
    wait_for(lambda: sum(each.count for each in read_job(store, 1).reasons), what="the first task")
    assert "Job 1 is being aborted" in browser.submit("/jobs/1", "/jobs/1/abort")
    wait_for(lambda: read_job(store, 1).state is JobState.ABORTED, what="the end of the job")
    job = read_job(store, 1)
    assert job.left == 1
    assert "Aborted by anonymous." in browser.get("/jobs/1").text
    assert job.count(JobOutcome.DONE) + job.count(JobOutcome.SKIPPED) == 1


def test_a_rate_that_is_no_number_is_said_and_starts_nothing(browser: Browser, app: Starlette) -> None:
    choose(browser)
    assert "is not a number of tasks per second" in browser.submit("/jobs/1", "/jobs/1/start", rate="quick")
    assert read_job(app.state.store, 1).state is JobState.PREVIEW


def test_a_wrong_filter_makes_no_job_and_is_said(browser: Browser, app: Starlette) -> None:
    assert "column 1" in choose(browser, "colour:red")
    assert browser.get("/jobs/1").status_code == 404


def test_no_such_job(browser: Browser) -> None:
    for path in ("/jobs/77", "/jobs/x", "/jobs/99999999999"):
        assert browser.get(path).status_code == 404
    choose(browser)
    assert browser.get("/jobs/1?outcome=lunch").status_code == 400


def test_a_failure_group_is_a_query_like_any_other(browser: Browser) -> None:
    found = re.search(r'href="/failures/(\d+)', browser.get("/failures").text)
    assert found
    query = f"group:{found.group(1)}"
    assert "Retry 2 tasks on shop?" in choose(browser, query)


def test_links_that_sort_filter_and_page_keep_the_chosen_columns(browser: Browser) -> None:
    page = browser.get("/tasks?col=name&col=received&col=result&q=state:succeeded").text
    links = re.findall(r'href="(/tasks\?[^"]*(?:sort|received)[^"]*)"', page)
    assert links
    assert all("col=name&amp;col=received&amp;col=result" in link for link in links)
    form = re.search(r'<form class="query".*?</form>', page, re.DOTALL)
    assert form
    assert form.group().count('name="col"') == 3


def test_what_watches_a_job_or_the_list_is_told_of_progress(browser: Browser, app: Starlette) -> None:
    choose(browser)
    presenter = app.state.presenter
    before = presenter.snapshot(Watched("/jobs/1", "", Role.OPERATOR))
    assert "Retry 2 tasks on shop?" in before.regions["job"]
    browser.submit("/jobs/1", "/jobs/1/start")
    wait_for(lambda: read_job(app.state.store, 1).state is JobState.DONE, what="the end of the job")
    after = presenter.snapshot(Watched("/jobs/1", "", Role.OPERATOR))
    assert "Job 1: done" in after.regions["job"]
    assert "Retry, job 1" in presenter.snapshot(Watched("/actions", "", Role.VIEWER)).regions["jobs"]
    listed = Watched("/tasks?q=state%3Afailed", "", Role.OPERATOR)
    assert "Select all 2" in presenter.snapshot(listed).regions["bulk"]
    assert "Select all 2" not in presenter.snapshot(Watched(listed.address, "", Role.VIEWER)).regions["bulk"]


def test_tasks_that_were_retried_are_left_out_until_the_box_is_ticked(browser: Browser, app: Starlette) -> None:
    link_retry(app.state.store, "shop", shop.PROBABLE, shop.SUCCEEDED, "exact", time.time())
    page = choose(browser)
    assert "1 skipped: already retried, succeeded" in page
    assert "None of them can be retried." in page
    page = browser.submit("/jobs/1", "/jobs/1/include-retried", include_retried="1")
    assert ">Retry 1 task<" in page
    assert re.search(r'name="include_retried" value="1" checked', page)
    assert "↻ </span>retried, succeeded<" in browser.get("/tasks?q=state:failed").text
    assert "already retried 0 s ago as" not in browser.get(f"/tasks/{shop.PROBABLE}").text
    assert "This task was already retried" in browser.get(f"/tasks/{shop.PROBABLE}?panel=retry").text
