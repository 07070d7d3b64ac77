"""What a message says: the sentence with its numbers, a link to the page that shows it, the traceback's first lines."""

from collections.abc import Sequence
from urllib.parse import urlencode

from celery_monitor.addresses import masked
from celery_monitor.core.sanitize import Redactor
from celery_monitor.core.words import counted
from celery_monitor.records.alert import Alert, AlertMessage, AlertState, Notification, Severity
from celery_monitor.settings import Settings

LONGEST_TITLE = 160
LONGEST_TEXT = 500
DETAIL_LINES = 12
LISTED = 20  # alerts in the text of a digest


class Composer:
    """Makes messages; masks secrets in them."""

    def __init__(self, settings: Settings) -> None:
        self._address = (settings.public_url or "").rstrip("/")
        self._redactor = Redactor(settings.redact)

    def message(self, number: str, batch: Sequence[Notification]) -> AlertMessage:
        """One message of all that is sent together."""
        alerts = [each.alert for each in batch if each.alert is not None]
        if not alerts:
            title, body, link = "Test message", "The channel works.", self.link("/alerts", {})
        elif len(alerts) == 1:
            title, body, link = self._single(batch[0], alerts[0])
        else:
            title, body, link = self._digest(batch)
        severity = max((each.severity for each in alerts), key=lambda each: each.rank, default=Severity.INFO)
        return AlertMessage(id=number, title=title, body=body, severity=severity, link=link, notifications=tuple(batch))

    def link(self, path: str, query: dict[str, str]) -> str | None:
        """The address of a page; ``None`` without the setting public_url."""
        return f"{self._address}{path}{f'?{urlencode(query)}' if query else ''}" if self._address else None

    def link_of(self, alert: Alert) -> str | None:
        return self.link(alert.measured.path, {**alert.measured.query, "cluster": alert.cluster})

    def text(self, text: str, longest: int = LONGEST_TEXT) -> str:
        """A text without secrets, and not longer than that."""
        shown = masked(self._redactor.text(text))
        return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"

    def _single(self, notification: Notification, alert: Alert) -> tuple[str, str, str | None]:
        text, link = self.text(alert.measured.text), self.link_of(alert)
        over = notification.transition == "resolved"
        title = f"[{'resolved' if over else alert.severity}] {alert.cluster}: {self.text(text, LONGEST_TITLE)}"
        lines = [text, f"Rule: {alert.rule} ({alert.severity})"]
        lines += [self.text(alert.detail, 4 * LONGEST_TEXT)] if alert.detail and not over else []
        return title, "\n\n".join([*lines, *([link] if link else [])]), link

    def _digest(self, batch: Sequence[Notification]) -> tuple[str, str, str | None]:
        fired = [each.alert for each in batch if each.alert is not None and each.transition == "fired"]
        resolved = [each.alert for each in batch if each.alert is not None and each.transition == "resolved"]
        parts = [counted(len(fired), "alert") if fired else "", f"{len(resolved)} resolved" if resolved else ""]
        critical = sum(each.severity is Severity.CRITICAL for each in fired)
        title = ", ".join(each for each in parts if each) + (f" ({critical} critical)" if critical else "")
        ordered = sorted(fired, key=lambda each: -each.severity.rank)
        lines = [f"[{each.severity}] {each.cluster}: {self.text(each.measured.text)}" for each in ordered]
        lines += [f"[resolved] {each.cluster}: {self.text(each.measured.text)}" for each in resolved]
        more = [f"and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        link = self.link("/alerts", {})
        return title, "\n".join([*lines[:LISTED], *more, *([link] if link else [])]), link


def shortened(traceback: str) -> str:
    """The first lines of a traceback, and the last, which has the exception."""
    lines = traceback.rstrip().splitlines()
    if len(lines) <= DETAIL_LINES:
        return "\n".join(lines)
    return "\n".join([*lines[: DETAIL_LINES - 2], "  …", lines[-1]])


def state_word(alert: Alert) -> str:
    return "resolved" if alert.state is AlertState.RESOLVED else "firing"
