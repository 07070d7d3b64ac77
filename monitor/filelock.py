"""A file that one process at a time holds, for as long as it lives: what a killed one held is free at once.

The library filelock leaves its file behind.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path


class FileLock:
    """Holds ``path`` between acquire() and release(). Not for folders that several machines share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        return self._handle is not None

    def acquire(self) -> bool:
        """False where another holds it. Raises OSError where the file cannot be made."""
        while self._handle is None:
            # Only read: a file that may not be written can be held all the same.
            handle = os.open(self.path, os.O_RDONLY | os.O_CREAT, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return False
            if self._is_still_there(handle):
                self._handle = handle
            else:  # it was deleted between our two calls, by who held it before
                os.close(handle)
        return True

    def release(self) -> None:
        """Lets others have it, and leaves no file behind."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):
                self.path.unlink()
            os.close(handle)

    def _is_still_there(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self.path.stat())
        except FileNotFoundError:
            return False
