import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from celery_monitor.brokers.connection import app_for
from celery_monitor.brokers.publish import Route, TaskCall, publisher
from celery_monitor.errors import NotTaken, TakenUnknown
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from tests.servers import RedisServer, running_redis


def make_call(queue: str, **given: Any) -> TaskCall:
    values: dict[str, Any] = {
        "id": "order-31",
        "name": "shop.charge",
        "args": [31, "EUR"],
        "kwargs": {"card": "visa"},
        "route": Route("", queue),
        **given,
    }
    return TaskCall(**values)


def make_settings(url: str) -> tuple[Broker, Settings]:
    broker = Broker("shop", url)
    return broker, Settings(broker=(broker,))


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that a test may break."""
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def amqp_queue(amqp_url: str) -> Iterator[Any]:
    """A function that declares queues, which are gone afterwards."""
    broker, settings = make_settings(amqp_url)
    with app_for(broker, settings).connection_for_write() as connection:
        channel = connection.channel()
        names = []

        def declare(**arguments: object) -> str:
            names.append(f"publish-{uuid4().hex[:8]}")
            channel.queue_declare(names[-1], durable=True, auto_delete=False, arguments=arguments)
            return names[-1]

        yield declare
        for name in names:
            channel.queue_delete(name)


def test_a_message_is_celery_s_own(redis_url: str) -> None:
    with publisher(*make_settings(redis_url)) as sender:
        sender.send(make_call("payments", root_id="order-1", parent_id="order-9"))
    with closing(redis.Redis.from_url(redis_url)) as client:
        message = json.loads(client.lrange("payments", 0, -1)[0])
    headers, properties = message["headers"], message["properties"]
    assert (headers["task"], headers["id"], headers["root_id"]) == ("shop.charge", "order-31", "order-1")
    assert (headers["parent_id"], headers["retries"], headers["eta"]) == ("order-9", 0, None)
    assert (headers["argsrepr"], headers["kwargsrepr"]) == ("[31, 'EUR']", "{'card': 'visa'}")
    assert (message["content-type"], properties["correlation_id"]) == ("application/json", "order-31")
    assert properties["delivery_info"] == {"exchange": "", "routing_key": "payments"}


def test_what_no_queue_takes_comes_back(amqp_url: str, amqp_queue: Any) -> None:
    with publisher(*make_settings(amqp_url)) as sender:
        with pytest.raises(NotTaken, match="has no queue nowhere"):
            sender.send(make_call("nowhere"))
        with pytest.raises(NotTaken, match="no exchange 'nowhere'"):
            sender.send(make_call("", route=Route("nowhere", "x")))
        sender.send(make_call(amqp_queue()))  # and the publisher goes on


def test_a_full_queue_is_reported(amqp_url: str, amqp_queue: Any) -> None:
    queue = amqp_queue(**{"x-max-length": 1, "x-overflow": "reject-publish"})
    with publisher(*make_settings(amqp_url)) as sender:
        sender.send(make_call(queue))
        with pytest.raises(NotTaken, match="refused"):
            sender.send(make_call(queue, id="order-32"))


def test_a_redis_without_memory_says_no(own_redis: RedisServer) -> None:
    url = f"redis://127.0.0.1:{own_redis.port}/3"
    with publisher(*make_settings(url)) as sender, closing(redis.Redis.from_url(url)) as client:
        client.config_set("maxmemory", "1")
        with pytest.raises(NotTaken, match="maxmemory"):
            sender.send(make_call("payments"))
        client.config_set("maxmemory", "0")
        sender.send(make_call("payments"))
        assert client.llen("payments") == 1


def test_a_broker_that_dies_under_a_message_leaves_it_unknown(
    own_redis: RedisServer,
) -> None:
    url = f"redis://127.0.0.1:{own_redis.port}/3"
    with publisher(*make_settings(url)) as sender:
        sender.send(make_call("payments"))
        own_redis.stop()
        with pytest.raises(TakenUnknown, match="may have arrived"):
            sender.send(make_call("payments", id="order-32"))
