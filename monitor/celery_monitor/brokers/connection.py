"""How to reach a broker: a bare Celery application per broker, what a transport can do, and connections for one
errand.

A connection has a limit for each step, is closed in every case, and raises BrokerUnavailable with what to do.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

from celery import Celery
from kombu import Connection
from kombu.exceptions import KombuError
from kombu.transport.base import Transport
from kombu.utils.url import parse_url

from celery_monitor.addresses import check_broker, masked, require_supported, transport_of, without_password
from celery_monitor.brokers.application import application_of
from celery_monitor.errors import BrokerUnavailable, SettingsError, Unsupported
from celery_monitor.records.application import TLS_SETTING, Application
from celery_monitor.settings import Broker, Settings

CONNECT_SECONDS = 5.0


def check_brokers(settings: Settings) -> None:
    """Raises SettingsError or Unsupported where a broker can never be used as it is given, and names no secret.

    What may come right by itself, such as a broker that is down, is not looked at.
    """
    for broker in settings.broker:
        try:
            check_broker(broker.url)
            _check_transport(broker.url)
            app_for(broker, settings)
        except (SettingsError, Unsupported) as error:
            raise type(error)(f"broker {broker.cluster}: {error.message}") from None


def _check_transport(url: str) -> None:
    transport = transport_of(url)
    try:
        _ = Connection(url).transport
    except (ImportError, RuntimeError) as error:  # qpid's raises the latter
        raise lacks_package(transport, error) from None
    except (TypeError, ValueError, KeyError):  # their texts may repeat the address
        raise SettingsError(
            f"{transport} has no option as it is written behind the ? of the address, or the value of one is wrong"
        ) from None


def lacks_package(transport: str, error: Exception) -> Unsupported:
    """A transport whose library is not installed; each has an extra of kombu by its name."""
    return Unsupported(
        f"{transport} needs a package that is not installed ({error}); run pip install 'kombu[{transport}]'",
        transport=transport,
    )


def app_for(broker: Broker, settings: Settings) -> Celery:
    """A Celery application for this broker, with the configuration of the user's if there is one.

    Cached. It has none of the user's tasks. Raises SettingsError.
    """
    options = json.dumps(settings.broker_options, sort_keys=True, default=str)
    return _app(broker.url, application_of(settings), options)


class _App(Celery):  # type: ignore[misc]  # Celery has no types
    """Connects to the addresses that it is given, whatever ``CELERY_BROKER_URL`` says in the environment."""

    read_url = ""
    write_url = ""

    def connection_for_read(self, url: str | None = None, **options: Any) -> Connection:
        return cast(Connection, self._connection(url or self.read_url, **options))

    def connection_for_write(self, url: str | None = None, **options: Any) -> Connection:
        return cast(Connection, self._connection(url or self.write_url, **options))


@lru_cache(maxsize=64)
def _app(url: str, application: Application | None, options: str) -> Celery:
    require_supported(url)
    app = _App("celery-monitor", set_as_current=False, fixups=[])
    app.read_url = app.write_url = url
    if application is not None:
        _configure(app, application, url)
    app.conf.broker_url = url
    app.conf.broker_connection_timeout = CONNECT_SECONDS
    app.conf.broker_transport_options = {**(app.conf.broker_transport_options or {}), **json.loads(options)}
    if transport_of(url) == "sentinel" and not app.conf.broker_transport_options.get("master_name"):
        raise SettingsError(
            f"{without_password(url)}: Sentinel needs the name of its master; "
            'give it as --broker-options \'{"master_name": "mymaster"}\''
        )
    return app


def _configure(app: _App, application: Application, url: str) -> None:
    if application.lacks_tls is not None and "ssl_" not in url:
        raise SettingsError(
            f"{TLS_SETTING} of {application.title} cannot be carried over: {application.lacks_tls}. Give its "
            "certificates in the address: --broker 'rediss://host/0?ssl_ca_certs=...&ssl_cert_reqs=required', or set "
            f"{TLS_SETTING} to a dictionary of file names"
        )
    app.conf.update(application.configuration)
    if url == application.broker_read_url:
        app.write_url = application.broker_write_url


def transport_options(app: Celery) -> Mapping[str, Any]:
    """kombu's transport options in force."""
    options: Mapping[str, Any] = app.conf.broker_transport_options
    return options


def parse_address(url: str) -> dict[str, Any]:
    """kombu's own reading of a URL: hostname, port, userid, password, virtual_host, ssl and further options."""
    try:
        parts: dict[str, Any] = parse_url(url)
    except (ValueError, KeyError):  # their texts may repeat the password
        raise SettingsError(f"broker {without_password(url)}: the address cannot be parsed") from None
    return parts


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn whatever a broker's library raises inside into BrokerUnavailable, with an address and an advice."""
    try:
        yield
    except _errors_at(url) as error:
        raise unavailable(url, error) from error


def broker_errors(transport: Transport) -> tuple[type[BaseException], ...]:
    """All that means that a broker cannot be used: it is not there, it was lost, or it refuses.

    Each transport has exceptions of its own, and a refusal is an error of the channel in some: a wrong password in
    py-amqp, a database that does not exist or a right that is missing in redis.
    """
    return (OSError, KombuError, *transport.connection_errors, *transport.channel_errors)


