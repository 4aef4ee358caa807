"""What is seen from beside: which jobs ended and when, and how often each was run.

``Endings`` listens to the store's channel of ended jobs. ``Executions`` reads the store's own command stream
(MONITOR): the members of every inference that a worker brought to its commit, whether that was accepted or fenced
off.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any, Self

import redis

from jobs.connect import redis_client
from tests.servers import LOOPBACK
from tests.system import System

STEP_S = 0.2
COMMIT = b' "inference" "postprocess" '
IDS = 11
_WORD = re.compile(rb'"((?:[^"\\]|\\.)*)"')


class Endings:
    """When each job was announced as ended, and how often. A store that was away is listened to again."""

    def __init__(self, system: System) -> None:
        self._url, self._channel = system.store.url, f"{system.namespace}:ended"
        self._thread = threading.Thread(target=self._listen, name="endings")
        self._stop = threading.Event()
        self._ready = threading.Event()
        self.at: dict[str, float] = {}
        """Monotonic instant of the first announcement of a task id."""
        self.times: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(5.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def doubled(self) -> list[str]:
        """Jobs that ended more than once."""
        return [task_id for task_id, times in self.times.items() if times > 1]

    def _listen(self) -> None:
        while not self._stop.is_set():
            client = redis_client(self._url, 5.0)
            with suppress(redis.RedisError, OSError):
                self._hear(client)
            with suppress(redis.RedisError, OSError):
                client.close()
            self._stop.wait(STEP_S)

    def _hear(self, client: redis.Redis) -> None:
        with client.pubsub() as channel:  # type: ignore[no-untyped-call]
            channel.subscribe(self._channel)
            while not self._stop.is_set():
                message: Any = channel.get_message(timeout=STEP_S)
                if message is None:
                    continue
                self._ready.set()
                if message["type"] == "message":
                    self._note(message["data"].decode().split())

    def _note(self, task_ids: list[str]) -> None:
        now = time.monotonic()
        for task_id in task_ids:
            self.at.setdefault(task_id, now)
            self.times[task_id] += 1


class Executions:
    """Counts, on a connection of its own, how often each job was carried through inference."""

    def __init__(self, system: System) -> None:
        port = int(system.store.url.rsplit(":", 1)[1].split("/")[0])
        self._connection = socket.create_connection((LOOPBACK, port))
        self._connection.sendall(b"MONITOR\r\n")
        self._thread = threading.Thread(target=self._count, name="executions")
        self._closing = False
        self.times: Counter[str] = Counter()
        self.whole = True
        """False once the store's connection broke: from then on nothing is counted."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._connection.close()

    @property
    def jobs(self) -> int:
        """Executions of all jobs."""
        return self.times.total()

    def _count(self) -> None:
        with suppress(OSError), self._connection.makefile("rb") as lines:
            for line in lines:
                if COMMIT in line:
                    # EVALSHA sha 1 prefix number epoch stage following reference stages cost ids...
                    self.times.update(_WORD.findall(line)[IDS].decode().split())
        self.whole = self._closing
