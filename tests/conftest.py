"""Real services for the tests: each answers at its address, or the test is skipped with the reason.

With ``CI=true`` a skip is a failure. ``pytest -n auto`` runs four processes, since most tests wait for workers: the
first takes the services that are there, the others start their own, as what a test finds in a broker is what it put
there.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, settings

from tests.databases import empty_record, empty_schema, statements_of_tables
from tests.servers import SqsServer, free_port, running_rabbitmq, running_redis, running_sqs

FIRST = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0"
POSTGRES_URL = os.environ.get("TEST_POSTGRES_URL", "postgresql://postgres@127.0.0.1:5432/test").replace("+psycopg", "")
if FIRST:
    REDIS_URL = os.environ.get("TEST_REDIS_URL", "redis://127.0.0.1:6379/15")
    AMQP_URL = os.environ.get("TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")
else:
    REDIS_URL = f"redis://127.0.0.1:{free_port()}/15"
    AMQP_URL = f"amqp://guest:guest@127.0.0.1:{free_port()}//"
    os.environ["TEST_REDIS_URL"] = REDIS_URL  # tests/apps/extended.py

AWS_VARIABLE = "TEST_AWS_SQS_URL"  # such as sqs://, with credentials and region in AWS's own variables
AWS_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}

SLOW = {"faults", "installation"}  # folders whose tests wait for timeouts, or make environments

# Examples of a generated test, by ring: pytest --hypothesis-profile=fast
for ring, examples in {"fast": 10, "test": 100, "all": 1000}.items():
    settings.register_profile(
        ring,
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile("test")


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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name in SLOW:
            item.add_marker(pytest.mark.slow)
    if not os.environ.get(
        AWS_VARIABLE
    ):  # it costs money: without the variable it is no test of ours, not a skipped one
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("aws")])
        items[:] = [item for item in items if not item.get_closest_marker("aws")]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    return 4 if shutil.which("redis-server") and shutil.which("rabbitmq-server") else 1


@pytest.fixture(scope="session")
def redis_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the Redis of this process."""
    with ExitStack() as stack:
        if not FIRST:
            stack.enter_context(running_redis(tmp_path_factory.mktemp("redis"), port=urlsplit(REDIS_URL).port))
        _needs(REDIS_URL, 6379)
        yield REDIS_URL


@pytest.fixture(scope="session")
def rabbitmq_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the RabbitMQ of this process."""
    with ExitStack() as stack:
        if not FIRST:
            stack.enter_context(running_rabbitmq(tmp_path_factory.mktemp("rabbitmq"), urlsplit(AMQP_URL).port))
        _needs(AMQP_URL, 5672)
        yield AMQP_URL


@pytest.fixture(scope="session")
def postgres_service() -> Iterator[str]:
    """The address of a PostgreSQL database of this process."""
    _needs(POSTGRES_URL, 5432)
    if FIRST:
        yield POSTGRES_URL
        return
    psycopg = pytest.importorskip("psycopg")
    name = f"test_{uuid4().hex}"
    with psycopg.connect(POSTGRES_URL, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield urlsplit(POSTGRES_URL)._replace(path=f"/{name}").geturl()
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_url(redis_service: str) -> Iterator[str]:
    """A Redis database that is empty before and after the test."""
    with closing(redis.Redis.from_url(redis_service)) as client:
        client.flushdb()
        yield redis_service
        client.flushdb()


@pytest.fixture(scope="session")
def sqs_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SqsServer]:
    """The SQS of this process."""
    with running_sqs(tmp_path_factory.mktemp("sqs")) as server:
        yield server


@pytest.fixture
def sqs_url(sqs_service: SqsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An SQS that is empty before and after the test, whatever account this machine has."""
    for name, value in AWS_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    sqs_service.reset()
    yield sqs_service.url
    sqs_service.reset()


@pytest.fixture
def amqp_url(rabbitmq_service: str) -> str:
    """A virtual host of RabbitMQ. It is shared: name your queues for yourself and delete them."""
    return rabbitmq_service


@pytest.fixture(params=["redis", "amqp"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """The address of each broker in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def postgres_url(postgres_service: str) -> Iterator[str]:
    """An empty PostgreSQL schema of its own."""
    with empty_schema(postgres_service) as url:
        yield url


@pytest.fixture(scope="session")
def _postgres_tables(postgres_service: str) -> str:
    with empty_schema(postgres_service) as url:
        return statements_of_tables(url)


@pytest.fixture
def postgres_record_url(postgres_url: str, _postgres_tables: str) -> str:
    """An empty record in PostgreSQL, with its tables."""
    psycopg = pytest.importorskip("psycopg")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(_postgres_tables)
    return postgres_url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """An empty record in a file, with its tables."""
    return empty_record(tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """An empty record in a database of each kind in turn."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_record_url")
    return url
