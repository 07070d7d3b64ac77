"""The values of settings, each read from a text. Errors do not repeat a text that may be a secret.

Of ``--broker-options``, those whose values have a type in kombu's transports are checked; of others kombu decides.
"""

import re
from collections.abc import Callable
from ipaddress import ip_network
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from celery_monitor.addresses import (
    MOST_PORT,
    check_broker,
    check_database,
    check_http,
    check_result_database,
    masked_value,
    transport_of,
)
from celery_monitor.errors import MonitorError, SettingsError

Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Timeout = Annotated[float, Meta(gt=0, le=1e9)]
AtLeastOne = Annotated[int, Meta(ge=1)]


class TransportOptions(Struct):
    """As kombu/transport/redis.py, virtual/base.py and pyamqp.py read them. A value of another type ends in a TypeError
    there, at whatever is done first."""

    # Redis
    visibility_timeout: Seconds = 3600
    unacked_mutex_expire: Seconds = 300
    unacked_restore_limit: AtLeastOne | None = None
    health_check_interval: Seconds | None = None
    max_connections: AtLeastOne | None = None
    priority_steps: list[int] = []
    queue_order_strategy: Annotated[str, Meta(pattern=r"^(round_robin|priority|sorted|[\w.]+[.:]\w+)$")] = "round_robin"
    sep: str = ""
    global_keyprefix: str = ""
    unacked_key: str = ""
    unacked_index_key: str = ""
    unacked_mutex_key: str = ""
    fanout_prefix: bool | str = True
    fanout_patterns: bool = True
    socket_timeout: Timeout | None = None
    socket_connect_timeout: Timeout | None = None
    socket_keepalive: bool | None = None
    socket_keepalive_options: dict[int, int] = {}  # by socket.TCP_KEEPIDLE and so on
    retry_on_timeout: bool | None = None
    master_name: str = ""
    sentinel_kwargs: dict[str, object] | None = None
    # RabbitMQ
    read_timeout: Timeout | None = None
    write_timeout: Timeout | None = None
    connect_timeout: Timeout | None = None
    heartbeat: Seconds | None = None
    confirm_publish: bool = False
    # every transport
    max_retries: int | None = None
    interval_start: Seconds = 0
    interval_step: Seconds = 0
    interval_max: Seconds = 0
    polling_interval: Seconds | None = None


DEFAULT_CLUSTER = "default"
REDIS_SCHEMES = ("redis://", "rediss://", "redis+socket://", "sentinel://")
SQL_SCHEMES = ("db+", "database+")
RESULT_SCHEMES = (*REDIS_SCHEMES, *SQL_SCHEMES)
REDIS_TRANSPORTS = frozenset({"redis", "sentinel"})
LONGEST_NAME = 200  # a queue's name has at most 255 bytes, with Celery's prefix
MOST_NUMBER = 10**15
MOST_SECONDS = 1e9  # beyond, Python's threads cannot wait
MOST_QUOTED = 60
_BEGINS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*[:/]")  # a URL after NAME=; any other = may be in a password


class Broker(NamedTuple):
    """One cluster and the address of its broker."""

    cluster: str
    url: str


class NamedUrl(NamedTuple):
    """An entry of the schedule, and the URL to ping."""

    entry: str
    url: str


def parse_broker(text: str) -> Broker:
    """``URL`` or ``NAME=URL``; a name has letters, digits, ``-`` and ``_`` only. Raises SettingsError, Unsupported."""
    broker = parse_named(text)
    _of_cluster(broker, check_broker)
    return broker


def parse_named(text: str) -> Broker:
    """``URL`` or ``NAME=URL`` with any URL. Errors contain at most the name, since the URL may have a password."""
    name, separator, url = text.partition("=")
    if not separator or ":" in name or "/" in name or "@" in name or not _BEGINS.match(url):
        name, url = DEFAULT_CLUSTER, text
    if not name.replace("-", "").replace("_", "").isalnum():
        raise SettingsError("the name in NAME=URL may have letters, digits, - and _ only")
    return Broker(name, url)


def _of_cluster(given: Broker, check: Callable[[str], None]) -> None:
    try:
        check(given.url)
    except MonitorError as error:
        raise type(error)(f"{given.cluster}: {error.message}") from None


def parse_redbeat(text: str) -> Broker:
    """Like a broker, but Redis only, where RedBeat stores its entries."""
    redbeat = parse_named(text)
    if transport_of(redbeat.url) not in REDIS_TRANSPORTS:
        raise SettingsError(f"{redbeat.cluster}: RedBeat keeps its entries in Redis; write redis://localhost:6379/0")
    _of_cluster(redbeat, check_broker)
    return redbeat


def parse_beat_database(text: str) -> Broker:
    """A database of a cluster."""
    database = parse_named(text)
    _of_cluster(database, check_database)
    return database


def parse_backend(text: str) -> Broker:
    """A result backend in Redis or an SQL database; others are not read."""
    backend = parse_named(text)
    if not backend.url.startswith(RESULT_SCHEMES):
        raise SettingsError(
            f"{backend.cluster}: only Redis and SQL databases are read; for example redis://localhost:6379/1 "
            "or db+postgresql://localhost/results"
        )
    _of_cluster(backend, check_broker if backend.url.startswith(REDIS_SCHEMES) else check_result_database)
    return backend


def parse_database(text: str) -> str:
    """A supported database URL."""
    check_database(text)
    return text


def parse_http(text: str) -> str:
    """An HTTP URL."""
    check_http(text)
    return text


