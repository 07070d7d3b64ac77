"""The files of the record are its owner's alone, from their first byte: mode 0600, whatever the umask is."""

import os
import stat
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp
from typing import BinaryIO

FILE_MODE = 0o600
FOLDER_MODE = 0o700
OTHERS = 0o077
BESIDE = ("", "-wal", "-shm", "-journal")  # SQLite gives new ones the mode of the database


def make_private(path: Path) -> None:
    """Creates the database, empty, if it is missing, and takes the rights of others from it and what is beside it.

    What belongs to somebody else or cannot be changed stays as it is: doctor says so. Nothing is created where the
    folder is missing or closed: SQLite says that better.
    """
    with suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, FILE_MODE))
    for file in _existing(path):
        with suppress(OSError):
            if open_to_others(file):
                file.chmod(stat.S_IMODE(file.stat().st_mode) & ~OTHERS)


def make_private_folder(path: Path) -> None:
    """Creates a folder, and those above it, which nobody else can open; what exists stays as it is. Raises OSError."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(FOLDER_MODE, exist_ok=True)


def open_private(path: Path) -> BinaryIO:
    """A file to append to, which nobody else can read. Raises OSError."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, FILE_MODE), "ab")


def unnamed_file(content: bytes) -> int:
    """The descriptor of a file in memory, if the system has such, which the program that replaces ours inherits."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("settings", 0)
    else:
        descriptor, path = mkstemp()
        Path(path).unlink()
        os.set_inheritable(descriptor, True)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    return descriptor


def exposed(path: Path) -> list[Path]:
    """The database and what is beside it, as far as others may read or write it."""
    return [file for file in _existing(path) if open_to_others(file)]


def open_to_others(path: Path) -> bool:
    return bool(stat.S_IMODE(path.stat().st_mode) & OTHERS)


def _existing(path: Path) -> list[Path]:
    return [file for suffix in BESIDE if (file := path.with_name(path.name + suffix)).is_file()]
