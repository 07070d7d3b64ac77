"""The lease on a record on SQLite: a lock file with one holder, none left behind, free when its holder is killed."""

import subprocess
import sys
from contextlib import closing
from pathlib import Path

from sqlalchemy import select

from celery_monitor.store import schema
from celery_monitor.store.engine import open_store
from celery_monitor.store.lease import FileLock, make_lease
from celery_monitor.store.terms import cluster_id


def test_who_writes_sqlite_fills_no_connection_that_others_use(tmp_path: Path) -> None:
    with closing(open_store(f"sqlite:///{tmp_path}/record.db")) as store:
        store.engine.dispose()  # what opening it left
        with closing(make_lease(store, "shop")) as lease:
            with lease.store.begin() as connection:
                number = cluster_id(lease.store, connection, "shop")
            assert store.engine.pool.checkedin() == 0  # type: ignore[attr-defined]
            with store.read() as connection:
                assert connection.execute(select(schema.cluster.c.id)).scalar() == number


HOLD = "import sys; from pathlib import Path; from celery_monitor.store.lease import FileLock\n"
HOLD += "lock = FileLock(Path(sys.argv[1])); print(lock.acquire(), flush=True); sys.stdin.read()"


def test_one_holds_it_and_the_next_gets_it_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "record.lock"
    first, second = FileLock(path), FileLock(path)
    assert first.acquire()
    assert first.acquire()
    assert not second.acquire()
    first.release()
    assert not path.exists()
    assert second.acquire()
    assert not first.acquire()
    assert second.held
    second.release()


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "record.lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        lock = FileLock(path)
        assert not lock.acquire()
        holder.kill()
        holder.wait(60)
        assert lock.acquire()
        lock.release()
