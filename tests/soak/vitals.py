"""What each process holds, read from /proc while it runs: memory of its own, descriptors, threads.

Memory is what is anonymous (``smaps_rollup``), so that shared libraries and the page cache do not count. Connections
that clients opened to the gateway are told apart from its own descriptors: their number is the load's business.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import redis

from jobs.connect import redis_client
from tests.system import Role, System


class Sample(NamedTuple):
    """One look at one process; ``at`` is a monotonic instant."""

    at: float
    own_bytes: int
    descriptors: int
    threads: int
    clients: int
    """Connections that others opened to it."""


class Who(NamedTuple):
    """A process: a role and the pid that it had."""

    role: str
    pid: int


class Vitals:
    """Looks at every process of a system, and at the store's connections, every ``every_s`` seconds."""

    def __init__(self, system: System, every_s: float) -> None:
        self._system = system
        self._every_s = every_s
        self._redis = redis_client(system.store.url, 5.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vitals")
        self.samples: defaultdict[Who, list[Sample]] = defaultdict(list)
        self.connections: list[tuple[float, int]] = []
        """When, and how many clients the store had."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._redis.close()

    def write(self, file: Path) -> None:
        """Write every sample, for whoever looks at a failure."""
        of_each = {f"{who.role} {who.pid}": samples for who, samples in self.samples.items()}
        file.write_text(json.dumps({"fields": Sample._fields, **of_each, "store connections": self.connections}))

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            for role in self._system.roles:
                self._look_at(role)
            with contextlib.suppress(redis.RedisError, OSError):
                self.connections.append((time.monotonic(), len(self._redis.client_list())))

    def _look_at(self, role: Role) -> None:
        port = self._system.port if role is self._system.gateway else 0
        with contextlib.suppress(AssertionError, OSError):  # it ended while we looked
            self.samples[Who(role.folder.name, role.pid)].append(look_at(role.pid, port))


def look_at(pid: int, served_port: int = 0) -> Sample:
    """Look at a process; sockets on ``served_port`` are its clients'. OSError where it is gone."""
    folder = Path(f"/proc/{pid}")
    own = _kilobytes(folder / "smaps_rollup", "Anonymous") * 1024
    links = [_link(each) for each in (folder / "fd").iterdir()]
    served = _served(folder, served_port) if served_port else set()
    clients = sum(link in served for link in links)
    threads = sum(1 for _ in (folder / "task").iterdir())
    return Sample(time.monotonic(), own, len(links) - clients, threads, clients)


def _kilobytes(file: Path, field: str) -> int:
    fields: Mapping[str, str] = dict(
        line.split(":", 1) for line in file.read_text().splitlines() if ":" in line and not line[0].isdigit()
    )
    return int(fields[field].split()[0])


def _link(entry: Path) -> str:
    with contextlib.suppress(FileNotFoundError):  # closed since the folder was read
        return str(entry.readlink())
    return ""


def _served(folder: Path, port: int) -> set[str]:
    """Sockets of accepted connections: local port is ours, and there is somebody on the other side."""
    rows = (line.split() for line in (folder / "net" / "tcp").read_text().splitlines()[1:])
    return {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] != LISTENING}


LISTENING = "0A"
"""The state in /proc/net/tcp of a socket that accepts."""
