"""Intermediates: what one stage leaves for the next, out of the broker's messages.

A small one lies inside the micro-batch's record, so it costs no round trip of its own. A larger one is a file on
tmpfs while all workers share that tmpfs, else a key of the store. A reference says which; one that cannot be
read (another host's file, an expired key) is no failure: the micro-batch starts again at preprocess.

    b"i" + bytes         in the record
    b"f" + mount/name    a file, and the tmpfs it lies on
    b"k" + key           a key of the store, with a TTL

Not promised: that an intermediate outlives its host. The janitor removes files that nobody fetched.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path

from redis.exceptions import RedisError

from jobs import commands
from jobs.errors import StoreUnavailableError
from jobs.settings import Settings
from jobs.store import JobStore

INLINE_BYTES_MAX = 64 * 1024
TTL_S = 3600
_TMPFS = Path("/dev/shm")  # noqa: S108 - Linux's tmpfs; the folder in it is ours alone
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def mount_id() -> str:
    """Names the tmpfs of this machine or container: two workers with the same name see the same files."""
    try:
        return f"{_BOOT_ID.read_text().strip()}-{_TMPFS.stat().st_dev}"
    except OSError:
        return ""


class Intermediates:
    """Puts and gets intermediates for one worker; safe to share between threads."""

    def __init__(self, store: JobStore, settings: Settings) -> None:
        self._store = store
        self._client = store.client
        self._mount = mount_id()
        self._folder = _TMPFS / f"penstock-{os.getuid()}-{settings.namespace}"
        self.shared = False
        """Whether every worker sees this tmpfs; the heartbeat keeps it true to the facts."""

    @property
    def mount(self) -> str:
        """Name of this worker's tmpfs; empty where there is none."""
        return self._mount

    def put(self, name: str, data: bytes) -> bytes:
        """Keep ``data`` under a name that is never used twice; the reference to it. StoreUnavailableError."""
        if len(data) <= INLINE_BYTES_MAX:
            return b"i" + data
        if self.shared:
            with contextlib.suppress(OSError):
                return self._put_file(name, data)
        self._store.run(commands.keep(name, data, TTL_S))
        return b"k" + f"{self._store.prefix}intermediate:{name}".encode()

    def get(self, reference: bytes) -> bytes | None:
        """What a reference refers to; None when it cannot be read here or any more. StoreUnavailableError."""
        kind, rest = reference[:1], reference[1:]
        if kind == b"i":
            return rest
        if kind == b"k":
            return self._get_key(rest)
        try:
            return self._path(rest).read_bytes()
        except (OSError, ValueError):
            return None

    def drop(self, reference: bytes) -> None:
        """Forget an intermediate that nobody will ask for again."""
        kind, rest = reference[:1], reference[1:]
        if kind == b"k":
            with contextlib.suppress(RedisError, OSError):  # its TTL ends it
                self._client.unlink(rest)
        elif kind == b"f":
            with contextlib.suppress(OSError, ValueError):
                self._path(rest).unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove files older than their TTL: what crashed workers left."""
        oldest = time.time() - TTL_S
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                if path.stat().st_mtime < oldest:
                    path.unlink(missing_ok=True)

    def _get_key(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._client.get(key)  # type: ignore[assignment]
        except (RedisError, OSError) as error:
            raise StoreUnavailableError("The job store did not give an intermediate.") from error
        return value

    def _put_file(self, name: str, data: bytes) -> bytes:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._folder.lstat().st_uid != os.getuid():
            raise PermissionError(self._folder)  # somebody else was there first
        # Another installation of the same user and namespace may count the same numbers on the same tmpfs.
        path = self._folder / f"{name}-{secrets.token_hex(8)}"
        try:
            path.write_bytes(data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return b"f" + f"{self._mount}/{path.name}".encode()

    def _path(self, rest: bytes) -> Path:
        mount, _, name = rest.decode().partition("/")
        if mount != self._mount or "/" in name:
            raise ValueError(mount)
        return self._folder / name
