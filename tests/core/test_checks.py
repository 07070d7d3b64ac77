"""Facts of a set-up in, findings out."""

import ast
from dataclasses import replace

import pytest

from celery_monitor.core.health.checks import (
    BrokerFacts,
    RecordFacts,
    ResultFacts,
    Sender,
    judge_application,
    judge_record,
    judge_results,
    judge_transport,
    judge_workers,
)
from celery_monitor.core.health.findings import Finding
from celery_monitor.doctor import LEVELS
from celery_monitor.records.application import Application, Unread

GOOD_CONF: dict[str, object] = {
    "task_send_sent_event": True,
    "worker_send_task_events": True,
    "worker_prefetch_multiplier": 4,
    "task_annotations": {"*": {"Request": "celery_monitor_capture:Request"}},
}
GOOD = BrokerFacts(
    transport="redis",
    workers=["pay@shop", "mail@shop"],
    conf={"pay@shop": GOOD_CONF, "mail@shop": GOOD_CONF},
    senders={"pay@shop": Sender(0.1, "5.7.1"), "mail@shop": Sender(-0.2, "5.7.1")},
    redis={
        "maxmemory": 10_000,
        "used_memory": 500,
        "maxmemory_policy": "noeviction",
        "pubsub_limit": "normal 0 0 0 slave 256 64 60 pubsub 33554432 8388608 60",
    },
)
RECORD = RecordFacts(product="postgresql", version=(15, 2), longest_run=8.0, longest_eta=90.0)


def found(facts: BrokerFacts, record: RecordFacts = RECORD) -> dict[str, Finding]:
    return {each.kind: each for each in (*judge_workers(facts, record), *judge_transport(facts, record))}


def texts(**conf: object) -> BrokerFacts:
    return replace(GOOD, conf={**GOOD.conf, "mail@shop": {**GOOD_CONF, **conf}})


def on_redis(**info: object) -> BrokerFacts:
    return replace(GOOD, redis={**(GOOD.redis or {}), **info})


def test_nothing_is_wrong_with_a_good_set_up() -> None:
    assert {LEVELS[each.tone] for each in found(GOOD).values()} == {"ok"}
    assert {LEVELS[each.tone] for each in judge_record(RECORD)} == {"ok"}


@pytest.mark.parametrize(
    ("facts", "check", "level", "words"),
    [
        (replace(GOOD, workers=[], conf={}, senders={}), "workers", "wrong", "No worker answered"),
        (
            replace(GOOD, senders={"pay@shop": Sender(0, None)}),
            "heartbeats",
            "wrong",
            "No events received from mail@shop",
        ),
        (texts(worker_send_task_events=False), "task events", "unknown", "Unknown for mail@shop"),
        (texts(task_send_sent_event=False), "sent events", "wrong", "off on mail@shop"),
        (replace(GOOD, answers={"pay@shop": 3}), "node names", "wrong", "3 processes share the name pay@shop"),
        (texts(task_annotations=None), "exact retries", "note", "not used on mail@shop"),
        (texts(worker_prefetch_multiplier=0), "prefetch", "wrong", "0 on mail@shop"),
        (replace(GOOD, senders={"pay@shop": Sender(-3600, "5.7.1")}), "clocks", "wrong", "off by up to 3600.0 s"),
        (
            replace(GOOD, senders={"pay@shop": Sender(0, "5.7.1"), "mail@shop": Sender(0, "5.8.0")}),
            "Celery",
            "wrong",
            "5.7.1 on pay@shop; 5.8.0 on mail@shop",
        ),
        (on_redis(maxmemory_policy="allkeys-lru"), "memory of Redis", "wrong", "allkeys-lru"),
        (on_redis(used_memory=9_500), "memory of Redis", "wrong", "95% of maxmemory"),
        (replace(GOOD, redis={}), "memory of Redis", "unknown", "This user may not read"),
        (on_redis(pubsub_limit="pubsub 1048576 0 0"), "bursts", "wrong", "pubsub is 1048576 0 0"),
        (on_redis(pubsub_limit=None), "bursts", "unknown", "This user may not read"),
        (texts(broker_transport_options={"visibility_timeout": 60}), "visibility_timeout", "wrong", "up to 90 s"),
    ],
)
def test_what_is_wrong_is_found_and_the_rest_is_not_blamed(
    facts: BrokerFacts, check: str, level: str, words: str
) -> None:
    findings = found(facts)
    assert LEVELS[findings[check].tone] == level
    assert words in findings[check].text
    assert level == "unknown" or findings[check].then
    if facts.workers:
        assert {name for name, each in findings.items() if LEVELS[each.tone] != "ok"} <= {check, "bursts", "heartbeats"}


@pytest.mark.parametrize("former", ["monitor.capture", "celery_monitor.capture"])
def test_a_worker_with_the_former_line_of_capture_gets_the_new_line(former: str) -> None:
    given = {"shop.pay": {"rate_limit": "5/s"}, "*": {"Request": f"{former}:RequestOnReceive"}}
    finding = found(texts(task_annotations=given))["exact retries"]
    assert (LEVELS[finding.tone], finding.text[:9]) == ("wrong", "mail@shop")
    line = finding.then.partition("task_annotations = ")[2]
    assert ast.literal_eval(line) == {**given, "*": {"Request": "celery_monitor_capture:RequestOnReceive"}}


