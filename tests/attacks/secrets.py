"""200 secrets: every form in which tasks and configurations hold one, for keys of every kind, and how it is written.

Each text contains ``SECRET`` once at least, and none of them may be shown or stored anywhere.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

SECRET = "S3CR3T0xyz"
BESIDE = "order-4711"  # stands beside each secret, and may stay
KEYS = (
    "password", "passwd", "secret", "token", "Authorization", "api_key", "apiKey", "access-key", "private_key",
    "cookie", "credentials", "auth", "basic_auth", "db_pass", "dbPass", "pwd", "MYSQL_PWD", "bearer", "session",
    "sessionId", "jwt", "sentry_dsn",
)  # fmt: skip
ADDRESSES = (
    "redis://:{}@h:6379/0",
    "redis:/:{}@h/0",
    "amqp://ann:{}@h/shop",
    "amqp://ann:{}/x@h/shop",
    "https://{}@github.com/acme/shop",
    "https://{}@sentry.example.com/42",
    "postgresql://ann:{}@h:5432/shop",
    "https://shop.example.com/?sig_token={}&n=1",
    "https://shop.example.com/?pwd={}",
    "sentinel://:{}@h:26379",
)


class Secret(NamedTuple):
    """A value as a Python object, and as text."""

    value: object
    text: str


def _dictionary(key: str) -> Secret:
    value = {key: SECRET, "n": BESIDE}
    return Secret(value, repr(value))


def _nested(key: str) -> Secret:
    value = {"shop": [1, {"options": {key: [SECRET, 1]}}], "n": BESIDE}
    return Secret(value, repr(value))


def _json(key: str) -> Secret:
    text = json.dumps({"n": BESIDE, key: SECRET})
    return Secret(text, repr(text))


def _twice(key: str) -> Secret:
    text = json.dumps({"body": json.dumps({key: SECRET})})
    return Secret(text, repr(text))


def _pairs(key: str) -> Secret:
    value = [(key, SECRET), ("Host", BESIDE)]
    return Secret([list(pair) for pair in value], repr(value))


def _call(key: str) -> Secret:
    text = f"login({key}={SECRET!r}, n={BESIDE!r})"
    return Secret(text, text)


def _bare(key: str) -> Secret:
    text = f"{BESIDE} {key}={SECRET}"
    return Secret(text, text)


def _query(key: str) -> Secret:
    text = f"https://shop.example.com/?n=1&{key}={SECRET}&m=2"
    return Secret(text, repr(text))


def _line(key: str) -> Secret:
    text = f"n={BESIDE}\n{key}={SECRET}"
    return Secret(text, repr(text))


FORMS: tuple[Callable[[str], Secret], ...] = (
    _dictionary, _nested, _json, _twice, _pairs, _call, _bare, _query, _line
)  # fmt: skip


def _all() -> tuple[Secret, ...]:
    keyed = [form(key) for form in FORMS for key in KEYS]
    addresses = [Secret(url.format(SECRET), repr(url.format(SECRET))) for url in ADDRESSES if "redis:/:" not in url]
    headers = [Secret(f"Bearer {SECRET}", repr(f"Bearer {SECRET}"))]
    return (*keyed, *addresses, *headers)


SECRETS = _all()
