"""Connections to a broker: a bare Celery application per broker, and connections that are opened for one operation.

Every step of a connection has a time limit, it is always closed, and its errors become BrokerUnavailable with advice.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Any, cast

from celery import Celery
from kombu import Connection
from kombu.exceptions import KombuError
from kombu.transport.base import Transport
from kombu.utils.url import parse_url

from celery_monitor.addresses import check_broker, masked, require_supported, transport_of, without_password
from celery_monitor.brokers.application import broker_of, read_once
from celery_monitor.errors import BrokerUnavailable, SettingsError, Unsupported
from celery_monitor.records.application import TLS_SETTING, Application
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker

CONNECT_SECONDS = 5.0
log = logging.getLogger(__name__)


def application_of(settings: Settings) -> Application | None:
    """The application that the settings name; read once. Raises SettingsError."""
    if settings.application is not None or settings.app is None:
        return settings.application
    return read_once(settings.app)


def with_application(settings: Settings) -> Settings:
    """Settings with their application, and with its broker if none is given. Raises SettingsError."""
    application = application_of(settings)
    if application is None:
        return settings
    for name, why in application.unusable.items():
        log.warning("%s of %s cannot be used here: %s", name, application.title, why)
    for why in application.problems.values():
        log.warning("%s: %s", application.title, why)
    broker = settings.broker or (broker_of(application),)
    return replace(settings, application=application, broker=broker)


def applies_to(application: Application, broker: Broker, settings: Settings) -> bool:
    """Whether the application belongs to this cluster; with several clusters the broker's address decides."""
    return len(settings.broker) <= 1 or broker.url == application.broker_read_url


def configured_queues(broker: Broker, settings: Settings) -> frozenset[str]:
    """The queues that the application configures, before any worker has answered."""
    application = application_of(settings)
    if application is None or not applies_to(application, broker, settings):
        return frozenset()
    return frozenset(application.queues)


EXTRAS = {"kafka": "confluentkafka", "sqla": "sqlalchemy"}


def check_brokers(settings: Settings) -> None:
    """Raises SettingsError or Unsupported where a broker can never be used as configured. Errors contain no secret.

    Whatever may recover by itself, such as a broker that is down, is not checked.
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
    except (ImportError, RuntimeError, NameError) as error:  # qpid's raises RuntimeError, Kafka's NameError
        raise lacks_package(transport, error) from None
    except (TypeError, ValueError, KeyError):  # their texts may repeat the address
        if "." in transport:
            raise SettingsError(f"{transport}: kombu has no such transport, and cannot load it") from None
        raise SettingsError(f"{transport}: an option after the ? of the address is unknown or invalid") from None


def lacks_package(transport: str, error: Exception) -> Unsupported:
    """A transport whose library is not installed; kombu has an extra of the same name, or nearly so."""
    extra = EXTRAS.get(transport, transport)
    return Unsupported(
        f"{transport} needs a package that is not installed ({error}); run pip install 'kombu[{extra}]'",
        transport=transport,
    )


def keep_compressed(channel: Any) -> Any:
    """The channel, whose messages keep their bodies as they were sent. kombu decompresses them without a limit."""

    class Compressed(channel.Message):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **named: Any) -> None:
            self.errors = [None]  # with an error noted, kombu leaves the body alone
            super().__init__(*arguments, **named)
            del self.errors[0]

    channel.Message = Compressed
    return channel


def app_for(broker: Broker, settings: Settings) -> Celery:
    """A Celery application for this broker, configured like the user's if there is one, without the user's tasks.

    Cached. Raises SettingsError.
    """
    options = json.dumps(settings.broker_options, sort_keys=True, default=str)
    return _app(broker.url, application_of(settings), options)


class _App(Celery):  # type: ignore[misc]  # Celery has no types
    """Connects to the given addresses even if ``CELERY_BROKER_URL`` is set in the environment."""

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
    app.conf.broker_transport_options = {**(app.conf.broker_transport_options or {}), **_given_options(options)}
    if transport_of(url) == "sentinel" and not app.conf.broker_transport_options.get("master_name"):
        raise SettingsError(
            f"{without_password(url)}: Sentinel needs the name of the master; "
            'set it with --broker-options \'{"master_name": "mymaster"}\''
        )
    return app


def _given_options(text: str) -> dict[str, Any]:
    """Transport options of JSON, where every key is a text; the keys of socket options are numbers."""
    given: dict[str, Any] = json.loads(text)
    if keepalive := given.get("socket_keepalive_options"):
        given["socket_keepalive_options"] = {int(option): value for option, value in keepalive.items()}
    return given


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
    """kombu's transport options for this application."""
    options: Mapping[str, Any] = app.conf.broker_transport_options
    return options


