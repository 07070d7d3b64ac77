import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from celery_monitor.records.queue import Pause, Queue
from celery_monitor.store.queues import save_pause, save_queues
from tests.factories import make_event, make_id, make_message
from tests.web.pages.house import HOSTILE, House, open_house


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with open_house(tmp_path) as opened:
        opened.write()
        yield opened


def measure(house: House, name: str, ago: float = 0.0, cluster: str = "shop", **known: object) -> None:
    queue = Queue(cluster=cluster, name=name, **known)  # type: ignore[arg-type]
    save_queues(house.store, cluster, [queue], house.now - ago)


def row(house: House, name: str) -> str:
    return next(each for each in house.html("/queues").split("<tr>") if f">{name}</a>" in each)


def test_no_queue_says_what_brings_one(house: House) -> None:
    assert "No queues yet" in house.text("/queues")


def test_what_is_not_known_is_called_unknown(house: House) -> None:
    measure(house, "emails")
    assert row(house, "emails").count(">unknown<") >= 5
    assert '<span class="figure" data-tint>0<' not in row(house, "emails")


def test_zero_is_not_unknown(house: House) -> None:
    measure(house, "emails", ready=0, unacked=0, consumers=2)
    text = house.text("/queues")
    assert "emails 0 – 0 2" in text


def test_queue_with_messages_and_no_consumer_is_warned_about_and_first(house: House) -> None:
    measure(house, "alpha", ready=3, consumers=1)
    measure(house, "zeta", ready=7, consumers=0)
    text = house.text("/queues")
    assert "zeta has 7 messages and no consumer" in text
    assert text.index("zeta no consumer 7") < text.index("alpha 3")


def test_age_of_the_oldest_is_exact_or_a_bound_or_unknown(house: House) -> None:
    known: dict[str, Any] = {"ready": 3, "consumers": 1}
    measure(house, "emails", oldest=house.now - 26, oldest_exact=True, **known)
    measure(house, "orders", oldest=house.now - 8, **known)
    measure(house, "rest", **known)
    assert ("at least" in row(house, "emails"), "at least" in row(house, "orders")) == (False, True)
    assert '<span class="unknown">unknown</span>' in row(house, "rest")
    assert "Oldest message at least" in house.text("/queues/orders")


def test_waits_that_are_counted_from_receipt_are_marked(house: House) -> None:
    measure(house, "emails", ready=0)
    for number, sent in enumerate((True, True, False)):
        known = {"uuid": make_id(number), "hostname": "worker1@shop", "name": "shop.mail"}
        told = make_event("task-sent", timestamp=house.now - 80, queue="emails", **{**known, "hostname": "gen7@till"})
        message = make_message(make_id(number), queue="emails")
        captured = make_event("capture-message", timestamp=house.now - 20, message=message, **known)
        house.write(
            *([told] if sent else []),
            make_event("task-received", timestamp=house.now - 20, **known),
            *([] if sent else [captured]),
            make_event("task-started", timestamp=house.now - 19, **known),
        )
    assert "33 % since receipt" in row(house, "emails")
    text = house.text("/queues/emails")
    assert "Wait time, 33 % since receipt" in text
    assert "In/s, 5 min" in text
    assert "since receipt" in house.text(f"/tasks/{make_id(2)}")
    assert "since receipt" not in house.text(f"/tasks/{make_id(0)}")
    assert house.text("/tasks").count("since receipt") == 1


def test_empty_queue_without_consumer_is_no_alarm(house: House) -> None:
    measure(house, "rest", ready=0, consumers=0)
    assert "no consumer" not in house.text("/queues")


def test_unknown_consumers_are_no_alarm(house: House) -> None:
    measure(house, "rest", ready=8, consumers=None)
    assert "no consumer" not in house.text("/queues")


def test_growing_queue_is_marked(house: House) -> None:
    measure(house, "emails", ago=180, ready=30, consumers=1)
    measure(house, "emails", ready=300, consumers=1)
    text = house.text("/queues")
    assert "emails growing 300" in text
    assert "not draining" in text


