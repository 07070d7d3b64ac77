"""What the result backend has of a task's end, and what it means that it has none."""

import pytest

from celery_monitor.brokers.results import ResultReader, read_result
from celery_monitor.records.application import Application
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker


def test_result_backend_that_is_away_says_nothing_and_one_that_is_not_given_knows_nothing() -> None:
    broker = Broker("shop", "redis://127.0.0.1:1/0")
    assert ResultReader(broker, Settings()).of(["a"]) == {}
    assert ResultReader(broker, Settings(result_backend=(broker,))).of(["a"]) is None


def test_backend_that_is_not_read_is_named_in_the_evidence() -> None:
    broker = Broker("shop", "redis://127.0.0.1:1/0")
    application = Application(
        conf={"result_backend": "rpc://"}, broker_read_url=broker.url, broker_write_url=broker.url
    )
    ends = ResultReader(broker, Settings(application=application))
    assert ends.of(["a"]) == {}
    assert ends.absence == "its result backend (rpc://) cannot be read from here and may have a result"
    assert ResultReader(broker, Settings()).absence == "no result backend has a result"


@pytest.mark.parametrize(
    "payload",
    [None, b"\x80\x04}q\x00.", b"[1]", b'{"status": "PENDING"}', b'{"status": ["SUCCESS"]}', b'"SUCCESS"', b"\xff"],
)
def test_what_is_no_json_or_no_end_says_nothing(payload: bytes | None) -> None:
    assert read_result(payload) is None


def test_an_odd_failure_has_no_exception_rather_than_a_wrong_one() -> None:
    end = read_result(b'{"status": "FAILURE", "result": "no dict", "traceback": 7, "date_done": "soon"}')
    assert end is not None
    assert (end.event, end.exception, end.traceback, end.done) == ("task-failed", None, None, None)
