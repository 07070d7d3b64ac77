"""Sources of events as the tests of this folder make and connect them."""

from collections.abc import Callable, Iterator
from contextlib import closing
from uuid import uuid4

import amqp
import pytest
from amqp import Connection as AmqpConnection
from kombu.utils.url import parse_url

from celery_monitor.receiver.sources import make_source
from celery_monitor.receiver.sources.amqp import witness_name
from celery_monitor.receiver.sources.base import Source
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from tests.conftest import AMQP_URL

MakeSource = Callable[..., Source]


@pytest.fixture
def source_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeSource]:
    """``source_of(url, source="kombu", ...)``: a connected source under a node id of its own."""
    made: list[tuple[Source, str]] = []

    def make(url: str, *, connect: bool = True, **settings: object) -> Source:
        node_id = str(settings.setdefault("node_id", f"test-{uuid4().hex[:10]}"))
        settings.setdefault("spool_dir", str(tmp_path_factory.mktemp("spool")))
        source = make_source(Broker("shop", url), Settings(**settings))  # type: ignore[arg-type]
        made.append((source, node_id))
        if connect:
            source.connect()
        return source

    yield make
    for source, node_id in made:
        source.close()
        if source.keeps_events:
            delete_queue(f"celeryev.{node_id}")


def delete_queue(name: str, url: str = AMQP_URL) -> None:
    with amqp_connection(url) as connection:
        try:
            connection.channel().queue_delete(name)
            connection.channel().queue_delete(witness_name(name))
        except amqp.NotFound:
            return


def amqp_connection(url: str) -> closing[AmqpConnection]:
    """py-amqp's own connection, for what a test must do to the broker."""
    parts = parse_url(url)
    connection = amqp.Connection(
        f"{parts['hostname']}:{parts['port'] or 5672}",
        userid=parts["userid"] or "guest",
        password=parts["password"] or "guest",
        virtual_host=parts["virtual_host"] or "/",
        connect_timeout=60,
    )
    connection.connect()
    return closing(connection)
