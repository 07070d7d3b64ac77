"""Bytes that an ordinary task takes, all indexes in: python benchmarks/bench_storage.py [--tasks N] [--postgresql URL].

An ordinary task was received, started and ended; it has a UUID, a name, short arguments and a short result; one in
twenty failed with a traceback. 100,000 are written by the receiver's own writer, in batches as they would come; the
size of that record is said, and that of the larger one into which its rows are copied.
"""

import argparse
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import bench_partitions
from benchmarks.record import (
    WRITTEN,
    timed_fill,
)
from celery_monitor.store.engine import Store, open_store
from celery_monitor.store.tasks.page import count_states

AIM = 400


def of_file(store: Store) -> dict[str, int]:
    """Bytes by table and index; of the whole file where this SQLite cannot tell."""
    path = store.engine.url.database
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        pages, size = (connection.execute(f"PRAGMA {each}").fetchone()[0] for each in ("page_count", "page_size"))
        try:
            rows = connection.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC").fetchall()
        except sqlite3.OperationalError:  # built without dbstat
            return {"the file": pages * size}
    small = sum(number for _, number in rows[6:])
    return dict(rows[:6]) | {"all else": small + pages * size - sum(number for _, number in rows)}


def report(store: Store, sizes: dict[str, int]) -> None:
    tasks = sum(count_states(store).values())
    whole = sum(sizes.values()) / tasks
    told = ", ".join(f"{name} {number / tasks:.0f}" for name, number in sizes.items())
    print(f"| {store.engine.dialect.name} | {tasks:,} | {whole:.0f} | {told} |", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--tasks", type=int, default=1_000_000)
    options.add_argument("--postgresql", help="an empty database")
    given = options.parse_args()
    print(f"Bytes per task, indexes in; aimed at: {AIM} on SQLite; SQLite {sqlite3.sqlite_version}\n")
    print("| database | tasks | bytes per task | of which |\n|---|---|---|---|")
    with TemporaryDirectory() as folder:
        for tasks in (WRITTEN, given.tasks):
            with closing(open_store(f"sqlite:///{folder}/{tasks}.db")) as store:
                timed_fill(store, tasks)
                report(store, of_file(store))
    if given.postgresql:
        with closing(open_store(given.postgresql)) as store:
            timed_fill(store, given.tasks)
            report(store, bench_partitions.size(store))
    print(f"\nload {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
