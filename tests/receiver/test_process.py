"""What runs beside the receiver goes on after an error that nobody foresaw."""

import logging
import threading

import pytest

from celery_monitor.receiver import helper_failures
from celery_monitor.receiver.helper_failures import HelperFailures
from celery_monitor.receiver.process import start_beside
from tests.workers import wait_for


def test_what_runs_beside_the_receiver_starts_again_after_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(helper_failures, "FIRST_PAUSE_SECONDS", 0.01)
    failing = HelperFailures()
    began: list[int] = []

    def stumble(stop: threading.Event) -> None:
        began.append(len(began))
        if len(began) < 3:
            raise ValueError("a name of 300 bytes")
        stop.wait()

    stop = threading.Event()
    with caplog.at_level(logging.ERROR):
        thread = start_beside("queue sampler", stumble, stop, failing)
        wait_for(lambda: len(began) == 3)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert "a name of 300 bytes" in caplog.text
    (found,) = failing.failing
    assert (found.name, found.error, found.failures) == ("queue sampler", "ValueError: a name of 300 bytes", 2)
    assert failing.pause("queue sampler") == 0.02  # ever longer
    failing.succeeded("queue sampler")
    assert failing.failing == ()