def parse_ping(text: str) -> NamedUrl:
    """``ENTRY=URL``: an entry of the schedule, whose name is any text, and an HTTP URL."""
    name, separator, url = text.rpartition("=http")
    if not separator or not name:
        raise SettingsError("write the name of a schedule entry and a URL, such as nightly=https://hc.example.com/ID")
    check_http(f"http{url}")
    return NamedUrl(name, f"http{url}")


def parse_prefix(text: str) -> str:
    """A path, or empty."""
    if not re.fullmatch(r"/?|(/[\w.~-]+)+/?", text, re.ASCII):
        raise SettingsError(f"{quoted(text)} is not a path; for example /celery")
    return text


def parse_issuer(text: str) -> str:
    """The address of an identity provider: https, or http on this machine."""
    check_http(text)
    parts = urlsplit(text)
    if parts.scheme != "https" and parts.hostname not in {"localhost", "127.0.0.1", "::1"}:
        raise SettingsError(f"{quoted(text)} is not https; anybody on the way could sign in")
    return text


def parse_scope_of(text: str) -> str:
    """WHO=SCOPE; the scope itself is read when the dashboard starts."""
    who, _, scope = text.rpartition("=")
    if not who or not scope:
        raise SettingsError(f"{quoted(text)} is not WHO=SCOPE; for example mail-team=queue:emails")
    return text


def parse_network(text: str) -> str:
    """An IP address or a network, such as 10.0.0.0/8."""
    try:
        return str(ip_network(text, strict=False))
    except ValueError:
        raise SettingsError(f"{quoted(text)} is not an address or network; for example 10.0.0.0/8") from None


def parse_header_name(text: str) -> str:
    """The name of an HTTP header; none that says something else already."""
    name = text.lower()
    if not re.fullmatch(r"[a-z0-9!#$%&'*+.^_`|~-]{1,100}", name) or name in {"authorization", "cookie", "host"}:
        raise SettingsError(f"{quoted(text)} is not a header for this; for example X-Forwarded-User")
    return name


def parse_name(text: str) -> str:
    """A valid queue name."""
    if not text.isprintable() or not 0 < len(text.encode(errors="replace")) <= LONGEST_NAME:
        raise SettingsError(f"{quoted(text)} is not a name; use 1 to {LONGEST_NAME} printable characters")
    return text


def quoted(text: str) -> str:
    """A value for an error message: shortened, on one line, with passwords of URLs masked."""
    shown = masked_value(text)
    return repr(shown if len(shown) <= MOST_QUOTED else f"{shown[:MOST_QUOTED]}…")


def parse_bool(text: str) -> bool:
    """Celery's spellings of true and false."""
    word = text.strip().lower()
    if word in {"1", "true", "yes", "on", "y", "t"}:
        return True
    if word in {"0", "false", "no", "off", "n", "f"}:
        return False
    raise SettingsError(f"{quoted(text)} is not a boolean; write true or false")


def parse_int(text: str) -> int:
    """A non-negative integer."""
    try:
        number = int(text)
    except ValueError:
        raise SettingsError(f"{quoted(text)} is not an integer") from None
    if not 0 <= number <= MOST_NUMBER:
        raise SettingsError(f"{quoted(text)} is {'negative' if number < 0 else 'too large'}")
    return number


def parse_count(text: str) -> int:
    """A positive integer."""
    if number := parse_int(text):
        return number
    raise SettingsError("0 is too few; write 1 or more")


def parse_port(text: str) -> int:
    """A port, or 0 for any that is free."""
    port = parse_int(text)
    if port > MOST_PORT:
        raise SettingsError(f"{port} is not a port; choose a --port from 1 to {MOST_PORT}, or 0 for a free one")
    return port


def parse_float(text: str) -> float:
    """A positive, finite number of seconds or days."""
    try:
        number = float(text)
    except ValueError:
        raise SettingsError(f"{quoted(text)} is not a number") from None
    if not 0 < number < float("inf"):
        raise SettingsError(f"{quoted(text)} is not a positive, finite number")
    if number > MOST_SECONDS:
        raise SettingsError(f"{quoted(text)} is too large; the most is {MOST_SECONDS:.0f}")
    return number


# Bounds in seconds by which durations are counted for metrics; those of prometheus-client are among them.
METRIC_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0,
)  # fmt: skip


def parse_bucket(text: str) -> float:
    """One of METRIC_BUCKETS: durations are counted by these, so no others can be shown."""
    bound = parse_float(text)
    if bound not in METRIC_BUCKETS:
        raise SettingsError(f"{quoted(text)} is not one of {', '.join(map(str, METRIC_BUCKETS))}")
    return bound


def parse_broker_options(text: str) -> dict[str, object]:
    """kombu's transport options, as a JSON object. Errors contain none of their values: one may be a password."""
    try:
        options = msgspec.json.decode(text, type=dict[str, object])
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else _json_reason(error)
        raise SettingsError(f'not a JSON object ({reason}); for example {{"global_keyprefix": "shop:"}}') from None
    return checked_options(options)


def checked_options(options: dict[str, object]) -> dict[str, object]:
    """The same; SettingsError for a value that kombu would fail on later."""
    try:
        msgspec.convert(options, TransportOptions, str_keys=True)
    except msgspec.ValidationError as error:
        what, _, option = str(error).partition(" - at `$.")
        raise SettingsError(f"{option.rstrip('`')}: {what[:1].lower()}{what[1:]}") from None
    return options


def _json_reason(error: ValueError) -> str:
    return "not text" if isinstance(error, UnicodeError) else str(error)


def parse_choice(*allowed: str) -> Callable[[str], str]:
    """One of these words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise SettingsError(f"{quoted(text)} is not one of {', '.join(allowed)}")
        return text

    return parse