@lru_cache(maxsize=64)
def _errors_at(url: str) -> tuple[type[BaseException], ...]:
    try:
        return broker_errors(Connection(url).transport)
    except ImportError as error:  # the library of a transport need not be installed
        raise lacks_package(transport_of(url), error) from None


def unavailable(url: str, error: BaseException) -> BrokerUnavailable:
    """What a person reads when a broker does not answer: where, what, and what to do."""
    text = masked(" ".join(str(error).split()).rstrip(".")) or type(error).__name__
    return BrokerUnavailable(f"{without_password(url)}: {text}. {advice_on(text, GO_ON_TRYING)}")


def advice_on(text: str, otherwise: str) -> str:
    """What to do about an error that says this; ``otherwise`` where its words are not known."""
    lowered = text.lower()
    return next((advice for words, advice in ADVICE if any(word in lowered for word in words)), otherwise)


GO_ON_TRYING = "Check that the broker runs and that the address in --broker is right; we go on trying."


CHECK_HOST = "Check the virtual host in --broker, and the user's rights on it."
ADVICE = (
    (("exclusive use",), "Another receiver reads this queue; give each its own --node-id."),
    (("not_allowed",), CHECK_HOST),
    (("access_refused - access to",), "The user lacks a right in its virtual host (rabbitmqctl set_permissions)."),
    (
        (
            "wrongpass",
            "noauth",
            "invalid password",
            "login was refused",
            "access_refused",
            "username-password",
            "authentication",
        ),
        "Check the user name and password in --broker.",
    ),
    (
        ("noperm", "no permissions"),
        "The user lacks a right (ACL SETUSER): PSUBSCRIBE, PING and the channels of events to listen, "
        "all commands and keys of Celery to act.",
    ),
    (("db index",), "Check the number of the database in --broker."),
    (("vhost",), CHECK_HOST),
    (("certificate", "ssl", "tls"), "Check the ssl_ca_certs, ssl_certfile and ssl_keyfile given in the URL."),
    (("name or service", "getaddrinfo", "name resolution"), "Check the host name in --broker."),
)

AGAIN_SECONDS = 0.1  # after which a connection that could not be opened is tried once more
ANSWER_SECONDS = 15.0  # for one command of the transport; kombu polls Redis in shorter ones
LOOK = "Look whether it runs and can be reached from here."
CONFIRM_SECONDS = 10.0  # for RabbitMQ to say that it has a message; it is silent while its disk or memory is full
# Without these a broker that swallows packets would hold a click for minutes.
OPTIONS: dict[str, dict[str, object]] = {
    "redis": {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": ANSWER_SECONDS},
    "amqp": {"confirm_publish": True, "read_timeout": ANSWER_SECONDS, "write_timeout": ANSWER_SECONDS},
}


@contextmanager
def link(broker: Broker, settings: Settings, *, heartbeat: float = 0, **options: object) -> Iterator[Connection]:
    """A connection that is open. Raises BrokerUnavailable when it cannot be opened, is lost, or refuses what is asked.

    ``options`` are the transport's, beside those that every errand has.
    """
    connection = _connection(broker, settings, heartbeat, options)
    errors = broker_errors(connection.transport)
    try:
        try:
            # connect() would wait 2 s before it tries again, and the page of a task with it.
            connection.ensure_connection(max_retries=1, interval_start=AGAIN_SECONDS, reraise_as_library_errors=False)
        except errors as error:
            raise broker_unavailable(broker, f"cannot be used ({short_error(error)}); nothing was sent") from error
        try:
            yield connection
        except lost(connection) as error:
            raise broker_unavailable(
                broker, f"was lost ({short_error(error)}); what was under way may have arrived"
            ) from error
        except errors as error:
            raise broker_unavailable(broker, f"refuses what was asked ({short_error(error)})") from error
    finally:
        _close(connection, errors)


def lost(connection: Connection) -> tuple[type[BaseException], ...]:
    """The errors that mean that a connection is no more."""
    return (*connection.connection_errors, OSError, KombuError)


def short_error(error: BaseException) -> str:
    """What an error says, or its name where it says nothing, as a time-out does."""
    return " ".join(str(error).split()).removeprefix("(0, 0): ").rstrip(".") or type(error).__name__


def broker_unavailable(broker: Broker, what: str) -> BrokerUnavailable:
    """The address is shown without its password; what to do depends on what it says."""
    return BrokerUnavailable(
        f"The broker of {broker.cluster} at {without_password(broker.url)} {what}. {advice_on(what, LOOK)}",
        cluster=broker.cluster,
    )


def _connection(broker: Broker, settings: Settings, heartbeat: float, options: dict[str, object]) -> Connection:
    app = app_for(broker, settings)
    bare: Connection = app.connection_for_write(connect_timeout=CONNECT_SECONDS, heartbeat=heartbeat)
    defaults = OPTIONS.get(bare.transport.driver_type, {})
    bare.transport_options = {**defaults, **(bare.transport_options or {}), **options}
    return bare


def _close(connection: Connection, errors: tuple[type[BaseException], ...]) -> None:
    try:
        connection.release()
    except errors:
        connection.collect()  # the far side is gone: free what is ours
