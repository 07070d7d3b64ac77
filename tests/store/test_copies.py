"""Backup, restore, and the move between SQLite and PostgreSQL: every row of every table is compared."""

import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from celery_monitor.core.filters.parser import parse
from celery_monitor.errors import Conflict, InvalidInput, MonitorError, StoreUnavailable, Unsupported
from celery_monitor.store import migrations, schema
from celery_monitor.store.copies import copy_record, restore_backup, save_backup, sqlite_number
from celery_monitor.store.engine import open_store
from celery_monitor.store.lease import make_lease
from celery_monitor.store.retention.partitions import first_id, partitions
from celery_monitor.store.tasks.page import find_tasks
from tests.factories import NOW, make_id
from tests.store.rows import Rows, all_rows, fill_all, fill_partitions
from tests.store.test_migrations import empty
from tests.store.test_writer import one_task, write
from tests.store.traffic import seed

MANY = 1500  # tasks: several chunks


@pytest.fixture
def filled(sqlite_url: str) -> str:
    """A SQLite record with traffic, and rows in every table."""
    with closing(open_store(sqlite_url)) as store:
        seed(store, MANY)
        fill_all(store)
    return sqlite_url


def rows_of(url: str) -> Rows:
    with closing(open_store(url)) as store:
        return all_rows(store)


def address(file: Path) -> str:
    return f"sqlite:///{file}"


def left_in(directory: Path) -> set[str]:
    return {each.name for each in directory.iterdir()}


def test_a_backup_has_every_row_and_is_restored(filled: str, tmp_path: Path) -> None:
    before = rows_of(filled)
    assert all(before.values())
    file, again = tmp_path / "backup ?.db", tmp_path / "again.db"
    copied = save_backup(filled, file)
    assert copied.tasks == sum(row[-1] for row in before["task_count"])
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert restore_backup(file, address(again), replace=False).tasks == copied.tasks
    assert rows_of(address(again)) == before


def test_a_backup_is_one_moment_while_the_receiver_writes(sqlite_url: str, tmp_path: Path) -> None:
    stop = threading.Event()
    with closing(open_store(sqlite_url)) as store:
        seed(store, 50)

        def keep_writing() -> None:
            number = 1000
            while not stop.is_set():
                write(store, *one_task(number))
                number += 1

        writer = threading.Thread(target=keep_writing)
        writer.start()
        try:
            for number in range(5):
                file = tmp_path / f"{number}.backup"
                save_backup(sqlite_url, file)
                with closing(open_store(address(file))) as copy:
                    rows = all_rows(copy)
                assert sum(row[-1] for row in rows["task_count"]) == len(rows["task"])
        finally:
            stop.set()
            writer.join()


def test_a_record_moves_to_postgresql_and_back(filled: str, postgres_url: str, tmp_path: Path) -> None:
    before = rows_of(filled)
    back = address(tmp_path / "back.db")
    copy_record(filled, postgres_url)
    assert rows_of(postgres_url) == before
    copy_record(postgres_url, back)
    assert rows_of(back) == before


def test_a_moved_record_goes_on(filled: str, postgres_url: str, tmp_path: Path) -> None:
    """The server numbers new rows behind those that came; a repeated event finds its task."""
    back = address(tmp_path / "back.db")
    for source, target in ((filled, postgres_url), (postgres_url, back)):
        copy_record(source, target)
        with closing(open_store(target)) as store:
            known = {each.id for each in find_tasks(store, parse("", NOW), limit=200).items}
            write(store, *one_task(90_001 if target == back else 90_002))
            write(store, *one_task(1))
            found = {each.id for each in find_tasks(store, parse("", NOW), limit=200).items}
            assert found >= known - {make_id(1)}
            with store.begin() as connection:
                for table in (schema.gap, schema.action, schema.saved_view):
                    rows = connection.execute(sa.select(table)).mappings().all()
                    more = {**rows[0], "name": f"one more in {source}"} if "name" in rows[0] else dict(rows[0])
                    del more["id"]
                    largest = max(row["id"] for row in rows)
                    made = connection.execute(table.insert().values(more).returning(table.c.id)).scalar_one()
                    assert made > largest


