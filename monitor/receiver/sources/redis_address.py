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
    if address.path is not None:
        return _connected(socket.AF_UNIX, address.path)
    tls = None if address.tls is None else _tls_context(address.tls)
    problem = OSError(f"{address.host} has no address")
    for family, _, _, _, endpoint in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
        try:
            sock = _connected(family, endpoint, tls, address.host)
        except OSError as error:
            problem = error
            continue
        with closed_by_error(sock):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            return sock
    raise problem


def _connected(family: int, endpoint: Any, tls: ssl.SSLContext | None = None, host: str = "") -> socket.socket:
    """A socket that has reached ``endpoint``, with the TLS handshake still to come.

    TLS is put around the socket before the connection: around one that the server resets meanwhile, Python makes a
    second object, raises and leaves that object open, where nobody can close it.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    with closed_by_error(sock):
        sock.settimeout(CONNECT_SECONDS)
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
    with closed_by_error(sock):
        sock.connect(endpoint)
        return sock


def _tls_context(options: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    # kombu takes a rediss URL without ssl_cert_reqs as "none", and warns; so many set-ups depend on it.
    requirement = options.get("ssl_cert_reqs", ssl.CERT_REQUIRED if options else ssl.CERT_NONE)
    context.check_hostname = requirement != ssl.CERT_NONE and options.get("ssl_check_hostname", True)
    context.verify_mode = requirement
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    return context
