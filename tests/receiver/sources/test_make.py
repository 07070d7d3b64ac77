"""Which source a broker gets, without anybody asking for it."""

import pytest

from celery_monitor.errors import SettingsError, Unsupported
from celery_monitor.receiver.sources.make import make_source
from celery_monitor.settings import Broker, Settings


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("redis://localhost:6390/3", {}, "redis"),
        ("rediss://:pw@localhost:6390/3?ssl_cert_reqs=none", {}, "redis"),
        ("redis+socket:///run/redis.sock?virtual_host=3", {}, "redis"),
        ("redis://localhost/3", {"global_keyprefix": "shop:", "visibility_timeout": 7200}, "redis"),
        ("redis://localhost/3", {"credential_provider": "shop.Provider"}, "kombu"),
        ("redis://localhost/3;redis://other/3", {}, "kombu"),
        ("sentinel://localhost:26379/3", {"master_name": "shop"}, "kombu"),
        ("filesystem://", {}, "kombu"),
        ("amqp://localhost/shop", {}, "amqp"),
        ("amqps://localhost/shop", {}, "amqp"),
        ("pyamqp://localhost/shop", {}, "amqp"),
    ],
)
def test_the_fastest_source_that_serves(url: str, options: dict[str, object], expected: str) -> None:
    assert make_source(Broker("shop", url), Settings(broker_options=options)).name == expected


@pytest.mark.parametrize("url", ["sqs://", "sqla+sqlite:///x.db", "sqlalchemy+sqlite:///x.db", "kafka://localhost"])
def test_a_transport_without_events_says_what_to_use_instead(url: str) -> None:
    with pytest.raises(Unsupported, match="Use a broker that carries events"):
        make_source(Broker("shop", url), Settings())


def test_an_unknown_transport_lists_what_is_known() -> None:
    with pytest.raises(SettingsError, match=r"'carrier-pigeon'.*known are.*redis"):
        make_source(Broker("shop", "carrier-pigeon://roof"), Settings())


def test_a_source_can_be_forced() -> None:
    assert make_source(Broker("shop", "redis://localhost/3"), Settings(source="kombu")).name == "kombu"
    assert make_source(Broker("shop", "redis://localhost/3"), Settings(source="redis")).name == "redis"
    assert make_source(Broker("shop", "amqp://localhost/3"), Settings(source="amqp")).name == "amqp"


@pytest.mark.parametrize(
    ("url", "source"), [("redis://localhost/3", "amqp"), ("amqp://:s3cret@h/", "redis"), ("filesystem://", "amqp")]
)
def test_a_forced_source_that_cannot_serve_is_refused(url: str, source: str) -> None:
    with pytest.raises(Unsupported, match="take auto or kombu") as caught:
        make_source(Broker("shop", url), Settings(source=source))
    assert "s3cret" not in caught.value.message