def test_tasks_of_partitions_get_the_numbers_of_sqlite(postgres_record_url: str, tmp_path: Path) -> None:
    with closing(open_store(postgres_record_url)) as store:
        fill_partitions(store, 1)
        fill_partitions(store, 2)
        before = all_rows(store)
    target = address(tmp_path / "copy.db")
    copy_record(postgres_record_url, target)
    after = rows_of(target)
    for table in ("task", "run"):
        assert len(before[table]) == 6
        expected = [(sqlite_number(row[0]), *row[1:]) for row in before[table]]
        assert sorted(after[table]) == sorted(expected)
        assert all(0 < row[0] < first_id(1) for row in after[table])
    assert after | {"task": [], "run": []} == before | {"task": [], "run": []}


def test_a_backup_replaces_a_record_of_postgresql_with_its_partitions(
    filled: str, postgres_record_url: str, tmp_path: Path
) -> None:
    with closing(open_store(postgres_record_url)) as store:
        seed(store, 30)
        write(store, *one_task(70_000))
    file = tmp_path / "backup.db"
    save_backup(filled, file)
    with pytest.raises(Conflict, match=r"is not empty; give --replace"):
        restore_backup(file, postgres_record_url, replace=False)
    restore_backup(file, postgres_record_url, replace=True)
    assert rows_of(postgres_record_url) == rows_of(filled)
    with closing(open_store(postgres_record_url)) as store, store.read() as connection:
        for cluster in connection.execute(sa.select(schema.task.c.cluster_id).distinct()).scalars().all():
            assert len(partitions(connection, cluster)) == 1


def test_a_record_with_rows_is_kept_unless_it_may_be_replaced(filled: str, tmp_path: Path) -> None:
    file, other = tmp_path / "backup.db", tmp_path / "other.db"
    save_backup(filled, file)
    with closing(open_store(address(other))) as store:
        write(store, *one_task(1))
    with pytest.raises(Conflict, match=r"other.db is not empty; give --replace"):
        restore_backup(file, address(other), replace=False)
    assert len(rows_of(address(other))["task"]) == 1
    with pytest.raises(Conflict, match="exists; choose another name"):
        save_backup(filled, other)
    restore_backup(file, address(other), replace=True)
    assert rows_of(address(other)) == rows_of(filled)


