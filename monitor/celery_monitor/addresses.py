"""URLs of brokers and databases: validated before anything starts, and never shown with a secret. No I/O.

An error contains nothing of a URL that cannot be parsed, since it is unclear where its password ends.
"""

import re
from difflib import get_close_matches
from urllib.parse import SplitResult, parse_qsl, urlsplit

from celery_monitor.core.untrusted import SECRET_KEYS, key_pattern
from celery_monitor.errors import SettingsError, Unsupported

MASK = "**"
NO_URL = "(no URL)"
EXAMPLE = "for example redis://localhost:6379/0 or amqp://localhost"
# Where Celery's events and remote control work (read in kombu's transports); memory is for tests.
EVENT_TRANSPORTS = frozenset(
    {"amqp", "redis", "sentinel", "filesystem", "mongodb", "gcpubsub", "qpid", "pgmq", "memory"}
)
# The other transports of kombu 5.7: there events and remote control go through queues of celery_monitor_capture.
QUEUE_TRANSPORTS = frozenset(
    {
        "azureservicebus",
        "azurestoragequeues",
        "confluentkafka",
        "consul",
        "etcd",
        "kafka",
        "sqla",
        "sqlalchemy",
        "sqs",
        "zookeeper",
    }
)
GONE_TRANSPORTS = frozenset({"pyro", "slmq"})  # of kombu, whose library or service is no more
SAME_TRANSPORT = {"amqps": "amqp", "pyamqp": "amqp", "librabbitmq": "amqp", "rediss": "redis"}
DATABASES = ("sqlite", "postgresql", "postgres", "postgresql+psycopg")
RESULT_DATABASES = ("sqlite", "postgresql", "postgres", "mysql", "mariadb")
MOST_PORT = 65_535
CERT_REQS = frozenset({"required", "optional", "none", "CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE"})  # as in kombu
_ENCODE = "percent-encode special characters in its password (@ as %40, / as %2F, [ as %5B)"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}")
_USER = re.compile(r"[\w.+-]{0,64}")
_PLACE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]*)(:[0-9]{1,5})?(/[^?#@:]*)?")
# An address within a text, malformed ones too: a known scheme needs no slashes (redis:secret@host).
_IN_TEXT = re.compile(
    r"(:/{1,3}|\b(?:rediss?|amqps?|pyamqp|sentinel|postgres(?:ql)?|mysql|mariadb|mongodb|https?)(?:\+\w{1,20})?"
    r"(?::[/\\]{0,8}|/{1,3}))([^\s'\"]*+)",
    re.IGNORECASE,
)
# ``password=x`` and ``'password': 'x'``; not ``password: x``, as messages of ours begin with the name of a setting.
_PAIR = re.compile(
    rf"((?:{key_pattern(SECRET_KEYS).pattern})[\w.\[\]-]{{0,64}}+(?:=|\\*['\"][ \t]?(?::|=>)[ \t]?))"
    r"[bBuU]?(?:[\[({][^\n]*+|\\*'[^'\n]*+'?|\\*\"[^\"\n]*+\"?|[^\s&,;'\")\]}]++)"
)
# ``('password', 'x')``, as headers are often written
_ITEM = re.compile(
    rf"([(\[][bBuU]?\\*['\"][\w.-]{{0,64}}?(?:{key_pattern(SECRET_KEYS).pattern})[\w.-]{{0,64}}+\\*['\"],[ \t]?)"
    r"[bBuU]?(?:\\*'[^'\n]*+'?|\\*\"[^\"\n]*+\"?)"
)
_HEADER = re.compile(r"\b((?:authorization|cookie)\b[ \t]?:[ \t]?)[^\n'\"]+|\b(bearer +)[\w.~+/=-]{8,}", re.IGNORECASE)


def without_password(url: str) -> str:
    """The URL for messages and pages: passwords masked, the query, which may have secrets, left out."""
    first, *others = url.split(";")
    if any(transport_of(each) != transport_of(first) for each in others):  # a password may hold a semicolon, too
        return f"{first.partition('://')[0]}://{MASK}" if _shown(first) != NO_URL else NO_URL
    return ";".join(_shown(each) for each in url.split(";"))


def _shown(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        return NO_URL
    before_query = re.split("[?#]", rest, maxsplit=1)[0]
    if "@" in rest[len(before_query) :]:  # part of the query, or of a password with a question mark
        return f"{scheme}://{MASK}"
    credentials, at, place = before_query.rpartition("@")  # a password may hold every other separator
    user, colon, _ = credentials.partition(":")
    who = f"{user if colon and _USER.fullmatch(user) else ''}:{MASK}@" if at else ""
    return f"{scheme}://{who}{place if _PLACE.fullmatch(place) else MASK}"


def masked(text: str) -> str:
    """Any text, such as an error of a library or a log line, with the secrets in it masked."""
    text = _ITEM.sub(rf"\1{MASK}", _PAIR.sub(rf"\1{MASK}", _IN_TEXT.sub(_without_user, text)))
    return _HEADER.sub(lambda match: f"{match[1] or match[2]}{MASK}", text)


def _without_user(match: re.Match[str]) -> str:
    end = match[2].rfind("@")
    return match[0] if end < 0 else f"{match[1]}{MASK}{match[2][end:]}"


def masked_value(value: str) -> str:
    """A value that somebody gave: where it may be an address, with all that may be its password masked.

    It is masked before it is parsed, since one that cannot be parsed has a password all the same.
    """
    before, at, place = value.rpartition("@")
    if not at or not re.search("[:/]", before):
        return masked(value)
    scheme = re.match(r"(?:[\w-]+=)?[A-Za-z][A-Za-z0-9+.-]*(?=[:/]):?/{0,3}", before)
    return f"{scheme[0] if scheme else ''}{MASK}@{masked(place)}"


def transport_of(url: str) -> str:
    """The kind of broker: ``redis`` for redis, rediss and redis+socket; ``amqp`` for amqp, amqps and pyamqp ..."""
    scheme = url.split(";")[0].partition("://")[0].partition("+")[0]
    return SAME_TRANSPORT.get(scheme, scheme)


def require_supported(url: str) -> str:
    """``transport_of(url)``; SettingsError if kombu has no such transport, Unsupported if it is of the past."""
    transport = transport_of(url)
    known = EVENT_TRANSPORTS | QUEUE_TRANSPORTS
    if transport in GONE_TRANSPORTS:
        raise Unsupported(f"brokers of the transport {transport} are not read: it is not maintained any more")
    if transport.lower() in known or "." in transport:  # module.path:Class is kombu's form for a transport of one's own
        return transport
    if not _SCHEME.fullmatch(transport):
        raise SettingsError(f"the address begins with no transport; {EXAMPLE}")
    near = get_close_matches(transport.lower(), [*known, *SAME_TRANSPORT], 1)
    hint = f"did you mean {near[0]}://?" if near else f"use one of {', '.join(sorted(known - {'memory'}))}"
    raise SettingsError(f"there is no transport {transport!r}; {hint}")


def carries_events(url: str) -> bool:
    """Whether Celery's own events and remote control work there, without celery_monitor_capture's queues."""
    return transport_of(url) in EVENT_TRANSPORTS


def check_broker(url: str) -> None:
    """Raises SettingsError or Unsupported for a broker URL that can never work. Errors contain no secret."""
    for each in url.split(";"):
        if "://" not in each:
            raise SettingsError(f"not a URL; {EXAMPLE}")
    transport = require_supported(url)
    if transport == "memory":
        raise SettingsError(
            "memory:// exists inside one process, and no other process can be seen there; "
            "give the broker that your workers use, for example redis://localhost:6379/0"
        )
    for each in url.split(";"):
        parts = split(each)
        if transport in {"redis", "sentinel"}:
            _check_redis(parts)


def split(url: str) -> SplitResult:
    """The parts of a URL, parsed like kombu does. Raises SettingsError."""
    scheme, _, rest = url.partition("://")
    try:
        parts = urlsplit(f"http://{rest}")
        _ = parts.hostname
    except ValueError:
        raise SettingsError(f"the address cannot be parsed; {_ENCODE}") from None
    try:
        port = parts.port
    except ValueError:
        port = -1
    if port is not None and not 0 < port <= MOST_PORT:
        raise SettingsError(f"the port must be a number from 1 to {MOST_PORT}; if it looks right, {_ENCODE}")
    if not parts.hostname and "@" in parts.path + parts.query + parts.fragment:
        raise SettingsError(f"the address has an @ and no host behind it; {_ENCODE}")
    return parts._replace(scheme=scheme)


def _check_redis(parts: SplitResult) -> None:
    query = dict(parse_qsl(parts.query))
    in_path = not parts.scheme.endswith("+socket")
    database = parts.path if in_path else query.get("virtual_host", "")
    if not re.fullmatch(r"/?[0-9]*", database):
        raise SettingsError("the database of a Redis is a number; for example redis://localhost:6379/0")
    if query.get("ssl_cert_reqs", "none") not in CERT_REQS:
        raise SettingsError("ssl_cert_reqs must be required, optional or none")


def check_database(url: str) -> None:
    """Raises SettingsError for a database URL that can never work."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise SettingsError("not a URL; use sqlite:///file.db or postgresql://host/name")
    if scheme not in DATABASES:
        name = f"{scheme!r}" if _SCHEME.fullmatch(scheme) else "this kind of database"
        raise SettingsError(f"{name} is not supported; use sqlite:///file.db or postgresql://host/name")
    if scheme != "sqlite":
        _check_database_port(rest)


def check_result_database(url: str) -> None:
    """Raises SettingsError for a result backend (``db+...``) that can never work. It may name a driver of its own."""
    scheme, separator, rest = url.partition("+")[2].partition("://")
    kind = scheme.partition("+")[0]
    if not separator or kind not in RESULT_DATABASES:
        known = ", ".join(f"db+{each}://" for each in RESULT_DATABASES)
        raise SettingsError(f"this kind of database is not read; use one of {known}")
    if kind != "sqlite":
        _check_database_port(rest)


def _check_database_port(rest: str) -> None:
    """``rest`` is what stands behind ``://``."""
    port = re.search(r":([^:/@?]*)(?:[/?]|$)", rest.rpartition("@")[2].rpartition("]")[2])
    if port and not (re.fullmatch("[0-9]{1,5}", port[1]) and 0 < int(port[1]) <= MOST_PORT):
        raise SettingsError(f"the port must be a number from 1 to {MOST_PORT}")


def check_http(url: str) -> None:
    """Raises SettingsError for an invalid HTTP URL."""
    if not url.startswith(("http://", "https://")) or not split(url).hostname:
        raise SettingsError("not an http:// or https:// URL; for example http://guest:guest@localhost:15672/api/")
