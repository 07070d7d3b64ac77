import os
import signal
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from celery_monitor.brokers.connection import link
from celery_monitor.brokers.remote import Remote, Reply
from celery_monitor.errors import BrokerUnavailable, InvalidInput
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from tests.servers import running_redis
from tests.workers import running_worker, wait_for


def make_remote(url: str) -> Remote:
    broker = Broker("shop", url)
    return Remote(broker, Settings(broker=(broker,)))


def test_a_targeted_question_ends_with_its_answer(broker_url: str) -> None:
    with running_worker(broker_url) as worker:
        answers = make_remote(broker_url).ask("ping", {}, [worker.hostname], timeout=600.0)
        assert answers == {worker.hostname: Reply(worker.hostname, ok="pong")}


def test_a_broadcast_ends_with_the_last_expected_answer_or_with_silence(broker_url: str) -> None:
    with running_worker(broker_url) as one, running_worker(broker_url) as two:
        remote = make_remote(broker_url)
        replied: list[str] = []
        expected = [one.hostname, two.hostname]
        # Waiting for silence would outlast the test's own time limit.
        replies = remote.ask(
            "ping", timeout=600.0, on_reply=lambda reply: replied.append(reply.worker), expected=expected
        )
        assert sorted(replied) == sorted(replies) == sorted(expected)
        wait_for(lambda: sorted(remote.ask("ping", timeout=1.0)) == sorted(expected), what="both answers in time")


def test_who_does_not_answer_is_missing(broker_url: str) -> None:
    with running_worker(broker_url) as worker:
        remote = make_remote(broker_url)
        both = [worker.hostname, "gone@shop"]
        wait_for(lambda: list(remote.ask("ping", {}, both, 0.3)) == [worker.hostname], what="the answer in time")
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            assert remote.ask("ping", {}, [worker.hostname], 0.3) == {}
        finally:
            os.kill(worker.pid, signal.SIGCONT)
        assert list(remote.ask("ping", {}, [worker.hostname], 60.0)) == [worker.hostname]


def test_answers_are_values_or_errors(broker_url: str) -> None:
    with running_worker(broker_url) as worker:
        remote = make_remote(broker_url)
        refused = remote.ask("pool_grow", {"n": "many"}, [worker.hostname], 60.0)[worker.hostname]
        assert refused.ok is None
        assert "TypeError" in str(refused.error)
        unknown = remote.ask("hello_there", {}, [worker.hostname], 60.0)[worker.hostname]
        assert (unknown.ok, "hello_there" in str(unknown.error)) == (None, True)
        stats = remote.ask("stats", {}, [worker.hostname], 60.0)[worker.hostname].ok
        assert isinstance(stats, dict)
        assert stats["pid"] == worker.pid
        queues = remote.ask("active_queues", {}, [worker.hostname], 60.0)[worker.hostname].ok
        assert isinstance(queues, list)
        assert [queue["name"] for queue in queues] == [worker.queue]


def test_nothing_is_left_on_the_broker(redis_url: str) -> None:
    remote = make_remote(redis_url)
    assert remote.ask("ping", timeout=0.1) == {}
    client = redis.Redis.from_url(redis_url)
    try:
        assert [key for key in client.keys("*") if b"reply" in key] == []
    finally:
        client.close()


def test_the_command_that_ends_a_lone_worker_is_not_sent() -> None:
    with pytest.raises(InvalidInput, match="it ends a lone worker"):
        make_remote("redis://127.0.0.1:1/0").ask("election")


def test_nobody_asked_is_nobody_answering() -> None:
    assert make_remote("redis://127.0.0.1:1/0").ask("ping", {}, []) == {}


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_does_not_answer_is_reported_without_its_password(scheme: str) -> None:
    with pytest.raises(BrokerUnavailable, match="nothing was sent") as caught:
        make_remote(f"{scheme}://olga:s3cret@127.0.0.1:1/0").ask("ping")
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    ("login", "host", "advice"),
    [
        ("guest:s3cret", "", "Check the user name and password in --broker."),
        ("guest:guest", "no-such-host", "Check the virtual host in --broker, and the user's permissions on it."),
    ],
)
def test_rabbitmq_that_lets_nobody_in_is_reported_with_what_to_do(
    amqp_url: str, login: str, host: str, advice: str
) -> None:
    there = urlsplit(amqp_url)
    url = there._replace(netloc=f"{login}@{there.hostname}:{there.port}", path=f"/{host}").geturl()
    with pytest.raises(BrokerUnavailable, match="nothing was sent") as caught:
        make_remote(url).ask("ping")
    assert caught.value.message.endswith(advice)
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    ("login", "database", "advice"),
    [
        (":wr0ng-one@", 0, "Check the user name and password in --broker."),
        ("", 0, "Check the user name and password in --broker."),
        (":s3cret@", 9999, "Check the number of the database in --broker."),
        ("watcher:w4tch@", 0, "The user lacks permissions"),
    ],
)
def test_redis_that_lets_nobody_in_is_reported_with_what_to_do(
    tmp_path: Path, login: str, database: int, advice: str
) -> None:
    with running_redis(tmp_path, "--requirepass", "s3cret") as server:
        with closing(redis.Redis(port=server.port, password="s3cret")) as admin:
            admin.acl_setuser("watcher", enabled=True, passwords=["+w4tch"], commands=["+ping"])
        with pytest.raises(BrokerUnavailable) as caught:
            make_remote(f"redis://{login}127.0.0.1:{server.port}/{database}").ask("ping")
    assert advice in caught.value.message
    assert all(secret not in caught.value.message for secret in ("wr0ng", "s3cret", "w4tch"))


def test_what_a_broker_refuses_later_is_not_reported_as_a_lost_connection(amqp_url: str) -> None:
    broker = Broker("shop", amqp_url)
    with pytest.raises(BrokerUnavailable, match=r"refused .*NOT_FOUND"), link(broker, Settings()) as connection:
        connection.default_channel.queue_declare("never-declared", passive=True)


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")  # kombu's, for SQL
def test_without_broadcast_nobody_answers_who_is_not_named(tmp_path: Path) -> None:
    remote = make_remote(f"sqla+sqlite:///{tmp_path}/broker.db")
    assert remote.ask("ping", timeout=0.1) == {}
    assert remote.ask("ping", {}, ["gone@shop"], timeout=0.1) == {}


def test_a_connection_that_is_lost_is_not_reported_to_have_sent_nothing(redis_url: str) -> None:
    broker = Broker("shop", redis_url)
    with pytest.raises(BrokerUnavailable, match="may have arrived"), link(broker, Settings(broker=(broker,))):
        raise ConnectionResetError("by the peer")
