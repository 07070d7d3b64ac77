"""Addresses, the application behind them, and what a person reads when a broker does not answer."""

import pytest

from celery_monitor.addresses import require_supported, transport_of, without_password
from celery_monitor.brokers.connection import RETRY_SECONDS, app_for, explained, link, transport_options
from celery_monitor.errors import BrokerUnavailable, SettingsError
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker, parse_broker_options
from tests.servers import free_port

BROKER = Broker("shop", "redis://localhost:6399/9")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:s3cret@shop:6399/9", "redis://:**@shop:6399/9"),
        ("amqp://ann:s3cret@shop//prod", "amqp://ann:**@shop//prod"),
        ("rediss://ann:s3cret@shop/1?ssl_keyfile=s3cret", "rediss://ann:**@shop/1"),
        ("amqp://a:s3cret@h1//;amqp://b:s3cret@h2//", "amqp://a:**@h1//;amqp://b:**@h2//"),
        ("redis://:s3cret@shop:port/9", "redis://:**@**"),
        ("redis://:s3c/ret@shop/9", None),
        ("s3cret", "(no URL)"),
    ],
)
def test_no_address_shows_a_password(url: str, shown: str | None) -> None:
    text = without_password(url)
    assert "s3c" not in text
    assert shown is None or text == shown


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        ("redis://h", "redis"),
        ("rediss://h", "redis"),
        ("redis+socket:///run/r.sock", "redis"),
        ("sentinel://h;sentinel://i", "sentinel"),
        ("amqps://h", "amqp"),
        ("pyamqp://h", "amqp"),
        ("filesystem://", "filesystem"),
    ],
)
def test_transport(url: str, transport: str) -> None:
    assert transport_of(url) == require_supported(url) == transport


def test_the_app_has_the_brokers_address_and_options_and_is_made_once() -> None:
    settings = Settings(broker_options={"global_keyprefix": "shop:"})
    app = app_for(BROKER, settings)
    assert app.conf.broker_url == BROKER.url
    assert transport_options(app)["global_keyprefix"] == "shop:"
    assert app_for(BROKER, settings) is app
    assert app_for(Broker("mail", "redis://localhost:6399/8"), settings) is not app


def test_the_users_configuration_is_taken_over_but_not_its_broker() -> None:
    settings = Settings(app="tests.apps.configured", broker_options={"sep": ":"})
    app = app_for(BROKER, settings)
    assert app.conf.broker_url == BROKER.url
    assert app.conf.event_exchange == "shopev"
    assert app.conf.task_default_queue == "shop-default"
    assert dict(transport_options(app)) == {"global_keyprefix": "conf:", "sep": ":"}


def test_socket_options_are_numbers_though_json_has_texts() -> None:
    options = parse_broker_options('{"socket_keepalive_options": {"4": 60}}')
    found = app_for(Broker("shop", "redis://localhost/5"), Settings(broker_options=options)).conf
    assert found.broker_transport_options["socket_keepalive_options"] == {4: 60}
    with pytest.raises(SettingsError, match="socket_keepalive_options"):
        parse_broker_options('{"socket_keepalive_options": {"TCP_KEEPIDLE": 60}}')


@pytest.mark.parametrize("name", ["tests.apps.nowhere", "tests.apps.configured:nothing"])
def test_an_app_that_cannot_be_loaded_is_reported(name: str) -> None:
    with pytest.raises(SettingsError, match="as for celery -A"):
        app_for(BROKER, Settings(app=name))


def test_sentinel_without_the_name_of_its_master_is_reported() -> None:
    broker = Broker("shop", "sentinel://:s3cret@localhost:26399/9")
    with pytest.raises(SettingsError, match=r"--broker-options '\{\"master_name\"") as caught:
        app_for(broker, Settings())
    assert "s3cret" not in caught.value.message
    assert app_for(broker, Settings(broker_options={"master_name": "orders"})).conf.broker_url == broker.url


def test_an_error_of_the_brokers_library_gets_an_address_and_an_advice() -> None:
    expected = r"^redis://localhost:6399/9: boom\. Check that the broker runs"
    with pytest.raises(BrokerUnavailable, match=expected), explained(BROKER.url):
        raise ConnectionError("boom.")


def test_an_error_of_ours_is_not_disguised() -> None:
    with pytest.raises(ZeroDivisionError), explained(BROKER.url):
        raise ZeroDivisionError


@pytest.mark.parametrize("address", ["redis://127.0.0.1:{}/0", "amqp://127.0.0.1:{}//"])
def test_a_page_does_not_wait_for_a_broker_that_is_down(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", slept.append)
    with pytest.raises(BrokerUnavailable), link(Broker("shop", address.format(free_port())), Settings()):
        pass
    assert sum(slept) == RETRY_SECONDS
