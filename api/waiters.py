"""Those who wait for a result (``Prefer: wait``), woken by the store: it publishes the ids of jobs as they end."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict

import redis.asyncio
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

_RECONNECT_S = 0.5


class Waiters:
    """Futures by task id; one subscription serves them all."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str) -> None:
        self._client = client
        self._channel = f"{namespace}:ended"
        self.closed = False
        """Whether nobody is to wait any more."""
        self._waiting: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def enter(self, task_id: str) -> asyncio.Future[None]:
        """A future that is done when the job may have ended; give it back with ``leave``."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[task_id].add(future)
        return future

    def close(self) -> None:
        """Wake everybody for good: the gateway ends."""
        self.closed = True
        self._wake_all()

    def leave(self, task_id: str, future: asyncio.Future[None]) -> None:
        """Wait no longer."""
        waiting = self._waiting.get(task_id)
        if waiting is not None:
            waiting.discard(future)
            if not waiting:
                del self._waiting[task_id]

    async def listen(self) -> None:
        """Wake whom the store names, for ever; after a gap everybody is woken to look for himself."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError):
                log.warning("subscription lost: the store did not answer")
            self._wake_all()
            await asyncio.sleep(_RECONNECT_S)

    async def _listen(self) -> None:
        async with self._client.pubsub() as subscription:
            await subscription.subscribe(self._channel)
            while True:
                message = await subscription.get_message(timeout=None)
                if message is None:
                    continue
                if message["type"] == "subscribe":  # from here on nothing is missed; before, something may have been
                    self._wake_all()
                elif self._waiting:
                    self._wake(message["data"].decode())

    def _wake(self, task_ids: str) -> None:
        for task_id in task_ids.split(" "):
            for future in self._waiting.get(task_id, ()):
                if not future.done():
                    future.set_result(None)

    def _wake_all(self) -> None:
        for task_id in list(self._waiting):
            self._wake(task_id)
