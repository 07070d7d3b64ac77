"""What goes wrong is said in words on the page that stays open, without a reload: with real workers."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.product import Product, serving
from tests.workers import Worker, running_worker, wait_for

pytestmark = pytest.mark.slow
APP = "tests.apps.misbehaving"


@pytest.fixture
def product(redis_url: str, tmp_path: Path) -> Iterator[Product]:
    with serving(redis_url, tmp_path) as product:
        yield product


def open_overview(page: Page, product: Product) -> None:
    page.goto(product.address)
    expect(page.get_by_role("status").filter(has_text=re.compile("^live$"))).to_be_visible()


def expect_words(page: Page, words: str) -> None:
    expect(page.get_by_role("region", name="Health")).to_contain_text(re.compile(words))


def pool(worker: Worker) -> list[int]:
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text(encoding="ascii").split()
    return [int(pid) for pid in children]


def test_pool_that_was_stopped_is_shown_though_its_worker_answers(product: Product, redis_url: str, page: Page) -> None:
    with running_worker(redis_url, app=APP) as worker:
        worker.send("shop.pick")
        open_overview(page, product)
        for pid in pool(worker):
            os.kill(pid, signal.SIGSTOP)
        worker.send("shop.pick")
        expect_words(page, rf"{worker.hostname} may be stuck: 1 received task not started")
        for pid in pool(worker):
            os.kill(pid, signal.SIGCONT)
        expect(page.get_by_text("may be stuck")).to_have_count(0)


def test_worker_that_was_stopped_is_shown_as_silent(product: Product, redis_url: str, page: Page) -> None:
    with running_worker(redis_url, app=APP) as worker:
        open_overview(page, product)
        os.killpg(worker.pid, signal.SIGSTOP)
        try:
            expect_words(page, rf"{worker.hostname} has been silent for \d+ s, perhaps just busy")
        finally:
            os.killpg(worker.pid, signal.SIGCONT)


def test_solo_worker_that_works_is_busy_and_no_alarm(product: Product, redis_url: str, page: Page) -> None:
    with running_worker(redis_url, app=APP, pool="solo", concurrency=1) as worker:
        open_overview(page, product)
        expect(page.get_by_text("1 worker up.")).to_be_visible()
        wait_for(
            lambda: '"pool":"solo"' in product.get("api/v1/workers").replace(" ", ""), what="the pool of the worker"
        )
        worker.send("shop.pick", 12)
        expect_words(page, rf"1 probably busy\.\s+{worker.hostname} has been silent for \d+ s; a solo pool is silent")
        expect(page.get_by_role("region", name="Health")).not_to_contain_text("perhaps")


def test_chord_with_a_member_that_hangs_may_be_stuck(product: Product, redis_url: str, page: Page) -> None:
    config = {"result_backend": redis_url}
    with running_worker(redis_url, app=APP, concurrency=3, config=config) as worker:
        for _ in range(3):
            worker.send("shop.report", 4)
        wait_for(lambda: product.count("name:shop.add_up state:succeeded") == 3, what="three reports")
        open_overview(page, product)
        worker.send("shop.report", 4, 600)
        expect_words(page, "A workflow may be stuck: shop.count_shelf has run for")
        page.get_by_role("link", name="A workflow may be stuck").click()
        expect(page.get_by_role("main")).to_contain_text("1 × shop.count_shelf")


def test_queue_that_begins_to_grow_is_shown(product: Product, redis_url: str, page: Page) -> None:
    with running_worker(redis_url, app=APP, concurrency=1) as worker:
        worker.send("shop.pick")
        open_overview(page, product)
        for _ in range(40):
            for _ in range(8):
                worker.send("shop.pick", 0.5)
            page.wait_for_timeout(250)
            if f"{worker.queue} is growing" in page.get_by_role("region", name="Health").inner_text():
                break
        expect_words(page, rf"{worker.queue} is growing: \d+ waiting")
