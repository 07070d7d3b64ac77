"""Workers that the tests of one file share: to start one costs more than most tests do with it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.workers import Worker, running_worker

Workers = Callable[..., Worker]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """``workers(url, pool="threads")``: the one of its kind. A test leaves it idle and as it was, or starts its own."""
    started: dict[str, Worker] = {}
    with ExitStack() as stack:

        def worker_of(url: str, **given: Any) -> Worker:
            kind = f"{url} {sorted(given.items())}"
            if kind not in started:
                started[kind] = stack.enter_context(running_worker(url, **given))
            return started[kind]

        yield worker_of
