"""A part of a day, judged minute by minute by the default rules. benchmarks/alerts_day.py has all of it."""

from contextlib import closing

import pytest

from celery_monitor.core.alerts.kinds import DEFAULT_RULES
from celery_monitor.store.engine import open_store
from tests.alerts.day import PLAN, make_day, verdicts

BEGIN, END = 590, 870  # a worker that is killed, all that are down, a receiver that is behind, and a deep queue


@pytest.mark.slow
def test_default_rules_find_each_incident_and_nothing_else(sqlite_url: str) -> None:
    with closing(open_store(sqlite_url)) as store:
        fired = make_day(store, BEGIN, END).all_fired()
    found, unexplained = verdicts(fired, BEGIN, END)
    assert [(each.planned.incident.__name__, each.fired) for each in found if not each.is_right] == []
    assert len(found) == 4
    assert unexplained == []
    assert all(each.ended is not None for each in fired)


def test_every_default_rule_but_those_of_age_and_disk_has_an_incident() -> None:
    """How long a message has waited is a sample like the depth, and the disk is not part of a record."""
    planned = {rule for each in PLAN for rule in each.rules}
    assert set(DEFAULT_RULES) - planned == {"Old message", "Disk nearly full"}
