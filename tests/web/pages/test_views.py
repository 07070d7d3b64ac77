"""Saved views on the page, what leads to them, and the counts of the navigation."""

import re
from html import unescape
from pathlib import Path

from celery_monitor.records.failure import FailureState
from celery_monitor.records.queue import Queue
from celery_monitor.store.queues import save_queues
from celery_monitor.store.rollups.failures import read_failure_groups, set_failure_state
from celery_monitor.store.views import save_view
from tests.factories import make_event, make_id
from tests.web.pages.conftest import Browser
from tests.web.pages.house import HOSTILE, open_house


def saved_links(page: str) -> list[tuple[str, str]]:
    menu = page.partition("views-menu")[2].partition("</details>")[0]
    found = re.findall(r'<li><a href="([^"]*)"[^>]*><span class="clip">([^<]*)<', menu)
    return [(unescape(address), unescape(name)) for address, name in found]


def test_a_list_is_saved_where_it_is_and_found_by_everybody(browser: Browser) -> None:
    listed = browser.get("/tasks?q=state:failed&sort=-runtime&col=name&col=id").text
    query = re.search(r'name="query" value="([^"]*)"', listed)
    assert query
    fields = {"name": "Slow failures", "path": "/tasks", "query": unescape(query.group(1))}
    after = browser.submit("/tasks", "/views/save", **fields)
    assert "Saved as &#39;Slow failures&#39;, for everybody." in after
    assert 'value="state:failed"' in after  # still the list that was saved
    ((address, name),) = saved_links(browser.get("/tasks").text)
    assert (address, name) == ("/tasks?q=state%3Afailed&sort=-runtime&col=name&col=id", "Slow failures")
    assert browser.get(address).status_code == 200


def test_a_view_is_renamed_and_deleted(browser: Browser) -> None:
    browser.submit("/tasks", "/views/save", name="Failed", path="/tasks", query="q=state%3Afailed")
    renamed = browser.submit("/views", "/views/rename", view="1", name="Broken")
    assert "&#39;Failed&#39; is now &#39;Broken&#39;." in renamed
    assert "Deleted &#39;Broken&#39;." in browser.submit("/views", "/views/delete", view="1")
    assert "No saved views" in browser.get("/views").text
    assert "There is no saved view 1" in browser.submit("/views", "/views/delete", view="1")
    assert "must be an integer" in browser.submit("/views", "/views/delete", view="one")


def test_a_view_of_another_site_is_neither_kept_nor_followed(browser: Browser) -> None:
    page = browser.submit("/tasks", "/views/save", name="x", path="//evil.example", query="")
    assert "is not a path of this dashboard" in page
    assert saved_links(page) == []


def test_a_hostile_name_stays_text(tmp_path: Path) -> None:
    with open_house(tmp_path) as house:
        save_view(house.store, HOSTILE.replace("\0", ""), "/tasks", "q=%3Cimg%3E&x=%22onload", "olga<b>", 7.0)
        for path in ("/views", "/tasks"):
            page = house.html(path)
            assert "<img" not in page
            assert "olga<b>" not in page
            assert "⟦U+202E⟧" in page


def test_a_viewer_reads_views_and_is_offered_no_change(tmp_path: Path) -> None:
    with open_house(tmp_path, read_only=True) as house:
        save_view(house.store, "Failed", "/tasks", "q=state%3Afailed", "olga", 7.0)
        assert "Failed" in house.text("/views")
        for path in ("/views", "/tasks"):
            page = house.html(path)
            assert "/views/save" not in page
            assert "/views/rename" not in page


def test_exports_are_of_the_filter_and_the_cluster_on_screen(browser: Browser) -> None:
    page = browser.get("/tasks?q=state:failed&cluster=shop").text
    links = [unescape(link) for link in re.findall(r'href="([^"]*)" download', page)]
    assert links == [f"/api/v1/export/tasks?cluster=shop&q=state%3Afailed&format={each}" for each in ("csv", "ndjson")]
    assert "/api/v1/export" not in browser.get("/tasks?q=colour:red").text


def counts(page: str) -> dict[str, str]:
    nav = page.partition('<nav class="nav"')[2].partition("more-pages")[0]
    nav = re.sub(r'<span class="wide">([^<]+)</span>', r"\1", nav)
    return dict(re.findall(r"<span>([^<]+)</span><span class=\"count[^>]*>([^<]+)<", nav))


def test_navigation_of_an_empty_record_claims_no_queue(tmp_path: Path) -> None:
    with open_house(tmp_path) as house:
        assert counts(house.html("/")) == {
            "Tasks": "0",
            "Failed tasks": "0",
            "Failure groups": "0",
            "Workers": "0/0",
            "Alerts": "0",
        }


def test_navigation_counts_what_needs_somebody(tmp_path: Path) -> None:
    with open_house(tmp_path) as house:
        for number, text in enumerate(("'a'", "'b'", "['c']")):
            known = {"uuid": make_id(number), "timestamp": house.now - 3}
            failed = make_event("task-failed", exception=f"Declined({text})", traceback="", **known)
            house.write(make_event("task-received", name=f"shop.{number}", **known), failed)
        house.worker("worker1@shop")
        house.worker("worker2@shop", online=False)
        queues = [Queue(cluster="shop", name=name, ready=ready) for name, ready in (("a", 3), ("b", 0), ("c", None))]
        save_queues(house.store, "shop", queues, house.now)
        group = read_failure_groups(house.store, since=house.now - 60)[0]
        set_failure_state(house.store, group.id, FailureState.MUTED, house.now)
        assert counts(house.html("/actions")) == {
            "Tasks": "3",
            "Failed tasks": "2",
            "Failure groups": "2",
            "Queues": "1",
            "Workers": "1/2",
            "Alerts": "0",
        }
        assert 'Open <span class="count">2<' in house.html("/failures")
