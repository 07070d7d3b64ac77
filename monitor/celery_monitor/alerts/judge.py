"""Judges the rules of one cluster every few seconds, from the facts that the sentence of health is made of."""

import threading
import time
from collections.abc import Callable, Sequence

from msgspec import structs

from celery_monitor.alerts.messages import shortened
from celery_monitor.alerts.rules_file import read_rules_file
from celery_monitor.core.alerts.judging import JudgingRound, Standing, advance, is_suspended
from celery_monitor.core.alerts.kinds import KINDS
from celery_monitor.receiver.helper_failures import ALERTS, HelperFailures
from celery_monitor.receiver.pace import Pace, Steps
from celery_monitor.records.alert import Alert, AlertState, Change, Rule
from celery_monitor.settings import Settings
from celery_monitor.store.alerts.facts import FactsReader, began
from celery_monitor.store.alerts.rules import read_channels, read_rules, save_file_rules
from celery_monitor.store.alerts.states import delete_old_alerts, read_standing, save_changes
from celery_monitor.store.engine import Store
from celery_monitor.store.rollups.failures import read_latest_failure
from celery_monitor.store.tasks.detail import read_task

JUDGE_SECONDS = 3.0
UNUSED_SECONDS = 6.0  # while nobody uses the dashboard and no alert is pending
TIDY_SECONDS = 3600.0
MOST_DETAILS = 20  # tracebacks that are read at a time; of a storm, a digest shows none
FAILURE_KINDS = frozenset({"new failure", "regressed failure", "many failures"})


class Judge:
    """The thread that judges. Of several receivers only the one that leads has it."""

    def __init__(
        self, store: Store, cluster: str, settings: Settings, helpers: HelperFailures, pace: Pace | None = None
    ) -> None:
        self._pace = pace or Pace()
        self._steps = Steps(ALERTS, "rules are not judged", helpers, self._pace)
        self._on_message: Callable[[], None] = lambda: None
        self._store = store
        self._cluster = cluster
        self._settings = settings
        self._facts = FactsReader(store, cluster)
        self._began: float | None = None
        self._pending = False
        self._tidy_at = 0.0

    def on_message(self, call: Callable[[], None]) -> None:
        """Sets what is called after messages may have been stored."""
        self._on_message = call

    def wake(self) -> None:
        """Judges at once, as a worker came or left. Thread-safe."""
        self._steps.wake()

    def run(self, stop: threading.Event) -> None:
        """Until ``stop`` is set."""
        save_file_rules(self._store, read_rules_file(self._settings.rules) if self._settings.rules else ())
        self._steps.run(stop, self._step)

    def _step(self, now: float) -> float:
        if self.judge(now):
            self._on_message()
        self._tidy()
        if self._pending:
            return JUDGE_SECONDS
        rest = self._pace.pause(JUDGE_SECONDS)
        return rest if self._pace.idle else min(rest, UNUSED_SECONDS)

    def judge(self, now: float) -> list[Alert]:
        """One round; returns the alerts that it has made fire or end. Raises StoreUnavailable."""
        rules = read_rules(self._store)
        enabled = [rule for rule in rules if rule.enabled]
        if self._began is None:
            self._began = began(self._store, self._cluster, now)
        facts = self._facts.read(enabled, now)
        standing = read_standing(self._store, self._cluster, now - max(rule.cooldown for rule in rules))
        changes: list[Change] = []
        this_round = JudgingRound(facts)
        for rule in rules:
            known = standing.pop(rule.name, Standing())
            suspended = rule.enabled and is_suspended(KINDS[rule.kind], facts, self._began)
            measured = None if suspended else this_round.measure(rule) if rule.enabled else []
            changes += advance(rule, self._cluster, known, measured, now)
        changes += [_without_rule(alert, now) for each in standing.values() for alert in each.alerts.values()]
        self._pending = any(each.alert.state is AlertState.PENDING and not each.removed for each in changes)
        return save_changes(self._store, self._cluster, self._with_details(changes), read_channels(self._store))

    def _with_details(self, changes: Sequence[Change]) -> list[Change]:
        """With the first lines of the traceback of failures that fire now."""
        failing = [each for each in changes if each.transition == "fired" and each.alert.kind in FAILURE_KINDS]
        details = {id(each): self._traceback(int(each.alert.measured.subject)) for each in failing[:MOST_DETAILS]}
        return [
            structs.replace(each, alert=structs.replace(each.alert, detail=details[id(each)]))
            if id(each) in details
            else each
            for each in changes
        ]

    def _traceback(self, group: int) -> str:
        for task in read_latest_failure(self._store, group, 1):
            traceback = read_task(self._store, task.id, self._cluster).traceback
            return shortened(traceback or "")
        return ""

    def _tidy(self) -> None:
        if time.monotonic() >= self._tidy_at:
            self._tidy_at = time.monotonic() + TIDY_SECONDS
            delete_old_alerts(self._store, time.time())


def _without_rule(alert: Alert, now: float) -> Change:
    """The end of an alert whose rule was deleted."""
    gone = Rule(name=alert.rule, kind=alert.kind, enabled=False)
    (change,) = advance(gone, alert.cluster, Standing({alert.measured.subject: alert}), [], now)
    return change