def test_what_runs_on_a_record_keeps_it_from_being_replaced(filled: str, database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    save_backup(filled, file)
    target = database_url if database_url != filled else address(tmp_path / "target.db")
    with closing(open_store(target)) as store:
        write(store, *one_task(1))
        with closing(make_lease(store, "shop")) as lease:
            assert lease.acquire()
            with pytest.raises(Conflict, match=r"the receiver of shop writes .*end it first"):
                restore_backup(file, target, replace=True)
        assert len(all_rows(store)["task"]) == 1
    restore_backup(file, target, replace=True)
    assert rows_of(target) == rows_of(filled)


def test_a_file_that_a_process_reads_is_not_replaced(filled: str, tmp_path: Path) -> None:
    file, target = tmp_path / "backup.db", tmp_path / "target.db"
    save_backup(filled, file)
    with closing(open_store(address(target))) as store:
        write(store, *one_task(1))
    code = "import sys; from celery_monitor.store.engine import open_store; s = open_store(sys.argv[1])\n"
    code += "with s.read() as c: c.exec_driver_sql('SELECT 1 FROM meta')\nprint(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, address(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as web:
        assert web.stdout is not None
        web.stdout.readline()
        with pytest.raises(Conflict, match=r"a process has .* open; end celery-monitor"):
            restore_backup(file, address(target), replace=True)
        web.communicate("", timeout=60)
    assert len(rows_of(address(target))["task"]) == 1


def test_a_damaged_record_can_be_replaced(filled: str, tmp_path: Path) -> None:
    file, target = tmp_path / "backup.db", tmp_path / "target.db"
    save_backup(filled, file)
    shutil.copy(file, target)
    with target.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xff" * 40_000)
    target.with_name("target.db-wal").write_bytes(b"left by a crash")
    with pytest.raises(Conflict, match="not empty"):
        restore_backup(file, address(target), replace=False)
    restore_backup(file, address(target), replace=True)
    assert rows_of(address(target)) == rows_of(filled)


def _not_sqlite(file: Path) -> None:
    file.write_bytes(b"PGDMP" + bytes(5000))


def _empty_file(file: Path) -> None:
    file.write_bytes(b"")


def _stranger(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE song (title TEXT)")


def _cut_off(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


def _damaged(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2 :] = bytes(len(whole) - len(whole) // 2)
    file.write_bytes(whole)


def _newer(file: Path) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_not_sqlite, "is not a backup of celery-monitor"),
        (_empty_file, "is not a backup of celery-monitor"),
        (_stranger, "not a record of celery-monitor"),
        (_cut_off, "is incomplete"),
        (_damaged, "is damaged"),
        (_newer, "newer version of celery-monitor"),
        (Path.unlink, "No such file"),
    ],
)
def test_an_unusable_backup_changes_nothing(
    spoil: object, words: str, filled: str, database_url: str, tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    file = folder / "backup.db"
    save_backup(filled, file)
    if spoil is _stranger:
        file.unlink()
    spoil(file)  # type: ignore[operator]
    target = database_url if database_url != filled else address(tmp_path / "target.db")
    with closing(open_store(target)) as store:
        write(store, *one_task(1))
    before, files = rows_of(target), left_in(tmp_path)
    with pytest.raises(InvalidInput, match=words):
        restore_backup(file, target, replace=True)
    assert rows_of(target) == before
    assert left_in(tmp_path) == files
    assert left_in(folder) <= {"backup.db"}


@pytest.mark.parametrize("revision", ["0008", "0014"])
def test_a_backup_of_an_older_version_is_restored_and_upgraded(
    revision: str, sqlite_url: str, database_url: str, tmp_path: Path
) -> None:
    old = address(tmp_path / "old.db")
    with closing(open_store(old)) as store:
        empty(store)
        with store.begin() as connection:
            migrations.upgrade(connection, revision)
            connection.execute(schema.cluster.insert().values(name="shop"))
    file = tmp_path / "old.backup"
    with closing(sqlite3.connect(tmp_path / "old.db")) as opened:
        opened.execute("PRAGMA journal_mode = DELETE")
    save_backup(old, file)
    digest = file.read_bytes()
    target = address(tmp_path / "new.db") if database_url == sqlite_url else database_url
    restore_backup(file, target, replace=False)
    assert file.read_bytes() == digest
    assert [row[1] for row in rows_of(target)["cluster"]] == ["shop"]


def test_a_full_disk_leaves_no_half_backup(filled: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    command = [sys.executable, "-m", "celery_monitor", "backup", str(folder / "b.db"), "--database", filled]

    def limit() -> None:  # SQLite meets the same error as on a full disk: a write that ends early
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=limit)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: cannot write ")
    assert "check its disk" in done.stderr
    assert left_in(folder) == set()


def test_a_value_that_postgresql_refuses_moves_nothing(sqlite_url: str, postgres_record_url: str) -> None:
    with closing(open_store(sqlite_url)) as store, store.begin() as connection:
        connection.exec_driver_sql("INSERT INTO term (id, kind, text) VALUES (1, 1, 'a')")
        connection.exec_driver_sql("INSERT INTO term (id, kind, text) VALUES (99999999999, 1, 'b')")
    with pytest.raises(MonitorError, match=r"table term: .*out of range|integer out of range"):
        copy_record(sqlite_url, postgres_record_url)
    assert rows_of(postgres_record_url)["term"] == []


def test_an_unreachable_or_missing_database_is_said(filled: str, postgres_url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="refused"):
        copy_record(filled, "postgresql://postgres@127.0.0.1:1/none")
    with pytest.raises(InvalidInput, match="has no record of celery-monitor"):
        copy_record(postgres_url, address(tmp_path / "new.db"))
    with pytest.raises(StoreUnavailable, match="choose another folder"):
        save_backup(filled, tmp_path / "missing" / "b.db")
    with pytest.raises(Unsupported, match="pg_dump"):
        copy_record(postgres_url, postgres_url)
    assert not (tmp_path / "new.db").exists()


def test_the_command_line_saves_and_restores(filled: str, tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "celery_monitor", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = run("backup", "b.db", "--database", filled)
    assert (code, said.split()[0], said.split()[-1]) == (0, "Saved", "b.db.")
    assert run("restore", "b.db")[0] == 0  # to celery-monitor.db here
    code, said = run("restore", "b.db")
    assert code == 2
    assert "celery-monitor.db is not empty; give --replace to delete what it has" in said
    assert run("restore", "b.db", "--replace")[0] == 0
    assert run("import", "sqlite:///b.db", "--database", "sqlite:///c.db")[0] == 0
    assert run("export", "sqlite:///d.db", "--database", "sqlite:///c.db")[0] == 0
    assert rows_of(address(tmp_path / "d.db")) == rows_of(filled)