def test_rates_come_from_what_workers_took_and_how_the_depth_changed(house: House) -> None:
    for number in range(60):
        known = {"uuid": make_id(number), "timestamp": house.now - 70}
        house.write(
            make_event("task-sent", hostname="gen7@web", name="shop.mail", queue="emails", **known),
            make_event("task-received", name="shop.mail", **known),
        )
    measure(house, "emails", ago=120, ready=240, consumers=1)
    measure(house, "emails", ready=0, consumers=1)
    [rate] = re.findall(r"emails 0 – unknown 1 0 (\S+)", house.text("/queues"))
    assert 60 / 135 - 0.05 < float(rate) < 60 / 70 + 0.05  # of a record that began 70 s and a part of a minute ago


def test_one_queue_has_its_page(house: House) -> None:
    measure(house, "emails", ready=412, unacked=16, consumers=3, workers=("mail1@shop",))
    text = house.text("/queues/emails")
    assert "Waiting 412" in text
    assert "Unacknowledged 16" in text
    assert "mail1@shop" in text


def test_page_offers_more_processes_and_another_worker(house: House) -> None:
    measure(house, "emails", ready=412, consumers=2)
    for name, queues in (("mail1@shop", ("emails",)), ("mail2@shop", ("emails", "sms")), ("rest@shop", ("sms",))):
        house.worker(name, queues=queues)
    house.worker("gone@shop", online=False, queues=("emails",))
    text = house.text("/queues/emails")
    assert "Worker each of the 2 consumers mail1@shop mail2@shop" in text
    assert "Worker that does not consume this queue rest@shop Add consumer" in text
    assert "gone@shop" not in text


def test_paused_queue_offers_to_resume_and_nothing_that_would_fill_it(house: House) -> None:
    measure(house, "emails", ready=412, consumers=0)
    house.worker("mail1@shop", queues=("emails",))
    save_pause(house.store, Pause(cluster="shop", queue="emails", at=house.now, by="ada", workers=("a@shop",)))
    text = house.text("/queues/emails")
    assert "Resume" in text
    assert "Grow pool" not in text
    assert "Add consumer" not in text


def test_queue_that_is_not_known_is_not_found(house: House) -> None:
    assert "Queue 'nope' not found" in house.text("/queues/nope", status=404)


def test_same_name_in_two_clusters_is_shown_apart(house: House) -> None:
    house.write(cluster="mail")
    measure(house, "celery", ready=11, consumers=1)
    measure(house, "celery", cluster="mail", ready=22, consumers=1)
    text = house.text("/queues/celery")
    assert "Cluster shop Waiting 11" in text
    assert "Cluster mail Waiting 22" in text
    assert "Waiting 11" not in house.text("/queues/celery?cluster=mail")


def test_hostile_name_is_text_and_its_page_opens(house: House) -> None:
    measure(house, HOSTILE, ready=5, consumers=0, workers=(HOSTILE,))
    for path in ("/queues", f"/queues/{quote(HOSTILE, safe='')}"):
        html = house.html(path)
        assert "<img src=x" not in html
        assert "\u202e" not in html
        assert "⟦U+202E⟧" in html


def test_wait_and_tasks_by_name_are_those_of_the_queue(house: House) -> None:
    measure(house, "emails", ready=3, consumers=1)
    measure(house, "stock", ready=3, consumers=1)
    for number, wait in enumerate((0.5, 0.5, 0.5)):
        known = {"uuid": make_id(number), "name": "shop.mail", "args": "()"}
        house.write(make_event("task-sent", timestamp=house.now - 60, queue="emails", hostname="gen7@web", **known))
        house.write(make_event("task-received", timestamp=house.now - 59, **known))
        house.write(make_event("task-started", timestamp=house.now - 59 + wait, uuid=make_id(number)))
        ended = {"timestamp": house.now - 50, "uuid": make_id(number), "runtime": 4.0, "result": "1"}
        house.write(make_event("task-succeeded", **ended))
    assert re.search(r">1\.5 s / 1\.5 s<", row(house, "emails"))
    assert " ms / " not in row(house, "stock")
    text = house.text("/queues/emails")
    assert "Tasks by name" in text
    assert re.search(r"shop\.mail 3 0 1\.5 s (3\.9|4\.0|4\.1) s", text)
    assert "No task of this queue finished" in house.text("/queues/stock")