def parse_address(url: str) -> dict[str, Any]:
    """A URL as kombu parses it: hostname, port, userid, password, virtual_host, ssl and further options."""
    try:
        parts: dict[str, Any] = parse_url(url)
    except (ValueError, KeyError):  # their texts may repeat the password
        raise SettingsError(f"broker {without_password(url)}: the address cannot be parsed") from None
    return parts


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns whatever a broker's library raises inside into BrokerUnavailable, with the address and advice."""
    try:
        yield
    except _errors_at(url) as error:
        raise unavailable(url, error) from error


def aws_refusal() -> type[Exception]:
    """The error of a request that AWS refuses; kombu does not count it among its own. boto3 has to be installed."""
    found: type[Exception] = resolve_name("botocore.exceptions:ClientError")
    return found


def broker_errors(transport: Transport) -> tuple[type[BaseException], ...]:
    """Every exception that means that a broker cannot be used: unreachable, lost, or refusing.

    Each transport has its own. Some refusals are channel errors: a wrong password in py-amqp, a missing database or
    permission in redis.
    """
    refusals = (aws_refusal(),) if transport.driver_type == "sqs" else ()
    return (OSError, KombuError, *transport.connection_errors, *transport.channel_errors, *refusals)


@lru_cache(maxsize=64)
def _errors_at(url: str) -> tuple[type[BaseException], ...]:
    try:
        return broker_errors(Connection(url).transport)
    except (ImportError, NameError) as error:  # the library of a transport need not be installed
        raise lacks_package(transport_of(url), error) from None


def unavailable(url: str, error: BaseException) -> BrokerUnavailable:
    """The error that users see when a broker does not answer: address, cause, advice."""
    text = masked(" ".join(str(error).split()).rstrip(".")) or type(error).__name__
    return BrokerUnavailable(f"{without_password(url)}: {text}. {advice_on(text, GO_ON_TRYING)}")


def advice_on(text: str, otherwise: str) -> str:
    """What to do about an error with this text; ``otherwise`` where no advice fits."""
    lowered = text.lower()
    return next((advice for words, advice in ADVICE if any(word in lowered for word in words)), otherwise)


GO_ON_TRYING = "Check that the broker runs and that the address in --broker is right; connecting is retried."


CHECK_HOST = "Check the virtual host in --broker, and the user's permissions on it."
ADVICE = (
    (("exclusive use",), "Another receiver reads this queue; give each its own --node-id."),
    (("not_allowed",), CHECK_HOST),
    (("access_refused - access to",), "The user lacks permissions on its virtual host (rabbitmqctl set_permissions)."),
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
        "The user lacks permissions (ACL SETUSER): PSUBSCRIBE, PING and the channels of events to listen, "
        "all commands and keys of Celery to act.",
    ),
    (
        ("invalidclienttokenid", "signaturedoesnotmatch", "credentials", "expiredtoken", "security token"),
        "Check the credentials of AWS: in --broker (sqs://KEY:SECRET@, percent-encoded), the environment, or the role.",
    ),
    (("accessdenied", "not authorized"), "The user of AWS lacks a right on this queue; docs/brokers.md lists them."),
    (("db index",), "Check the number of the database in --broker."),
    (("vhost",), CHECK_HOST),
    (("certificate", "ssl", "tls"), "Check the ssl_ca_certs, ssl_certfile and ssl_keyfile given in the URL."),
    (("name or service", "getaddrinfo", "name resolution"), "Check the host name in --broker."),
)

