"""Real services for the tests: each answers at its address, or the test is skipped with the reason.

With ``CI=true`` a skip is a failure.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis

REDIS_URL = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/15")
AMQP_URL = os.environ.get("TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")
POSTGRES_URL = os.environ.get("TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/test")


def _needs(url: str, standard_port: int) -> None:
    parts = urlsplit(url)
    address = (parts.hostname or "127.0.0.1", parts.port or standard_port)
    try:
        socket.create_connection(address, timeout=2).close()
    except OSError as error:
        reason = f"nothing answers at {address[0]}:{address[1]} ({error.strerror})"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def redis_url() -> Iterator[str]:
    """A Redis database that is empty before and after the test."""
    _needs(REDIS_URL, 6379)
    with closing(redis.Redis.from_url(REDIS_URL)) as client:
        client.flushdb()
        yield REDIS_URL
        client.flushdb()


@pytest.fixture
def amqp_url() -> str:
    """A virtual host of RabbitMQ. It is shared: name your queues for yourself and delete them."""
    _needs(AMQP_URL, 5672)
    return AMQP_URL


@pytest.fixture(params=["redis", "amqp"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """The address of each broker in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def postgres_url() -> Iterator[str]:
    """An empty PostgreSQL schema of its own."""
    _needs(POSTGRES_URL, 5432)
    psycopg = pytest.importorskip("psycopg")
    schema = f"test_{uuid4().hex}"
    with psycopg.connect(POSTGRES_URL, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        yield f"{POSTGRES_URL}?options=-csearch_path%3D{schema}"
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/record.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
