"""The right to write a record on SQLite."""

from contextlib import closing
from pathlib import Path

from sqlalchemy import select

from celery_monitor.store import schema
from celery_monitor.store.engine import open_store
from celery_monitor.store.lease import lease_of
from celery_monitor.store.terms import cluster_id


def test_who_writes_sqlite_fills_no_connection_that_others_use(tmp_path: Path) -> None:
    with closing(open_store(f"sqlite:///{tmp_path}/record.db")) as store:
        store.engine.dispose()  # what opening it left
        with closing(lease_of(store, "shop")) as lease:
            with lease.store.begin() as connection:
                number = cluster_id(lease.store, connection, "shop")
            assert store.engine.pool.checkedin() == 0  # type: ignore[attr-defined]
            with store.read() as connection:
                assert connection.execute(select(schema.cluster.c.id)).scalar() == number
