"""Bodies that are still arriving, and the watch that ends those which take too long.

A timer for each request would cost more than reading its body: nearly all bodies are there at once. So arrivals are
written down, and one watch looks at them once a second; a body is given up between its timeout and a second later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any, TypeVar

from jobs.errors import RequestTimeoutError

T = TypeVar("T")

WATCH_S = 1.0


class Arrivals:
    """The bodies of one gateway that are still arriving."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._since: dict[asyncio.Task[Any], float] = {}

    async def bounded(self, arriving: Awaitable[T]) -> T:
        """What ``arriving`` gives; RequestTimeoutError when it took too long."""
        task = asyncio.current_task()
        if task is None:  # every request runs in a task
            return await arriving
        self._since[task] = time.monotonic()
        try:
            return await arriving
        except asyncio.CancelledError:
            if task in self._since:  # cancelled by somebody else
                raise
            task.uncancel()
            raise RequestTimeoutError(f"The body did not arrive within {self._timeout_s:g} s.") from None
        finally:
            self._since.pop(task, None)

    async def watch(self) -> None:
        """Give up bodies that take too long, for ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            self.give_up(time.monotonic())

    def give_up(self, now_s: float) -> None:
        """Give up what began to arrive longer ago than the timeout."""
        late = [task for task, since in self._since.items() if now_s - since > self._timeout_s]
        for task in late:
            del self._since[task]
            task.cancel()
