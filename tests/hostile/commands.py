"""What a store is asked while something happens, as its MONITOR tells it."""

from __future__ import annotations

import secrets
import threading
from typing import Self

import redis

from tests.system import END_S, System


class Commands:
    """The commands that reach the store inside a ``with``, those of the system's own duties among them."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._last = secrets.token_hex(16)
        self._heard: list[str] = []
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._listening.wait(END_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._system.redis.echo(self._last)
        self._thread.join(END_S)
        assert not self._thread.is_alive()

    def naming(self, *texts: str) -> list[str]:
        """The commands that hold one of these texts."""
        return [command for command in self._heard if any(text in command for text in texts)]

    def _listen(self) -> None:
        with redis.Redis.from_url(self._system.store.url, socket_timeout=END_S).monitor() as monitor:  # type: ignore[no-untyped-call]
            self._listening.set()
            for said in monitor.listen():
                if self._last in said["command"]:
                    return
                self._heard.append(said["command"])
