"""The gateway's side of the broker: publishing from a thread of its own, so that a hung broker holds up nobody."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from celery import Celery

from jobs.commands import MicroBatch
from tasks.publisher import BROKER_ERRORS, Publisher

log = logging.getLogger(__name__)

HUNG_AFTER_S = 2.0
"""A call that takes longer means that the broker is away, whatever its socket says."""
PING_S = 1.0
BACKLOG_MAX = 64
"""Calls that may wait for the thread; publishes beyond are left to the sweeper."""


class Broker:
    """Publishes micro-batches and knows whether the broker is away.

    The thread is a daemon: one that hangs in a broker's socket does not hold up the end of the process.
    """

    def __init__(self, app: Celery) -> None:
        self._publisher = Publisher(app)
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._calls = queue.SimpleQueue()
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="broker", daemon=True)
        self._thread.start()

    @property
    def away(self) -> bool:
        """Whether the broker is known not to take messages."""
        since = self._busy_since
        return self._publisher.failed_at is not None or (
            since is not None and time.monotonic() - since > HUNG_AFTER_S
        )

    @property
    def returns(self) -> int:
        """How often it took messages again after a failure: what was published in between may be lost."""
        return self._publisher.returns

    def publish(self, microbatches: list[MicroBatch]) -> None:
        """Hand micro-batches to the thread and return at once."""
        if not microbatches:
            return
        if self._calls.qsize() >= BACKLOG_MAX:
            log.warning("publish left to the sweeper: the broker is slow", extra={"count": len(microbatches)})
            return
        self._call(self._publisher.publish, microbatches)

    async def empty(self, name: str) -> bool:
        """Whether the broker says that nothing waits in a queue; False where it says nothing."""
        if self.away:
            return False
        try:
            depth = await asyncio.wait_for(asyncio.wrap_future(self._call(self._publisher.depth, name)), HUNG_AFTER_S)
        except BROKER_ERRORS:  # among them TimeoutError, which is an OSError
            return False
        return bool(depth == 0)

    async def watch(self) -> None:
        """Ask a broker that is away, once a second, whether it is back."""
        await asyncio.wrap_future(self._call(self._publisher.ping))
        while True:
            await asyncio.sleep(PING_S)
            if self._publisher.failed_at is not None:
                await asyncio.wrap_future(self._call(self._publisher.ping))

    def close(self) -> None:
        """Publish what waits, but not for ever: the sweeper of another gateway settles the rest."""
        self._calls.put(None)
        self._thread.join(HUNG_AFTER_S)

    def _call(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._calls.put((future, call, arguments))
        return future

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call, arguments = item
            if not future.set_running_or_notify_cancel():
                continue
            self._busy_since = time.monotonic()
            try:
                future.set_result(call(*arguments))
            except Exception as error:
                if not isinstance(error, BROKER_ERRORS):
                    log.exception("broker thread")
                future.set_exception(error)
            finally:
                self._busy_since = None
