"""No secret of the corpus is shown or stored, whichever door it comes through."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from celery_monitor.addresses import masked, masked_value, without_password
from celery_monitor.brokers.beat import RedBeatContext, arguments_of_json, entries_of_app, entries_of_conf, read_entry
from celery_monitor.brokers.queues import describe_payload
from celery_monitor.brokers.read_application import schedule_of
from celery_monitor.control import inspect
from celery_monitor.core.arguments import known, without_secrets
from celery_monitor.core.sanitize import Redactor
from celery_monitor.errors import MonitorError
from celery_monitor.records.application import AppEntry, Application
from celery_monitor.records.receiver import Delivery
from celery_monitor.records.worker import Worker, WorkerStatus
from celery_monitor.settings import REDACTED_KEYS, Settings
from celery_monitor.settings.values import parse_broker, quoted
from celery_monitor.store.engine import open_store
from celery_monitor.store.writer import Writer
from tests.attacks.secrets import ADDRESSES, BESIDE, SECRET, SECRETS
from tests.databases import empty_record
from tests.factories import NOW, make_event, make_id

redactor = Redactor(REDACTED_KEYS)
TEXTS = [each.text for each in SECRETS]


def test_the_corpus_has_200_secrets_and_each_is_a_suspect() -> None:
    assert len(set(TEXTS)) >= 200
    assert [text for text in TEXTS if SECRET not in text or not redactor.suspects(text)] == []


def test_a_masked_text_keeps_what_stands_beside_and_stays_as_it_is() -> None:
    shown = [redactor.text(text) for text in TEXTS]
    assert [text for text in shown if SECRET in text or redactor.text(text) != text] == []
    kept = sum(BESIDE in text for text in shown)
    assert kept >= 0.8 * sum(BESIDE in text for text in TEXTS)


def test_no_event_stores_one(tmp_path: Path) -> None:
    url = empty_record(tmp_path)
    ends = (("task-failed", "exception"), ("task-failed", "traceback"), ("task-succeeded", "result"))
    events = []
    for number, text in enumerate(TEXTS, 1):
        task = make_id(number)
        events.append(make_event("task-received", uuid=task, name="shop.pay", args=text, kwargs=text))
        kind, field = ends[number % 3]
        events.append(make_event(kind, uuid=task, **{field: text}))
    with closing(open_store(url)) as store:
        written = Writer(store, "shop", Settings()).write([Delivery(events=events, arrived=NOW + 100)])
    assert written.events == len(events)
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert any(BESIDE.encode() in each for each in files)
    assert not any(SECRET.encode() in each for each in files)


def test_no_schedule_shows_one() -> None:
    given = {f"e{number}": {"task": "t", "schedule": 1, "args": [each.value]} for number, each in enumerate(SECRETS)}
    conf = entries_of_conf({"beat_schedule": given}, "shop", redactor, NOW)
    read, _ = schedule_of(given)
    application = Application(
        broker_read_url="redis://h", broker_write_url="redis://h", entries=msgspec.convert(read, tuple[AppEntry, ...])
    )
    own = entries_of_app(application, "shop", redactor, NOW)
    context = RedBeatContext("shop", redactor, "UTC", NOW)
    definitions = [json.dumps({"name": "n", "schedule": None, **each}).encode() for each in given.values()]
    redbeat = [read_entry((each, b"{}"), 5.0, context) for each in definitions]
    django = [arguments_of_json(json.dumps([each.value]), "{}", redactor) for each in SECRETS]
    for found in (conf.entries, own.entries, redbeat, django):
        assert len(found) == len(SECRETS)
        assert [each for each in found if SECRET in repr(each)] == []


def test_no_text_of_a_schedule_of_an_own_kind_shows_one() -> None:
    context = RedBeatContext("shop", redactor, "UTC", NOW)
    for each in SECRETS:
        own = {"__type__": "own", **(each.value if isinstance(each.value, dict) else {"note": each.text})}
        definition = json.dumps({"name": "n", "task": "t", "schedule": own}).encode()
        conf = {"beat_schedule": {"n": {"task": "t", "schedule": each.text}}}
        shown = [read_entry((definition, b"{}"), 5.0, context), *entries_of_conf(conf, "shop", redactor, NOW).entries]
        assert len(shown) == 2
        assert SECRET not in repr(shown), each


def test_no_inspected_worker_shows_one() -> None:
    worker = Worker(cluster="shop", hostname="w", status=WorkerStatus.ONLINE)
    for each in SECRETS:
        table = each.value if isinstance(each.value, dict) else {"note": each.value}
        request = {"id": "1", "name": "t", "args": each.text, "kwargs": each.value}
        answers: dict[str, object] = {
            "conf": {**table, "deep": table}, "stats": table, "active": [request], "scheduled": [{"request": request}]
        }  # fmt: skip
        assert SECRET not in repr(inspect._inspected(answers, {}, worker, redactor)), each


def test_no_waiting_message_and_no_captured_one_shows_one() -> None:
    for each in SECRETS:
        for headers in ({}, {"argsrepr": each.text, "kwargsrepr": each.text}):
            body = json.dumps([[each.value], {"more": each.value}, {}])
            payload = {"body": body, "content-type": "application/json", "headers": headers, "properties": {}}
            assert SECRET not in repr(describe_payload(json.dumps(payload).encode(), redactor)), each
            payload["content-type"] = "application/x-python-serialize"
            assert SECRET not in repr(describe_payload(json.dumps(payload).encode(), redactor)), each
        shown = without_secrets(known([each.value], {}, "exact", "capture", ""), redactor)
        assert SECRET not in f"{shown.args}{shown.kwargs}{shown.args_value}", each


@pytest.mark.parametrize("template", [*ADDRESSES, "redis:{}@h", "redis//:{}@h", ":{}@h/0", "redis://:a {}'\"@h"])
def test_no_error_about_an_address_shows_its_password(template: str) -> None:
    url = template.format(SECRET)
    said = [masked_value(url), quoted(url), masked_value(f"shop={url}"), without_password(url)]
    try:
        parse_broker(url)
    except MonitorError as error:
        said.append(error.message)
    assert [each for each in said if SECRET in each] == []


IN_LOGS = [
    *(url.format(SECRET) for url in ADDRESSES),
    *(text for text in TEXTS if f"={SECRET}" in text or f"'{SECRET}'" in text or f'"{SECRET}"' in text),
    f"Authorization: Basic {SECRET}",
    f"Cookie: a={SECRET}; b={SECRET}",
]


def test_no_log_line_and_no_traceback_shows_one(tmp_path: Path) -> None:
    assert len(IN_LOGS) > 100
    (tmp_path / "program.py").write_text(
        "import json, logging, sys\n"
        "from celery_monitor.supervise import configure_logging\n"
        "configure_logging('info')\n"
        "for text in json.load(open('texts.json')):\n"
        "    logging.warning('%s', text)\n"
        "    try: raise ValueError(text)\n"
        "    except ValueError: logging.exception('it failed')\n"
        "raise ValueError(text)\n",
        encoding="utf-8",
    )
    (tmp_path / "texts.json").write_text(json.dumps(IN_LOGS), encoding="utf-8")
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.count("Traceback") == len(IN_LOGS) + 1
    assert [line for line in done.stderr.splitlines() if SECRET in line] == []


@pytest.mark.parametrize(
    "arguments", [["serve"], ["serve", "--port"], ["serve", "--broker"], ["doctor"], ["nothing"], []]
)
def test_no_error_of_the_command_line_shows_a_password(arguments: list[str], tmp_path: Path) -> None:
    for template in ("redis:/:{}@h/0", "redis//:{}@h", "redis:/:a {}'@h"):
        command = [sys.executable, "-m", "celery_monitor", *arguments, template.format(SECRET)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("Error: ")
        assert SECRET not in done.stderr + done.stdout


def test_masked_keeps_our_own_messages() -> None:
    for text in (
        "basic_auth: write user:role:password",
        "oidc_client_secret: the file cannot be read",
        "password authentication failed for user 'ann'",
        "orders@vm is down",
    ):
        assert masked(text) == text
