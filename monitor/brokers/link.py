"""One connection to a broker for one errand: opened with a limit, closed for certain, its errors in our words."""

from collections.abc import Iterator
from contextlib import contextmanager

from kombu import Connection
from kombu.exceptions import KombuError

from monitor.brokers.connection import CONNECT_SECONDS
from monitor.brokers.connection import advice_on
from monitor.brokers.connection import app_for
from monitor.brokers.connection import broker_errors
from monitor.brokers.connection import without_password
from monitor.errors import BrokerUnavailable
from monitor.settings import Broker
from monitor.settings import Settings

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
            raise unavailable(broker, f"cannot be used ({said(error)}); nothing was sent") from error
        try:
            yield connection
        except lost(connection) as error:
            raise unavailable(broker, f"was lost ({said(error)}); what was under way may have arrived") from error
        except errors as error:
            raise unavailable(broker, f"refuses what was asked ({said(error)})") from error
    finally:
        _close(connection, errors)


def lost(connection: Connection) -> tuple[type[BaseException], ...]:
    """The errors that mean that a connection is no more."""
    return (*connection.connection_errors, OSError, KombuError)


def said(error: BaseException) -> str:
    """What an error says, or its name where it says nothing, as a time-out does."""
    return " ".join(str(error).split()).removeprefix("(0, 0): ").rstrip(".") or type(error).__name__


def unavailable(broker: Broker, what: str) -> BrokerUnavailable:
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
