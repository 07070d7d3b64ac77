"""A day with incidents, judged minute by minute by the default rules: python -m benchmarks.alerts_day.

The day is that of tests/alerts/day.py: 23,000 tasks of a shop through decoder, writer and judge with a made clock, with
what is normal (a quiet night, a rush, a rolling restart) and fourteen incidents. The table has the alerts of each. Ends
with status 1 where an incident was missed, or an alert has none.
"""

import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measuring import columns, row
from celery_monitor.store.engine import open_store
from tests.alerts.day import Fired, make_day, verdicts


def _clock(minute: float | None) -> str:
    return "-" if minute is None else f"{int(minute) // 60:02}:{int(minute) % 60:02}"


def _alert(each: Fired) -> str:
    return f"{each.rule} ({_clock(each.began)} to {_clock(each.ended)})"


def main() -> int:
    began = time.process_time()
    with TemporaryDirectory() as folder, closing(open_store(f"sqlite:///{Path(folder, 'record.db')}")) as store:
        fired = make_day(store).all_fired()
    found, unexplained = verdicts(fired)
    columns("incident", "from", "alerts", "right")
    for each in found:
        name = each.planned.incident.__name__.replace("_", " ")
        alerts = ", ".join(map(_alert, each.fired)) or "none"
        row(name, _clock(each.planned.begin), alerts, "yes" if each.is_right else "NO")
    print(f"\n{len(fired)} alerts; without an incident: {', '.join(map(_alert, unexplained)) or 'none'}.")
    print(f"{time.process_time() - began:.0f} s of CPU")
    return 0 if all(each.is_right for each in found) and not unexplained else 1


if __name__ == "__main__":
    sys.exit(main())
