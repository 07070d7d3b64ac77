"""Forms that change workers and queues: who sees them, hostile names in them, and where they lead."""

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from celery_monitor.records.page import Action
from celery_monitor.records.queue import Pause, Queue
from celery_monitor.store.actions import read_actions, record_action
from celery_monitor.store.queues import end_pause, save_pause, save_queues
from celery_monitor.store.workers import read_workers
from tests.web.pages.house import BASE, HOSTILE, House, open_house


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with open_house(tmp_path) as opened:
        yield opened


def post(house: House, path: str, **form: str) -> str:
    """The page that a form leads to."""
    token = re.search(r'data-token="([^"]+)"', house.html("/actions"))
    assert token
    return house.client.post(
        path,
        data={"csrf_token": unescape(token.group(1)), "of_cluster": "shop", **form},
        headers={"Sec-Fetch-Site": "same-origin", "Origin": BASE},
    ).text


def queue(house: House, name: str, **fields: object) -> None:
    known: dict[str, Any] = {"ready": 7, "sampled_at": house.now, **fields}
    save_queues(house.store, "shop", [Queue(cluster="shop", name=name, **known)], house.now)


def test_hostile_names_are_text_in_every_form(house: House) -> None:
    house.worker(HOSTILE, queues=(HOSTILE,), pool=HOSTILE, pool_size=3)
    name = read_workers(house.store)[0].hostname
    queue(house, name)
    save_pause(house.store, Pause(cluster="shop", queue=name, by=name, at=house.now, workers=(name,), reason=name))
    for path in (
        f"/workers/{quote(name, safe='')}",
        f"/workers/{quote(name, safe='')}?ask=1",
        f"/queues/{quote(name, safe='')}",
        "/queues",
        f"/run?name={quote(name)}&queue={quote(name)}",
        f"/actions?actor={quote(name)}&action={quote(name)}&target={quote(name)}",
    ):
        assert "<img src=x" not in house.html(path), path
    form = re.search(r'action="(/workers/[^"]+/grow)"', house.html(f"/workers/{quote(name, safe='')}"))
    assert form
    assert "The broker of shop" in post(house, unescape(form.group(1)), number="2")
    assert [action.target for action in read_actions(house.store).items] == [name]


def test_what_is_no_number_is_said_on_the_worker_page(house: House) -> None:
    house.worker("mail1@shop")
    assert "number &#39;many&#39; must be an integer" in post(house, "/workers/mail1@shop/grow", number="many")
    assert "soft &#39;x&#39; must be a number of seconds" in post(
        house, "/workers/mail1@shop/time-limit", task="shop.pay", soft="x", hard=""
    )


def test_shutdown_and_purge_ask_for_the_name(house: House) -> None:
    house.worker("mail1@shop")
    queue(house, "emails")
    assert "type its name exactly: mail1@shop" in post(house, "/workers/mail1@shop/shutdown", confirm="mail1")
    assert "type its name exactly: emails" in post(house, "/queues/emails/purge", confirm="")
    assert read_actions(house.store).items == []


def test_read_only_offers_no_form(tmp_path: Path) -> None:
    with open_house(tmp_path, read_only=True) as house:
        house.worker("mail1@shop", queues=("emails",))
        queue(house, "emails")
        for path in ("/workers/mail1@shop", "/queues/emails", "/workers", "/run"):
            assert 'method="post"' not in house.html(path).partition("<main")[2], path


def test_paused_queue_says_by_whom_and_who_takes_from_it_yet(house: House) -> None:
    queue(house, "emails", consumers=0)
    pause = Pause(cluster="shop", queue="emails", by="mira", at=house.now, workers=("a@shop", "b@shop"), reason="bank")
    save_pause(house.store, pause)
    assert "Paused by mira" in house.text("/queues/emails")
    assert "2 workers were asked to stop consuming it." in house.text("/queues/emails")
    assert "Yet" not in house.text("/queues/emails")
    house.worker("new@shop", queues=("emails",))
    assert "Still consumed by new@shop" in house.text("/queues/emails")
    assert "paused" in house.text("/queues")
    end_pause(house.store, "shop", "emails")
    assert "Paused" not in house.text("/queues/emails")


def test_trail_is_filtered_and_paged_with_its_filter(house: House) -> None:
    for number in range(103):
        given: dict[str, Any] = {"actor": "mira" if number else "olga", "outcome": "denied" if number == 7 else "done"}
        record_action(
            house.store, Action(at=house.now, action="queue.purge", cluster="shop", target=f"q{number}", **given)
        )
    record_action(house.store, Action(at=house.now, actor="mira", action="worker.shutdown", cluster="shop"))
    assert ">q7<" in house.html("/actions?outcome=denied")
    assert ">q8<" not in house.html("/actions?outcome=denied")
    assert ">q0<" in house.html("/actions?actor=olga")
    assert "No matching actions" in house.text("/actions?actor=olg")
    assert ">worker.shutdown</td>" not in house.html("/actions?action=queue.*")
    page = house.html("/actions?action=queue.*&actor=mira")
    older = unescape(re.search(r'class="pager".*?href="([^"]+)"', page, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert ">q1<" in house.html(older)
    assert ">q0<" not in house.html(older)
