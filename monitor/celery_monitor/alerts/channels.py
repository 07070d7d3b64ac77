"""Sending a message to a channel: our signed webhook, Alertmanager's API, and whatever Apprise knows.

Only admins set the address of a channel, which may be inside the network: that is what it is for. Redirects are not
followed, and no answer is shown beyond its status.
"""

import hashlib
import hmac
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pkgutil import resolve_name
from urllib.parse import unquote, urlsplit

import msgspec

from celery_monitor import __version__
from celery_monitor.alerts.messages import Composer, state_word
from celery_monitor.errors import InvalidInput
from celery_monitor.records.alert import Alert, AlertMessage, Channel

TIMEOUT_SECONDS = 10.0
ENDS_SECONDS = 300.0  # without news, after which Alertmanager takes an alert for resolved; it gets them every minute
RETRIED = frozenset({408, 425, 429})
OK = range(200, 300)


class NotSent(Exception):
    """The message was not accepted; ``again``: it may be later."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again


class SentUnknown(Exception):
    """No answer came: the message may have arrived, or not."""


def connect(channel: Channel) -> HTTPConnection | None:
    """A connection over which ``send`` posts; ``None`` where Apprise makes its own. Raises NotSent.

    To connect takes the longest, and who dies meanwhile has surely sent nothing.
    """
    if channel.kind == "apprise":
        return None
    parts = urlsplit(channel.url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_SECONDS)
    try:
        connection.connect()
    except (OSError, UnicodeError) as error:  # the latter: no host can have this name
        connection.close()
        raise NotSent(f"cannot connect: {getattr(error, 'strerror', None) or error}", again=True) from None
    return connection


def send(channel: Channel, connection: HTTPConnection | None, message: AlertMessage, composer: Composer) -> None:
    """Sends it over the connection of ``connect``. Raises NotSent or SentUnknown."""
    if connection is None:
        send_by_apprise(channel, message)
    elif channel.kind == "webhook":
        send_webhook(channel, connection, message, composer)
    elif channel.kind == "alertmanager":
        send_to_alertmanager(channel, connection, message, composer)
    else:
        raise InvalidInput(f"{channel.kind!r} is not a kind of channel")


def post(connection: HTTPConnection, url: str, body: bytes, headers: Mapping[str, str]) -> None:
    """Posts JSON over a connection to the host of the URL. Raises NotSent or SentUnknown."""
    parts = urlsplit(url)
    given = {"Content-Type": "application/json", "User-Agent": f"celery-monitor/{__version__}", **headers}
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        given["Authorization"] = f"Basic {b64encode(user.encode()).decode()}"
    try:
        connection.request("POST", f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}", body, given)
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        raise SentUnknown(f"no answer: {error or type(error).__name__}") from None
    if status not in OK:
        raise NotSent(f"the answer is {status}", again=status in RETRIED or status >= 500)


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """``v1=`` and the HMAC-SHA256 of timestamp, full stop and body, in hexadecimal."""
    return f"v1={hmac.new(secret.encode(), timestamp.encode() + b'.' + body, hashlib.sha256).hexdigest()}"


def webhook_body(message: AlertMessage, composer: Composer) -> bytes:
    """The JSON document that a webhook gets: see docs/alerts.md."""
    alerts = [each.alert for each in message.notifications if each.alert is not None]
    document = {
        "id": message.id,
        "type": "digest" if len(alerts) > 1 else "alert" if alerts else "test",
        "title": message.title,
        "body": message.body,
        "severity": message.severity,
        "link": message.link,
        "alerts": [
            {
                "id": alert.id,
                "state": "resolved" if notification.transition == "resolved" else "firing",
                **{name: getattr(alert, name) for name in ("rule", "kind", "cluster", "severity")},
                "subject": composer.text(alert.measured.subject),
                "text": composer.text(alert.measured.text),
                "value": alert.measured.value,
                **{name: getattr(alert, name) for name in ("since", "fired_at", "resolved_at")},
                "link": composer.link_of(alert),
                "detail": composer.text(alert.detail, 2000),
            }
            for notification in message.notifications
            if (alert := notification.alert) is not None
        ],
    }
    return msgspec.json.encode(document)


def send_webhook(channel: Channel, connection: HTTPConnection, message: AlertMessage, composer: Composer) -> None:
    """Signed where the channel has a secret."""
    body, timestamp = webhook_body(message, composer), str(int(time.time()))
    headers = {"X-Celery-Monitor-Id": message.id, "X-Celery-Monitor-Timestamp": timestamp}
    if channel.secret:
        headers["X-Celery-Monitor-Signature"] = signature(channel.secret, timestamp, body)
    post(connection, channel.url, body, headers)


def send_to_alertmanager(
    channel: Channel, connection: HTTPConnection, message: AlertMessage, composer: Composer
) -> None:
    """Alertmanager knows an alert by its labels, so the same one may arrive again."""
    alerts = [each.alert for each in message.notifications if each.alert is not None]
    try:
        post_alerts(channel, connection, alerts, composer)
    except SentUnknown as error:
        raise NotSent(str(error), again=True) from None


def post_alerts(channel: Channel, connection: HTTPConnection, alerts: list[Alert], composer: Composer) -> None:
    """Posts the present states of alerts. Raises NotSent or SentUnknown."""
    url = f"{channel.url.rstrip('/')}/api/v2/alerts"
    post(connection, url, msgspec.json.encode([_for_alertmanager(each, composer) for each in alerts]), {})


def _for_alertmanager(alert: Alert, composer: Composer) -> dict[str, object]:
    ends = alert.resolved_at if state_word(alert) == "resolved" and alert.resolved_at else time.time() + ENDS_SECONDS
    labels = {"alertname": alert.rule, "cluster": alert.cluster, "severity": str(alert.severity)}
    text = composer.text(alert.measured.text)
    found: dict[str, object] = {
        "labels": {**labels, "kind": alert.kind, "subject": composer.text(alert.measured.subject)},
        "annotations": {"summary": text, "description": "\n".join([text, composer.text(alert.detail, 2000)]).strip()},
        "startsAt": _iso(alert.fired_at or alert.since),
        "endsAt": _iso(ends),
    }
    link = composer.link_of(alert)
    return found | ({"generatorURL": link} if link else {})


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def send_by_apprise(channel: Channel, message: AlertMessage) -> None:
    """Apprise is loaded with the first message: it takes a while, and most who try us have no channel."""
    notify: Callable[[str, AlertMessage], str | None] = resolve_name("celery_monitor.alerts.apprise_urls:notify")
    if (error := notify(channel.url, message)) is not None:
        raise NotSent(error, again=True)
