"""The folder of one `penstock up`: locked while it runs, so that two never write the same files.

The lock is the kernel's (``flock``) and ends with its process, however that ends; the pid in the file is only
for the message. Sub-folders: ``redis`` (append-only file), ``logs`` (one file for each role).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from jobs.errors import SetupError


class DataFolder:
    """A data folder that this process holds, until `close` or the process's end."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.logs = self.path / "logs"
        self.redis = self.path / "redis"
        try:
            self._make()
            self._lock = (self.path / "lock").open("a+", encoding="ascii")
        except OSError as error:
            line = f"cannot write to the data folder {self.path} ({error.strerror}): set PENSTOCK_DATA"
            raise SetupError(line) from None
        try:
            self._take(self._lock)
        except SetupError:
            self._lock.close()
            raise

    def close(self) -> None:
        """Give the folder back."""
        self._lock.close()

    def _make(self) -> None:
        for folder in (self.path, self.logs, self.redis):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _take(self, lock: TextIO) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            pid = lock.read().strip() or "unknown"
            raise SetupError(
                f"{self.path} is in use by the `penstock up` with pid {pid}:"
                " stop it, or set PENSTOCK_DATA to another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
