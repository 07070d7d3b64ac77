"""A round of the judge of alerts on a large record: its CPU, with the default rules and with many of all kinds.

    python benchmarks/bench_alerts.py [--tasks N] [--groups N] [--rules N] [--database sqlite:////tmp/million.db]

The record is that of benchmarks/ugly.py, a day of a million tasks through the product's own writer, with failures in so
many groups; with --database it is kept and used again. Judged is for a minute, at the pace of a dashboard that is used.
The CPU is that of the thread. Costly reads are not repeated in every round, so the mean is what counts; the first
round reads everything, also what is usual.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec import structs

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import ugly
from benchmarks.measuring import columns, headed, options, row
from celery_monitor.alerts.judge import JUDGE_SECONDS, Judge
from celery_monitor.core.alerts.kinds import DEFAULT_RULES, KINDS
from celery_monitor.receiver.helper_failures import HelperFailures
from celery_monitor.records.alert import Rule
from celery_monitor.settings import Settings
from celery_monitor.store.alerts.rules import read_rules, save_rule
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.receivers import read_clusters
from celery_monitor.store.rollups.failures import read_failure_groups
from celery_monitor.store.tasks.page import count_states

ROUNDS = 20
WINDOWS = (300.0, 900.0, 3600.0)


def many(count: int) -> list[Rule]:
    """The default rules, and more of the same kinds with scopes and windows of their own."""
    found = list(DEFAULT_RULES.values())
    for number in range(count - len(found)):
        before = found[number % len(DEFAULT_RULES)]
        kind = KINDS[before.kind]
        window = WINDOWS[number % len(WINDOWS)] if kind.window else None
        scope = f"{kind.fields[0]}:*{number % 10}*" if kind.fields else ""
        found.append(structs.replace(before, name=f"{before.name} {number}", scope=scope, window=window))
    return found


def measure(store: Store, cluster: str, title: str, rules: Sequence[Rule]) -> None:
    for rule in read_rules(store):
        save_rule(store, structs.replace(rule, enabled=False, source="page"))
    for rule in rules:
        save_rule(store, structs.replace(rule, enabled=True, source="page"))
    judge, spent = Judge(store, cluster, Settings(), HelperFailures()), []
    for _ in range(ROUNDS + 1):
        began = time.thread_time()
        judge.judge(time.time())
        spent.append((time.thread_time() - began) * 1000)
        time.sleep(JUDGE_SECONDS)
    first, *rest = spent
    figures = (statistics.mean(rest), statistics.median(rest), max(rest))
    row(title, f"{len(rules)}", f"{first:.0f}", *(f"{each:.1f}" for each in figures))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--groups", type=int, default=500)
    parser.add_argument("--rules", type=int, default=50)
    parser.add_argument("--database")
    given = parser.parse_args()
    headed("A round of the judge of alerts")
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory())
        store = stack.enter_context(closing(open_store(given.database or f"sqlite:///{folder}/record.db")))
        if not any(count_states(store).values()):
            ugly.GROUPS = given.groups
            ugly.fill(store, given.tasks)
        ugly.freshen(store)
        (cluster,) = read_clusters(store)
        groups = len(read_failure_groups(store, since=0.0, limit=1000))
        print(f"{sum(count_states(store).values()):,} tasks, {groups} failure groups\n")
        columns("rules", "number", "first, ms", "mean, ms", "median, ms", "slowest, ms")
        measure(store, cluster, "default", many(0))
        measure(store, cluster, "many", many(given.rules))


if __name__ == "__main__":
    main()
