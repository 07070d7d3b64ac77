"""What is written beside the record is its owner's alone, whatever the umask is."""

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from celery_monitor.core.health.checks import RecordFacts, judge_record
from celery_monitor.demo import Demo, _directory
from celery_monitor.files import exposed, make_private, make_private_folder, open_private
from celery_monitor.receiver.sources.buffer import Record, Spool
from celery_monitor.store.engine import connect_only, open_store, with_own_connections
from celery_monitor.store.health import read_record_facts
from celery_monitor.store.lease import FileLock
from celery_monitor.supervise import Program


@pytest.fixture(autouse=True)
def careless() -> Iterator[None]:
    """Every new file would be open to everybody."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    assert found
    return found


def test_database_and_what_is_beside_it_are_closed_while_they_are_written(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/record.db")
    other = with_own_connections(store)
    with store.begin() as connection, other.read() as reading:
        connection.exec_driver_sql("INSERT INTO meta VALUES ('a', 'b')")
        reading.exec_driver_sql("SELECT * FROM meta").all()
        assert modes(tmp_path) == {"record.db": 0o600, "record.db-wal": 0o600, "record.db-shm": 0o600}
    other.close()
    store.close()


def test_database_is_closed_before_its_first_byte(tmp_path: Path) -> None:
    make_private(tmp_path / "record.db")
    assert modes(tmp_path) == {"record.db": 0o600}
    assert (tmp_path / "record.db").stat().st_size == 0


def test_older_record_is_closed_when_it_is_opened(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/record.db"
    with closing(open_store(url)) as store, store.begin() as connection:
        connection.exec_driver_sql("INSERT INTO meta VALUES ('a', 'b')")
        for path in tmp_path.iterdir():
            path.chmod(0o666)
        with closing(connect_only(url)) as again, again.read() as reading:
            reading.exec_driver_sql("SELECT * FROM meta").all()
            assert modes(tmp_path) == {"record.db": 0o600, "record.db-wal": 0o600, "record.db-shm": 0o600}


def test_no_file_is_made_through_somebody_elses_link(tmp_path: Path) -> None:
    (tmp_path / "record.db").symlink_to(tmp_path / "elsewhere")
    make_private(tmp_path / "record.db")
    assert not (tmp_path / "elsewhere").exists()


def test_lock_spool_and_logs_are_closed(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "record.db.shop.lock")
    assert lock.acquire()
    with open_private(tmp_path / "worker.log") as log:
        log.write(b"a line")
    make_private_folder(tmp_path / "a" / "b")
    program = Program(["touch", "written"], {"PATH": os.environ["PATH"]}, tmp_path, tmp_path / "program.log")
    assert program.wait(60) == 0
    found = modes(tmp_path)
    assert {found.pop(name) for name in ("a", "b")} == {0o700}
    assert found == dict.fromkeys(("record.db.shop.lock", "worker.log", "program.log", "written"), 0o600)
    lock.release()


def test_spool_is_closed_with_the_folders_above_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "over" / "spool", 1_000_000)
    assert all(spool.append(Record(at, b"bytes")) for at in (1.5, 2.5))
    assert spool.read()
    spool.commit(spool.position)
    found = modes(tmp_path)
    assert {found.pop(name) for name in ("over", "spool")} == {0o700}
    assert set(found.values()) == {0o600}


def test_folder_of_the_demo_is_closed(tmp_path: Path) -> None:
    with _directory(replace(Demo(), directory=tmp_path / "new" / "demo")) as directory:
        assert directory.is_dir()
        assert modes(tmp_path) == {"new": 0o700, "demo": 0o700}


def test_doctor_names_files_that_others_can_read_and_that_cannot_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/record.db"
    open_store(url).close()
    (tmp_path / "record.db").chmod(0o644)

    def refuse(self: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "chmod", refuse)  # as for another user's file, which root could change
    facts = read_record_facts(url, "shop")
    (found,) = [each for each in judge_record(facts) if each.kind == "files of the database"]
    assert "record.db" in found.text
    assert "chmod 600" in found.then
    assert exposed(tmp_path / "record.db") == [tmp_path / "record.db"]


def test_doctor_is_silent_about_files_that_are_closed() -> None:
    facts = RecordFacts(product="sqlite", version=(3, 45, 1))
    assert "files of the database" not in {each.kind for each in judge_record(facts)}
