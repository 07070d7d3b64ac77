"""The query bar offers fields, the values of the list, and what the record knows beyond it; in a real browser."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.factories import make_id
from tests.web.test_live import Site, received, run_site


@pytest.fixture
def site(sqlite_url: str) -> Iterator[Site]:
    with run_site(sqlite_url) as running:
        running.write(received(make_id(1), "shop.refund"), received(make_id(2), "evil.\u202egpj.exe"))
        yield running


@pytest.fixture
def page(site: Site, page: Page) -> Page:
    page.goto(f"{site.base}/tasks?q=state:failed")
    page.get_by_role("combobox", name="Filter").press("End")
    return page


def test_fields_then_their_values_are_offered(page: Page) -> None:
    bar = page.get_by_role("combobox", name="Filter")
    offered = page.get_by_role("listbox", name="Suggestions").get_by_role("option")
    page.keyboard.type(" -ex")
    expect(offered.first).to_contain_text("-exception:")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(bar).to_have_value("state:failed -exception:")
    expect(offered).to_contain_text(['-exception:"TimeoutError("*'])


def test_value_that_the_list_does_not_show_is_found_by_part_of_its_name(page: Page) -> None:
    offered = page.get_by_role("listbox", name="Suggestions").get_by_role("option")
    page.keyboard.type(" name:REF")
    expect(offered).to_have_count(1)
    expect(offered).to_have_text("name:shop.refund")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("combobox", name="Filter")).to_have_value("state:failed name:shop.refund ")


def test_hidden_characters_of_a_suggestion_are_shown(page: Page) -> None:
    page.keyboard.type(" name:gpj")
    offered = page.get_by_role("listbox", name="Suggestions").get_by_role("option")
    expect(offered).to_contain_text(["⟦U+202E⟧gpj.exe"])
