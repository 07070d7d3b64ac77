import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest

from celery_monitor.control.views import MuteFailure, ResolveFailure
from celery_monitor.records.failure import FailureState
from celery_monitor.store.actions import read_actions
from celery_monitor.store.rollups.failures import read_failure_group, read_failure_groups, set_failure_state
from celery_monitor.store.tasks.detail import read_task
from tests.factories import make_event, make_id
from tests.web.pages.conftest import Browser
from tests.web.pages.house import HOSTILE, House, open_house
from tests.web.shop import PROBABLE


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with open_house(tmp_path) as opened:
        yield opened


def fail(house: House, number: int, exception: str, ago: float = 60.0, **more: object) -> None:
    known = {"uuid": make_id(number), "timestamp": house.now - ago, **more}
    house.write(
        make_event("task-received", name="shop.pay", args=f"({number}, 'EUR')", kwargs="{}", **known),
        make_event("task-failed", exception=exception, traceback=f"Traceback\n{exception}", **known),
    )


def only_group(house: House) -> int:
    [group] = read_failure_groups(house.store, since=0.0)
    return group.id


def test_no_failure_offers_a_longer_time(house: House) -> None:
    assert "No failures in the last 24 h" in house.text("/failures")
    assert 'href="/failures?range=30d"' in house.html("/failures")


def test_alike_failures_are_one_line_and_the_most_common_is_first(house: House) -> None:
    fail(house, 1, "KeyError('sku-1')")
    for number in (2, 3, 4):
        fail(house, number, f"ValueError('order {number} is closed')")
    text = house.text("/failures")
    assert text.count("ValueError") == 1
    assert text.index("ValueError") < text.index("KeyError")
    assert "shop.pay new 3" in text


def test_windows_stand_from_the_shortest_to_the_longest(house: House) -> None:
    for number, ago in enumerate((60.0, 7300.0, 3 * 86400.0, 4 * 86400.0)):
        fail(house, number, "KeyError('sku')", ago)
    assert "1 h 24 h 7 days Trend" in house.text("/failures")
    assert "open 1 2 4 1" in house.text("/failures").replace("shop.pay ", "")
    text = house.text(f"/failures/{only_group(house)}")
    assert "Last 1 h 1 Last 24 h 2 Last 7 days 4 Total 4" in text
    assert "Last 15 min 1 Last 1 h 1" in house.text(f"/failures/{only_group(house)}?range=15m")


def test_traceback_of_the_latest_can_be_copied(house: House) -> None:
    fail(house, 1, "KeyError('sku')")
    html = house.html(f"/failures/{only_group(house)}")
    assert 'data-copy="traceback-text" aria-label="Copy traceback"' in html
    assert "<b>KeyError</b> <span>sku</span>" in html


def test_each_window_has_its_own_count_and_the_trend_is_drawn(house: House) -> None:
    for number, ago in enumerate((60.0, 120.0, 7300.0, 3 * 86400.0)):
        fail(house, number, "KeyError('sku')", ago)
    text = house.text("/failures?range=6h")
    assert "open 3 2 3 4 1" in text.replace("shop.pay ", ""), text
    assert text.count("KeyError") == 1
    assert 'aria-label="Failures over the last 6 h"' in house.html("/failures?range=6h")


def test_range_leaves_out_what_is_older(house: House) -> None:
    fail(house, 1, "KeyError('a')", ago=7200.0)
    assert "KeyError" in house.text("/failures?range=24h")
    assert "KeyError" not in house.text("/failures?range=1h")


def test_resolved_and_muted_groups_leave_the_open_ones(house: House) -> None:
    fail(house, 1, "KeyError('a')")
    number = only_group(house)
    for state in (FailureState.RESOLVED, FailureState.MUTED):
        set_failure_state(house.store, number, state, house.now)
        assert "KeyError" not in house.text("/failures")
        assert "KeyError" in house.text(f"/failures?state={state}")
    assert "use one of open, resolved, muted, all" in house.text("/failures?state=gone", status=400)


def test_group_tells_where_when_and_with_what(house: House) -> None:
    fail(house, 31, "TimeoutError('30 s')", ago=90.0, hostname="worker1@shop")
    fail(house, 32, "TimeoutError('40 s')", ago=30.0, hostname="worker2@shop")
    text = house.text(f"/failures/{only_group(house)}")
    assert "worker1@shop 1 worker2@shop 1" in text
    assert "By arguments latest 2 tasks (<n>, <value>) {} 2" in text
    assert make_id(32) in text
    assert "TimeoutError('40 s')" in text


def test_group_whose_tasks_are_gone_says_so(house: House) -> None:
    house.write(
        make_event("task-failed", uuid=make_id(1), timestamp=house.now - 9, exception="KeyError('a')"),
        make_event("task-received", uuid=make_id(1), timestamp=house.now - 5, name="shop.pay"),
    )
    assert "No stored tasks" in house.text(f"/failures/{only_group(house)}")


def test_unknown_group_is_not_found(house: House) -> None:
    house.html("/failures/731", status=404)
    house.html("/failures/99999999999999999999", status=404)


def test_hostile_exception_is_text(house: House) -> None:
    fail(house, 1, f"ValueError('{HOSTILE}')", hostname=HOSTILE)
    for path in ("/failures", f"/failures/{only_group(house)}"):
        html = house.html(path)
        assert "<img src=x" not in html
        assert "ValueError" in html


def test_forms_change_the_state_and_say_what_it_means(browser: Browser) -> None:
    store = browser.app.state.store  # type: ignore[attr-defined]
    number = read_task(store, PROBABLE).failure_group
    assert number is not None
    page = f"/failures/{number}"
    assert "shown as regressed" in browser.submit(page, f"{page}/resolve")
    assert read_failure_group(store, number).state is FailureState.RESOLVED
    assert "already resolved" in browser.submit(page, f"{page}/resolve")
    assert "not in the list" in browser.submit(page, f"{page}/mute", reason="the bank is slow")
    assert "Reopened" in browser.submit(page, f"{page}/reopen")
    trail = [(each.action, each.reason, each.outcome) for each in read_actions(store, limit=4).items]
    assert trail[:2] == [("failure.reopen", None, "done"), (MuteFailure.action, "the bank is slow", "done")]
    assert trail[2] == (ResolveFailure.action, None, "failed")


def test_variants_of_a_group_are_listed_and_lead_to_their_tasks(house: House) -> None:
    for number, customer in enumerate(("Acme", "Globex", "Globex"), 1):
        fail(house, number, f"ValueError('price list of {customer} cannot be read')")
    assert "price list of <name> cannot be read 2 variants" in house.text("/failures")
    page = house.client.get(f"/failures/{only_group(house)}").text
    link = re.search(r'href="([^"]*)">price list of Acme cannot be read<', page)
    assert link
    listed = house.client.get(unescape(link.group(1))).text
    assert re.findall(r'data-key="shop ([^"]*)"', listed) == [make_id(1)]
