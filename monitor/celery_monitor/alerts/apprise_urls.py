"""Apprise: mail, Slack, Teams, Discord, Telegram, PagerDuty and so on, by one URL each. Loaded when one is used."""

import logging

from apprise import Apprise, LogCapture, NotifyType

from celery_monitor.addresses import masked
from celery_monitor.records.alert import AlertMessage, Severity

TYPES = {
    Severity.INFO: NotifyType.INFO,
    Severity.WARNING: NotifyType.WARNING,
    Severity.CRITICAL: NotifyType.FAILURE,
}
LONGEST_ERROR = 200


def notify(url: str, message: AlertMessage) -> str | None:
    """Sends a message; returns why it was not accepted."""
    client = Apprise()
    if not client.add(url):
        return "Apprise does not know this URL"
    over = bool(message.notifications) and all(each.transition == "resolved" for each in message.notifications)
    kind = NotifyType.SUCCESS if over else TYPES[message.severity]
    with LogCapture(level=logging.WARNING, fmt="%(message)s") as log:  # type: ignore[no-untyped-call]
        sent = client.notify(body=message.body, title=message.title, notify_type=kind)
        lines = log.getvalue().splitlines()
    if sent:
        return None
    return masked(lines[0])[:LONGEST_ERROR] if lines else "Apprise could not deliver it"
