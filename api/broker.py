"""The gateway's side of the broker: publishing from a thread of its own, so that a hung broker holds up nobody."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor

from celery import Celery

from jobs.commands import MicroBatch
from tasks.publisher import BROKER_ERRORS, Publisher

log = logging.getLogger(__name__)

HUNG_AFTER_S = 2.0
"""A publish that takes longer means that the broker is away, whatever its socket says."""
PING_S = 1.0
BACKLOG_MAX = 64
"""Publishes that may wait for the thread; what is beyond is left to the sweeper."""


class Broker:
    """Publishes micro-batches and knows whether the broker is away."""

    def __init__(self, app: Celery) -> None:
        self._publisher = Publisher(app)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="broker")
        self._waiting = 0
        self._busy_since: float | None = None

    @property
    def away(self) -> bool:
        """Whether the broker is known not to take messages."""
        since = self._busy_since
        return self._publisher.failed_at is not None or (
            since is not None and time.monotonic() - since > HUNG_AFTER_S
        )

    def publish(self, microbatches: list[MicroBatch]) -> None:
        """Hand micro-batches to the thread and return at once."""
        if not microbatches:
            return
        if self._waiting >= BACKLOG_MAX:
            log.warning("publish left to the sweeper: the broker is slow", extra={"count": len(microbatches)})
            return
        self._waiting += 1
        self._thread.submit(self._publish, microbatches)

    async def empty(self, queue: str) -> bool:
        """Whether the broker says that nothing waits in a queue; False where it says nothing."""
        try:
            work = asyncio.get_running_loop().run_in_executor(self._thread, self._publisher.depth, queue)
            return await asyncio.wait_for(work, HUNG_AFTER_S) == 0
        except BROKER_ERRORS:  # among them TimeoutError, which is an OSError
            return False

    async def watch(self) -> None:
        """Ask a broker that is away, once a second, whether it is back."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._timed, self._publisher.ping)
        while True:
            await asyncio.sleep(PING_S)
            if self._publisher.failed_at is not None:
                await loop.run_in_executor(self._thread, self._timed, self._publisher.ping)

    def close(self) -> None:
        """Publish what waits, but not for ever: the sweeper of another gateway settles the rest."""
        self._thread.shutdown(wait=not self.away, cancel_futures=self.away)

    def _publish(self, microbatches: list[MicroBatch]) -> None:
        self._waiting -= 1
        self._timed(self._publisher.publish, microbatches)

    def _timed(self, call: object, *arguments: object) -> None:
        self._busy_since = time.monotonic()
        try:
            call(*arguments)  # type: ignore[operator]
        except Exception:
            log.exception("broker thread")
        finally:
            self._busy_since = None
