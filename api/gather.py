"""Natural batching: one call for all that arrived while the call before it was under way. No timer, no tuning."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from jobs.errors import StoreUnavailableError

Item = TypeVar("Item")
Answer = TypeVar("Answer")

GATHER_MOST = 256
"""Submits or polls in one round trip to the store: bounds how long the store is held by one script."""


class Gather(Generic[Item, Answer]):
    """Gathers items for ``flush``, which answers each of them, in order; at most ``most`` a call."""

    def __init__(self, flush: Callable[[list[Item]], Awaitable[list[Answer]]], most: int) -> None:
        self._flush = flush
        self._most = most
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._drain: asyncio.Task[None] | None = None

    def ask(self, item: Item) -> asyncio.Future[Answer]:
        """The answer to ``item``, or the error that its call met."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((item, future))
        if self._drain is None:
            self._drain = loop.create_task(self._run())
        return future

    async def _run(self) -> None:
        try:
            while self._waiting:
                taken = self._waiting[: self._most]
                del self._waiting[: self._most]
                await self._call(taken)
        finally:
            self._drain = None

    async def _call(self, taken: list[tuple[Item, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._flush([item for item, _ in taken])
            pairs = list(zip(taken, answers, strict=True))
        except StoreUnavailableError as error:  # who has waited beside this call would only meet the same, later
            self._fail([*taken, *self._waiting], error)
            self._waiting.clear()
            return
        except Exception as error:  # noqa: BLE001 - each asker gets it
            self._fail(taken, error)
            return
        for (_, future), answer in pairs:
            if not future.done():  # an asker may have gone away
                future.set_result(answer)

    @staticmethod
    def _fail(asked: list[tuple[Item, asyncio.Future[Answer]]], error: Exception) -> None:
        for _, future in asked:
            if not future.done():
                future.set_exception(error)
