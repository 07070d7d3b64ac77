from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_monitor.records.page import Action
from celery_monitor.store.actions import record_action
from tests.factories import make_id
from tests.web.pages.house import HOSTILE, House, open_house


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with open_house(tmp_path) as opened:
        yield opened


def record(house: House, **fields: object) -> None:
    given = {"at": house.now - 60, "actor": "mira", "action": "task.retry", "cluster": "shop", **fields}
    record_action(house.store, Action(**given))  # type: ignore[arg-type]


def test_nothing_done_yet_says_what_will_stand_here(house: House) -> None:
    assert "No actions yet" in house.text("/actions")


def test_who_what_why_and_outcome_are_shown(house: House) -> None:
    record(house, target=make_id(7), reason="gateway is back", message="sent again", outcome="unconfirmed", count=1)
    assert "mira task.retry" in house.text("/actions")
    assert "1 unconfirmed gateway is back sent again" in house.text("/actions")
    assert f'href="/tasks/{make_id(7)}?cluster=shop"' in house.html("/actions")


def test_nothing_more_to_tell_is_nothing_to_open(house: House) -> None:
    record(house, target=make_id(7))
    assert "more-of" not in house.html("/actions")


def test_refused_ones_are_there_with_their_query(house: House) -> None:
    record(house, query="state:failed name:shop.*", outcome="denied", count=12_412)
    assert "state:failed name:shop.* 12 412 denied" in house.text("/actions")


def test_older_ones_are_on_the_next_page(house: House) -> None:
    for number in range(101):
        record(house, actor=f"user{number}")
    html = house.html("/actions")
    assert ">user100<" in html
    assert ">user0<" not in html
    older = html.split('class="pager"')[1].split('href="')[1].split('"')[0]
    assert ">user0<" in house.html(older)


def test_hostile_text_is_text(house: House) -> None:
    record(house, actor=HOSTILE, action=HOSTILE, target=HOSTILE, reason=HOSTILE, message=HOSTILE)
    assert "<img src=x" not in house.html("/actions")
