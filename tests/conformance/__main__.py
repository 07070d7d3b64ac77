"""Runs Celery's integration suite with the product and an independent recorder attached, and compares the two.

The suite comes from the package index, in the version that is installed, and is unpacked in the cache. Redis and
RabbitMQ are started for the run; --redis and --amqp name others, whose contents the suite changes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from celery import Celery

from tests.conformance.compare import Evidence, differences, lines
from tests.conformance.observed import Api, observe
from tests.conformance.recorder import END
from tests.conformance.replay import replay
from tests.conformance.report import Result, summary, write_document
from tests.conformance.suite import MODULES, Outcome, Suite, prepare, run
from tests.faults.dashboard import Dashboard, serving
from tests.servers import running_rabbitmq, running_redis
from tests.workers import ROOT, wait_for

SETTLE_SECONDS = 60
ALONE_SECONDS = 300
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "celery-monitor-conformance"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--broker", choices=("redis", "amqp"), action="append", help="only this one; default: both")
    parser.add_argument("--redis", metavar="URL", help="a Redis whose database 0 the suite may change")
    parser.add_argument("--amqp", metavar="URL", help="a RabbitMQ virtual host in which the queue celery is unused")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"where everything is kept; default: {CACHE}")
    parser.add_argument("--compare-only", action="store_true", help="compare what the last run left in the cache")
    parser.add_argument("--replay", action="store_true", help="store the events of the last run anew instead")
    parser.add_argument("tests", nargs="*", default=MODULES, help="tests of the suite; default: canvas and tasks")
    parser.add_argument("--document", action="store_true", help="put the outcome into docs/conformance.md")
    given = parser.parse_args()
    brokers = given.broker or ["redis", "amqp"]
    if given.replay:
        for each in brokers:
            replay(given.cache / "runs" / each)
    elif not given.compare_only:
        _check_servers(given, brokers)
        _run_all(given, brokers)
    results = [_result(given.cache / "runs" / each, each) for each in brokers]
    sys.stdout.write(summary(results) + "\n")
    if given.document:
        write_document(summary(results))
    sys.exit(any(result.unexplained or result.stale for result in results))


def _check_servers(given: argparse.Namespace, brokers: list[str]) -> None:
    """Ends with a line that says what to install or to name."""
    if not given.redis and not shutil.which("redis-server"):
        sys.exit("There is no redis-server on PATH: install it, or name a Redis with --redis.")
    if "amqp" in brokers and not given.amqp and not shutil.which("rabbitmq-server"):
        sys.exit("There is no rabbitmq-server on PATH: install it, or name a RabbitMQ with --amqp.")


def _run_all(given: argparse.Namespace, brokers: list[str]) -> None:
    """At the same time, as the suite mostly waits; one after the other where they would share a Redis."""
    suite = prepare(given.cache)
    with ThreadPoolExecutor(1 if given.redis else len(brokers)) as threads:
        for ended in [threads.submit(_run, given, suite, each) for each in brokers]:
            ended.result()


def _run(given: argparse.Namespace, suite: Suite, broker: str) -> None:
    directory = given.cache / "runs" / broker
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with ExitStack() as stack:
        redis_url = stack.enter_context(_redis(given.redis))
        broker_url = stack.enter_context(_rabbitmq(given.amqp)) if broker == "amqp" else redis_url
        attached(suite, directory, broker_url, redis_url, given.tests)


@contextmanager
def _redis(url: str | None) -> Iterator[str]:
    if url:
        yield url
        return
    with TemporaryDirectory(prefix="conformance-") as directory, running_redis(Path(directory)) as server:
        yield f"redis://127.0.0.1:{server.port}/0"


@contextmanager
def _rabbitmq(url: str | None) -> Iterator[str]:
    if url:
        yield url
        return
    with TemporaryDirectory(prefix="conformance-") as directory, running_rabbitmq(Path(directory)) as server:
        yield f"amqp://guest:guest@127.0.0.1:{server.port}//"


def attached(suite: Suite, directory: Path, broker_url: str, redis_url: str, tests: Sequence[str]) -> None:
    """One run of the suite; all accounts of it are left in ``directory``. Tests that fail run again, on their own."""
    with recording(broker_url, directory / "recorded.ndjson") as recorder, serving(broker_url, directory) as dashboard:
        wait_for(dashboard.connected, what="the connection of the receiver")
        began = time.time()
        ended = run(suite, directory, broker_url, redis_url, tests)
        seconds = time.time() - began
        _end_recording(broker_url, recorder)
        _observe(dashboard, directory)
    failed = [each.test for each in ended if each.result == "failed"]
    alone = directory / "alone"
    alone.mkdir()
    again = run(suite, alone, broker_url, redis_url, failed, ALONE_SECONDS) if failed else []
    facts = {"seconds": seconds, "began": began, "tests": [asdict(each) for each in ended]}
    facts["alone"] = [asdict(each) for each in again]
    (directory / "suite.json").write_text(json.dumps(facts), encoding="utf-8")


@contextmanager
def recording(broker_url: str, file: Path) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "tests.conformance.recorder", broker_url, str(file)]
    recorder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert recorder.stdout is not None
        if recorder.stdout.readline().strip() != "ready":
            raise RuntimeError("the recorder could not subscribe")
        yield recorder
    finally:
        recorder.kill()
        recorder.communicate()


def _end_recording(broker_url: str, recorder: "subprocess.Popen[str]") -> None:
    """All that the suite sent was sent before."""
    with (
        Celery(broker=broker_url) as app,
        app.connection_for_write() as connection,
        app.events.Dispatcher(connection, hostname="conformance@localhost") as dispatcher,
    ):
        dispatcher.send(END)
    recorder.wait(SETTLE_SECONDS)


def _observe(dashboard: Dashboard, directory: Path) -> None:
    """What is shown once as many events are counted as the recorder has; fewer are a difference, and no error."""
    arrived = len((directory / "recorded.ndjson").read_text(encoding="utf-8").splitlines())
    with suppress(TimeoutError):
        wait_for(lambda: dashboard.health()["events_total"] >= arrived, SETTLE_SECONDS)
    (directory / "observed.json").write_text(json.dumps(observe(Api(dashboard.url))), encoding="utf-8")


def _result(directory: Path, broker: str) -> Result:
    texts = [(directory / f"{name}.ndjson").read_text(encoding="utf-8") for name in ("sent", "recorded")]
    observed = json.loads((directory / "observed.json").read_text(encoding="utf-8"))
    evidence = Evidence(lines(texts[0]), lines(texts[1]), observed)
    facts = json.loads((directory / "suite.json").read_text(encoding="utf-8"))
    tests, alone = ([Outcome(**each) for each in facts[key]] for key in ("tests", "alone"))
    return Result(broker, evidence, differences(evidence), tests, alone, facts["began"], facts["seconds"])


if __name__ == "__main__":
    main()
