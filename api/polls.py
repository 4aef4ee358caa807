"""Polls: a job as it stands, read together with all others that are asked for, or once it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

from api.capacity import Capacity
from api.clock import StoreClock
from api.gather import GATHER_MOST, Gather
from api.http import Header, Request, Send, answer
from api.metrics import Metrics
from api.outlook import outlook
from api.results import is_terminal, render
from api.waiters import Waiters
from jobs import commands
from jobs.commands import View
from jobs.errors import RecordMissingError, ResultGoneError
from jobs.ids import past_retention
from jobs.store import AsyncJobStore

JSON = (b"content-type", b"application/json")


class Polls:
    """One gateway's."""

    def __init__(
        self, store: AsyncJobStore, clock: StoreClock, metrics: Metrics, waiters: Waiters, capacity: Capacity
    ) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._waiters = waiters
        self._capacity = capacity
        self._asked: Gather[str, View | None] = Gather(self._read, GATHER_MOST)

    async def view(self, task_id: str) -> View:
        """A job as it stands; ResultGoneError, RecordMissingError."""
        view = await self._asked.ask(task_id)
        if view is not None and not (view.state == "completed" and not view.document):
            return view
        if past_retention(task_id, self._clock.now_ms()):
            raise ResultGoneError("The result was kept for its retention and is gone.")
        self._metrics.records_missing.inc()
        raise RecordMissingError("The record of this task is missing; the operators can see it.")

    async def at_end(self, task_id: str, wait_s: float) -> View:
        """The job once it has ended, or as it stands when the wait is over; ResultGoneError, RecordMissingError."""
        until = time.monotonic() + wait_s
        while wait_s:
            woken = self._waiters.enter(task_id)
            try:
                view = await self.view(task_id)
                left_s = until - time.monotonic()
                if is_terminal(view) or left_s <= 0 or self._waiters.closed:
                    return view
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken, left_s)
            finally:
                self._waiters.leave(task_id, woken)
        return await self.view(task_id)

    async def answer(
        self, request: Request, task_id: str, view: View, send: Send, fields: Sequence[Header] = ()
    ) -> None:
        """200 with the document of a job that has ended, else 202 with how it stands."""
        headers = [JSON, (b"x-request-id", request.request_id.encode()), *fields]
        if is_terminal(view):
            await answer(send, 200, headers, render(task_id, view))
            return
        ahead = outlook(view, self._capacity)
        headers += (
            (b"retry-after", str(ahead.retry_after).encode()),
            (b"location", b"/result/" + task_id.encode()),
        )
        await answer(send, 202, headers, render(task_id, view, ahead))

    async def _read(self, task_ids: list[str]) -> list[View | None]:
        views = await self._store.run(commands.read(task_ids))
        for view in views:
            if view is not None and view.ended_here and view.head is not None:
                self._metrics.jobs.labels(view.head.model, view.head.version, view.state).inc()
        return views


def preference_applied(wait_s: float) -> list[Header]:
    """What a request that asked to wait is told of it."""
    return [(b"preference-applied", b"wait=%d" % wait_s)] if wait_s else []
