"""Where a Redis is, as kombu reads its URL, and a socket to it."""

import socket
import ssl
from typing import Any
from typing import NamedTuple

from kombu.utils.url import url_to_parts

from monitor.brokers.connection import CONNECT_SECONDS
from monitor.brokers.connection import parse_address
from monitor.errors import Unsupported
from monitor.receiver.sources.inlet import closed_by_error

DEFAULT_PORT = 6379
# What may stand in a URL; all else is left to kombu.
KNOWN_PARTS = {"transport", "hostname", "port", "userid", "password", "virtual_host", "ssl"}
KNOWN_TLS = {"ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}


class Address(NamedTuple):
    """Where a Redis is and how to be let in."""

    host: str
    port: int
    path: str | None  # a unix socket
    username: str | None
    password: str | None
    db: int
    tls: dict[str, Any] | None


def parse_redis_address(url: str) -> Address:
    """Read a redis, rediss or redis+socket URL as kombu does; Unsupported for what only kombu serves."""
    if ";" in url:
        raise Unsupported("several Redis addresses are served by kombu")
    if url.partition("://")[0].endswith("+socket"):
        return _socket_address(url)
    parts = parse_address(url)
    tls = parts.get("ssl") or ({} if parts["transport"] == "rediss" else None)
    unusual = (parts.keys() - KNOWN_PARTS) | ((tls or {}).keys() - KNOWN_TLS)
    if unusual:
        raise Unsupported(f"kombu serves these options of a Redis URL: {', '.join(sorted(unusual))}")
    return Address(
        host=parts["hostname"] or "127.0.0.1",
        port=parts["port"] or DEFAULT_PORT,
        path=None,
        username=parts["userid"],
        password=parts["password"],
        db=_database(parts["virtual_host"]),
        tls=tls,
    )


def _socket_address(url: str) -> Address:
    parts = url_to_parts(url)
    unusual = parts.query.keys() - {"virtual_host"}
    if unusual:
        raise Unsupported(f"kombu serves these options of a Redis URL: {', '.join(sorted(unusual))}")
    db = _database(parts.query.get("virtual_host"))
    return Address("", 0, f"/{parts.path}", parts.username, parts.password, db, None)


def _database(virtual_host: str | None) -> int:
    text = (virtual_host or "0").lstrip("/") or "0"
    if not text.isdecimal():
        raise Unsupported(f"a Redis database is a number, not {text!r}: /0, /1 ...")
    return int(text)


def open_socket(address: Address) -> socket.socket:
    """A connected socket with a bounded wait, TLS as kombu and redis-py would do it."""
    with closed_by_error(_unix_socket() if address.path is not None else _tcp_socket(address)) as sock:
        if address.path is not None:
            sock.connect(address.path)
            return sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock if address.tls is None else with_tls(sock, address)


def _unix_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(CONNECT_SECONDS)
    return sock


def _tcp_socket(address: Address) -> socket.socket:
    return socket.create_connection((address.host, address.port), CONNECT_SECONDS)


def with_tls(sock: socket.socket, address: Address) -> socket.socket:
    """The same socket with TLS, or an error that leaves closing it to the caller."""
    options = address.tls or {}
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    # kombu takes a rediss URL without ssl_cert_reqs as "none", and warns; so many set-ups depend on it.
    requirement = options.get("ssl_cert_reqs", ssl.CERT_REQUIRED if options else ssl.CERT_NONE)
    context.check_hostname = requirement != ssl.CERT_NONE and options.get("ssl_check_hostname", True)
    context.verify_mode = requirement
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    # Python loses hold of a socket that was reset before it is wrapped, so that nobody could close it.
    sock.getpeername()
    return context.wrap_socket(sock, server_hostname=address.host)
