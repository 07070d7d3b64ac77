"""``celery-monitor doctor``: checks a setup, reports findings and suggests fixes. Changes nothing."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import NamedTuple

from celery_monitor.addresses import without_password
from celery_monitor.brokers.connection import application_of
from celery_monitor.brokers.examine import examine_broker
from celery_monitor.brokers.results import result_backend, stored_results
from celery_monitor.core.health.checks import (
    BrokerFacts,
    RecordFacts,
    ResultFacts,
    judge_application,
    judge_record,
    judge_results,
    judge_transport,
    judge_workers,
)
from celery_monitor.core.health.findings import Finding, Tone, failing_helpers
from celery_monitor.errors import BrokerUnavailable, SettingsError, StoreUnavailable, Unsupported
from celery_monitor.settings import Settings
from celery_monitor.settings.values import Broker
from celery_monitor.store.accounts.users import has_users_yet
from celery_monitor.store.engine import connect_only, database_without_password
from celery_monitor.store.health import read_record_facts
from celery_monitor.web.security.access import check_bind

INDENT = " " * 9
LEVELS: dict[Tone, str] = {"good": "ok", "plain": "note", "unknown": "unknown", "warning": "wrong", "bad": "wrong"}
NO_TASK = "celery-monitor-doctor"  # an id that no task has


class Report(NamedTuple):
    """The findings about one broker, the record or the dashboard."""

    subject: str
    address: str
    findings: Sequence[Finding]

    @property
    def is_wrong(self) -> bool:
        return any(_is_wrong(each) for each in self.findings)


def _is_wrong(finding: Finding) -> bool:
    return LEVELS[finding.tone] == "wrong"


def examine(settings: Settings) -> list[Report]:
    """Takes some seconds per broker. Raises SettingsError."""
    records = {broker.cluster: read_record_facts(settings.database, broker.cluster) for broker in settings.broker}
    reports = [_broker(broker, settings, records[broker.cluster]) for broker in settings.broker]
    record = next(iter(records.values()))
    address = database_without_password(settings.database)
    return [*reports, Report("record", address, list(judge_record(record))), _dashboard(settings)]


def _broker(broker: Broker, settings: Settings, record: RecordFacts) -> Report:
    address = without_password(broker.url)
    failing = list(failing_helpers(record.receiver, time.time())) if record.receiver is not None else []
    try:
        facts = examine_broker(broker, settings)
    except BrokerUnavailable as error:
        found = Finding("broker", "bad", error.message, "Check --broker, and that it runs.")
        return Report(broker.cluster, address, [found, *failing])
    except Unsupported as error:
        fix = "Watch the result backend, or use a transport that carries events."
        return Report(broker.cluster, address, [Finding("transport", "bad", error.message, fix), *failing])
    answers = Finding("broker", "good", "Reachable.")
    judged = [*judge_workers(facts, record), *judge_transport(facts, record)]
    return Report(broker.cluster, address, [answers, *failing, *judged, *_application(broker, settings, facts)])


def _application(broker: Broker, settings: Settings, facts: BrokerFacts) -> Iterator[Finding]:
    """Findings about the application of -A, if given, and about the result backend."""
    application = application_of(settings)
    if application is not None:
        yield from judge_application(application, bool(facts.conf))
    yield judge_results(_results(broker, settings))


def _results(broker: Broker, settings: Settings) -> ResultFacts | None:
    backend = result_backend(broker, settings)
    if backend.kind == "none":
        return None
    try:
        stored_results(broker, settings, [NO_TASK])
    except BrokerUnavailable as error:
        return ResultFacts(backend.address, backend.reason, error.message)
    return ResultFacts(backend.address, backend.reason, None)


def _dashboard(settings: Settings) -> Report:
    address = f"{settings.host}:{settings.port}"
    try:
        with closing(connect_only(settings.database)) as store:
            check_bind(settings, store)
            users = settings.has_sign_in or has_users_yet(store)
    except SettingsError as error:
        fix = "Add a user with celery-monitor users add, or listen on --host 127.0.0.1."
        return Report("dashboard", address, [Finding("access", "bad", error.message, fix)])
    except StoreUnavailable:  # which has a report of its own
        users = bool(settings.basic_auth)
    who = "for users who sign in" if users else "on this machine only"
    return Report("dashboard", address, [Finding("access", "good", f"Open {who}.")])


def lines(reports: Sequence[Report]) -> Iterator[str]:
    """The report as text."""
    for report in reports:
        yield f"{report.subject}  {report.address}"
        for each in report.findings:
            yield f"  {LEVELS[each.tone]:<7}{each.kind}: {_text(each)}"
            if each.then:
                yield f"{INDENT}{each.then}"
        yield ""
    wrong = sum(_is_wrong(each) for report in reports for each in report.findings)
    yield f"{wrong} {'problem' if wrong == 1 else 'problems'} found." if wrong else "No problems found."


def to_json(reports: Sequence[Report]) -> dict[str, object]:
    """The report for ``--json``."""
    items = [
        {
            "subject": report.subject,
            "address": report.address,
            "check": each.kind,
            "level": LEVELS[each.tone],
            "what": _text(each),
            "fix": each.then,
        }
        for report in reports
        for each in report.findings
    ]
    return {"healthy": not any(report.is_wrong for report in reports), "findings": items}


def _text(finding: Finding) -> str:
    if finding.since is None:
        return finding.text
    since = datetime.fromtimestamp(finding.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"{finding.text} {finding.mark} {since}."