def test_an_unlimited_redis_throws_nothing_away_whatever_its_policy() -> None:
    assert LEVELS[found(on_redis(maxmemory=0, maxmemory_policy="allkeys-lru"))["memory of Redis"].tone] == "ok"


def test_the_record_knows_whose_events_are_off() -> None:
    findings = found(texts(worker_send_task_events=False), replace(RECORD, events_off=["mail@shop", "gone@shop"]))
    assert LEVELS[findings["task events"].tone] == "wrong"
    assert "mail@shop sends no task events" in findings["task events"].text
    assert "gone" not in findings["task events"].text


def test_long_tasks_behind_a_prefetch_are_a_note() -> None:
    assert LEVELS[found(GOOD, replace(RECORD, longest_run=700.0))["prefetch"].tone] == "note"


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        ({"refusal": "attempt to write a readonly database"}, "database", "readonly"),
        ({"version": (12, 9)}, "version of the database", "12.9 is too old"),
        ({"free_bytes": 1_000_000}, "disk", "0.0 GiB free"),
    ],
)
def test_a_database_in_trouble(change: dict[str, object], check: str, words: str) -> None:
    findings = {each.kind: each for each in judge_record(replace(RECORD, **change))}  # type: ignore[arg-type]
    assert LEVELS[findings[check].tone] == "wrong"
    assert words in findings[check].text
    assert findings[check].then


def test_what_an_application_has_that_cannot_be_used_is_said() -> None:
    application = Application(
        name="shop",
        conf={"accept_content": {"list": ["pickle", "yaml"]}, "task_send_sent_event": False},
        unusable={"broker_transport_options.on_connect": "it is the function print"},
        problems={"tasks": "its task modules cannot all be imported: ImportError: no drivers"},
        unread=(Unread(name="nightly", reason="it names no task"),),
        broker_read_url="redis://h",
        broker_write_url="redis://h",
    )
    found = {each.kind: each for each in judge_application(application, workers_answered=False)}
    assert {check: LEVELS[each.tone] for check, each in found.items()} == {
        "application": "wrong",
        "schedule": "wrong",
        "content": "wrong",
        "sent events": "wrong",
    }
    assert "Workers accept pickle, yaml but not json" in found["content"].text
    assert "The entry 'nightly' of beat_schedule cannot be read: it names no task." in found["schedule"].text
    texts = [each.text for each in judge_application(application, workers_answered=True)]
    assert "broker_transport_options.on_connect of shop cannot be used here: it is the function print." in texts
    assert not any("task_send_sent_event" in each for each in texts)  # the workers' own is judged


@pytest.mark.parametrize(
    ("facts", "level", "words"),
    [
        (None, "note", "Not configured"),
        (ResultFacts("rpc://", "nobody else can read them", None), "note", "rpc:// cannot be read: nobody else"),
        (ResultFacts("redis://h", None, "The result backend does not answer."), "wrong", "does not answer"),
        (ResultFacts("redis://h", None, None), "ok", "Results in redis://h can be read."),
    ],
)
def test_results_that_cannot_be_read_are_said(facts: ResultFacts | None, level: str, words: str) -> None:
    found = judge_results(facts)
    assert (LEVELS[found.tone], words in found.text) == (level, True)


@pytest.mark.parametrize("version", ["5.7.0", "5.10.1", "6.0", "dev"])
def test_a_celery_that_keeps_its_events_is_not_named(version: str) -> None:
    assert "reconnects" not in found(replace(GOOD, senders={"pay@shop": Sender(0, version)}))


def test_a_celery_that_drops_its_events_is_named_in_a_note() -> None:
    senders = {"pay@shop": Sender(0, "5.6.2"), "mail@shop": Sender(0, "5.7.0")}
    judged = found(replace(GOOD, senders=senders))["reconnects"]
    assert (LEVELS[judged.tone], judged.text.partition(":")[0]) == ("note", "pay@shop")
    assert "5.7.0 or newer" in judged.then


def test_a_worker_whose_events_are_refused_is_not_called_silent() -> None:
    judged = found(replace(GOOD, senders={"mail@shop": Sender(0, None)}, refused={"pay@shop": "x-pickle"}))
    assert LEVELS[judged["heartbeats"].tone] == "ok"
    assert LEVELS[judged["event serializer"].tone] == "wrong"
    assert "Events from pay@shop are refused: their format is x-pickle" in judged["event serializer"].text
    assert 'event_serializer = "json"' in judged["event serializer"].then


def test_signed_messages_without_a_key_here_and_the_other_way_round() -> None:
    signing = {**GOOD_CONF, "capture_key_file": "********"}
    assert "signed messages" not in found(GOOD)
    only_workers = found(replace(GOOD, conf={**GOOD.conf, "mail@shop": signing}))["signed messages"]
    assert (only_workers.tone, "this monitor has no key" in only_workers.text) == ("bad", True)
    assert "mail@shop" in only_workers.text
    only_here = found(replace(GOOD, capture_key=True))["signed messages"]
    assert (only_here.tone, "mail@shop" in only_here.text) == ("unknown", True)
    both = found(replace(GOOD, capture_key=True, conf=dict.fromkeys(GOOD.conf, signing)))["signed messages"]
    assert both.tone == "good"
