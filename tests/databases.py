"""Empty records. Those of SQLite need no migration: to make the tables costs more than most tests do with them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, event

from celery_monitor.store.engine import open_store


@cache
def _empty() -> bytes:
    """The file of a SQLite record with all its tables."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "record.db")
        open_store(f"sqlite:///{file}").close()
        return file.read_bytes()


def empty_record(directory: Path, name: str = "record.db") -> str:
    """The address of a new SQLite record in ``directory``. Raises FileExistsError where one is already."""
    file = directory / name
    with file.open("xb") as new:
        new.write(_empty())
    return f"sqlite:///{file}"


def statements_of_tables(url: str) -> str:
    """What open_store runs in the empty schema of PostgreSQL at ``url`` to make its tables there."""
    psycopg = pytest.importorskip("psycopg")
    made: list[str] = []

    def record(_connection: object, cursor: Any, statement: str, parameters: Any, *_more: object) -> None:
        if statement.split()[0].upper() in {"CREATE", "ALTER", "DROP", "INSERT", "UPDATE", "DELETE"}:
            made.append(psycopg.ClientCursor(cursor.connection).mogrify(statement, parameters or None))

    event.listen(Engine, "before_cursor_execute", record)
    try:
        open_store(url).close()
    finally:
        event.remove(Engine, "before_cursor_execute", record)
    return ";\n".join(made)


@contextmanager
def empty_schema(server: str) -> Iterator[str]:
    """The address of a new PostgreSQL schema, which is dropped afterwards."""
    psycopg = pytest.importorskip("psycopg")
    schema = f"test_{uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        yield f"{server}?options=-csearch_path%3D{schema}"
        connection.execute(f"DROP SCHEMA {schema} CASCADE")