RETRY_SECONDS = 0.1  # before the one retry of a connection that could not be opened
ANSWER_SECONDS = 15.0  # for one command of the transport; kombu polls Redis in shorter ones
CHECK_BROKER = "Check that it runs and can be reached from here."
CONFIRM_SECONDS = 10.0  # for RabbitMQ to confirm a message; it does not while its disk or memory is full
# Without these, a broker behind a firewall that drops packets would block a click for minutes.
OPTIONS: dict[str, dict[str, object]] = {
    "redis": {"socket_connect_timeout": CONNECT_SECONDS, "socket_timeout": ANSWER_SECONDS},
    # Longer than SQS waits for messages.
    "sqs": {"client-config": {"connect_timeout": 5, "read_timeout": 25, "retries": {"total_max_attempts": 2}}},
    "amqp": {"confirm_publish": True, "read_timeout": ANSWER_SECONDS, "write_timeout": ANSWER_SECONDS},
}


@contextmanager
def link(broker: Broker, settings: Settings, *, heartbeat: float = 0, **options: object) -> Iterator[Connection]:
    """An open connection. Raises BrokerUnavailable when it cannot be opened, is lost, or the broker refuses.

    ``options`` are added to the transport options that every connection has.
    """
    connection = _connection(broker, settings, heartbeat, options)
    errors = broker_errors(connection.transport)
    try:
        try:
            # connect() would wait 2 s before it retries, and a task's page with it.
            connection.ensure_connection(max_retries=1, interval_start=RETRY_SECONDS, reraise_as_library_errors=False)
        except errors as error:
            raise broker_unavailable(broker, f"cannot be used ({short_error(error)}); nothing was sent") from error
        try:
            yield connection
        except lost(connection) as error:
            text = f"was lost ({short_error(error)}); what was being sent may have arrived"
            raise broker_unavailable(broker, text) from error
        except errors as error:
            raise broker_unavailable(broker, f"refused the request ({short_error(error)})") from error
    finally:
        _close(connection, errors)


def lost(connection: Connection) -> tuple[type[BaseException], ...]:
    """The exceptions that mean that a connection was lost."""
    return (*connection.connection_errors, OSError, KombuError)


def short_error(error: BaseException) -> str:
    """The text of an error, or its class where it has none, as a timeout has."""
    return " ".join(str(error).split()).removeprefix("(0, 0): ").rstrip(".") or type(error).__name__


def broker_unavailable(broker: Broker, what: str) -> BrokerUnavailable:
    """With the address, without its password, and advice that fits the text."""
    return BrokerUnavailable(
        f"The broker of {broker.cluster} at {without_password(broker.url)} {what}. {advice_on(what, CHECK_BROKER)}",
        cluster=broker.cluster,
    )


def _connection(broker: Broker, settings: Settings, heartbeat: float, options: dict[str, object]) -> Connection:
    app = app_for(broker, settings)
    connection: Connection = app.connection_for_write(connect_timeout=CONNECT_SECONDS, heartbeat=heartbeat)
    return bounded(connection, options)


def bounded(connection: Connection, options: Mapping[str, object] = MappingProxyType({})) -> Connection:
    """The connection, which is not open yet, with a limit for each of its waits, and further transport options."""
    defaults = OPTIONS.get(connection.transport.driver_type, {})
    connection.transport_options = {**defaults, **(connection.transport_options or {}), **options}
    if connection.transport.driver_type == "sqs":
        _share_clients(connection.transport)
    return connection


_clients: OrderedDict[tuple[object, ...], Any] = OrderedDict()
MOST_CLIENTS = 16


def _share_clients(transport: Any) -> None:
    """All connections to one address share boto3's client, which may be used by several threads.

    To make one takes a tenth of a second and megabytes, which the garbage collector gets back late.
    """

    class Sharing(transport.Channel):  # type: ignore[misc]
        def new_sqs_client(self, *arguments: Any, **named: Any) -> Any:
            options = repr(self.transport_options.get("client-config"))
            key = (self.endpoint_url, self.is_secure, options, *arguments, *sorted(named.items()))
            client = _clients.get(key)
            if client is None:
                client = _clients[key] = super().new_sqs_client(*arguments, **named)
                if len(_clients) > MOST_CLIENTS:
                    _clients.popitem(last=False)
            return client

    transport.Channel = Sharing


def _close(connection: Connection, errors: tuple[type[BaseException], ...]) -> None:
    try:
        connection.release()
    except errors:
        connection.collect()  # the peer is gone: free our side
