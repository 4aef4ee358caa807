"""The gateway: what every route needs, opened once and closed in order; and the two hot routes themselves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from types import FrameType
from typing import Any

import msgspec
import redis.asyncio

from api.access import Access, Caller
from api.arrivals import Arrivals
from api.broker import Broker
from api.catalog import Catalog
from api.clock import StoreClock
from api.deadletters import DeadLetters
from api.gather import Gather
from api.http import Receive, Request, Send, answer
from api.metrics import Metrics
from api.results import is_terminal, links, render
from api.submit import Accepted, Desk
from api.sweeper import Sweeper
from api.waiters import Waiters
from jobs import commands
from jobs.commands import Ended, View
from jobs.errors import (
    AlreadyTerminalError,
    BrokerUnavailableError,
    ClockSkewError,
    NotEndedError,
    RecordMissingError,
    ResultGoneError,
    StoreUnavailableError,
)
from jobs.faults import faults
from jobs.ids import KeyRing, TaskIds, past_retention
from jobs.records import Job, instant
from jobs.settings import Settings
from jobs.store import AsyncJobStore

GATHER_MOST = 256
"""Submits or polls in one round trip to the store: bounds how long the store is held by one script."""
REFRESH_S = 1.0
DUTY_PAUSE_S = 1.0

log = logging.getLogger(__name__)

_JSON = (b"content-type", b"application/json")
_RETRY = (b"retry-after", b"1")
_encode = msgspec.json.Encoder().encode


class Gateway:
    """One gateway process."""

    def __init__(
        self,
        settings: Settings,
        client: redis.asyncio.Redis,
        store: AsyncJobStore,
        broker: Broker,
        ring: KeyRing,
    ) -> None:
        self.settings = settings
        self.client = client
        self.store = store
        self.broker = broker
        self.metrics = Metrics()
        self.clock = StoreClock()
        self.access = Access(client, settings.namespace)
        self.catalog = Catalog(client, settings.namespace)
        self.arrivals = Arrivals(settings.body_timeout_s)
        self.dead_letters = DeadLetters(store, self.clock)
        self.waiters = Waiters(client, settings.namespace)
        self.sweeper = Sweeper(store, broker, self.metrics)
        self._ids = TaskIds(ring, settings.retention_s)
        self._desk = Desk(self.catalog, self._ids, self.clock)
        self._submits: Gather[Job, None] = Gather(self._write, GATHER_MOST)
        self._polls: Gather[str, View | None] = Gather(self._read, GATHER_MOST)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run what runs beside requests: refresh, subscription, broker watch, sweeper."""
        await self._first_refresh()
        self._answer_waiters_at(signal.SIGTERM, signal.SIGINT)
        duties = [self._keep_fresh, self.waiters.listen, self.broker.watch, self.arrivals.watch]
        if self.settings.sweeper:
            duties.append(self.sweeper.run)
        tasks = [asyncio.create_task(_kept_up(duty)) for duty in duties]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.broker.close()
            await self.store.close()
            await self.client.aclose()

    async def submit(self, request: Request, model: str | None, receive: Receive, send: Send) -> None:
        """``POST /predict/{model}`` and ``POST /predict`` (``model`` is None): 202, or 200 within the wait."""
        caller = self.access.caller(request.authorization, request.server)
        if self.clock.skewed:
            raise ClockSkewError(
                "The gateway's clock and the store's are apart; nothing was stored.", retry_after_s=5.0
            )
        if self.broker.away:
            raise BrokerUnavailableError("The broker does not answer; nothing was stored.", retry_after_s=1.0)
        body = await self.arrivals.bounded(request.body(receive, self.settings.body_bytes_max))
        job = self._desk.job(request, caller, model, body)
        await self._submits.ask(job)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("accepted", extra={"task_id": job.task_id, "request_id": request.request_id})
        wait_s = request.wait_s(self.settings.wait_s_max)
        if wait_s:  # whatever reading it meets, the job is stored: that is the 202
            with contextlib.suppress(StoreUnavailableError, RecordMissingError):
                view = await self._await_end(job.task_id, wait_s)
                await self._answer_view(request, job.task_id, view, wait_s, send)
                return
        await answer(send, 202, _accepted_headers(job, request), _encode(_accepted(job)))

    async def result(self, request: Request, task_id: str, send: Send) -> None:
        """``GET /result/{task_id}``: 202 while it is under way, 200 once it has ended."""
        caller = self.access.caller(request.authorization, request.server)
        self.check_id(task_id, caller)
        wait_s = request.wait_s(self.settings.wait_s_max)
        view = await (self._await_end(task_id, wait_s) if wait_s else self.view(task_id))
        await self._answer_view(request, task_id, view, wait_s, send)

    async def cancel(self, task_id: str, caller: Caller) -> View:
        """Cancel a job; the job as it stands then: cancelled, or processing until the stage's boundary.

        AlreadyTerminalError when it ended otherwise; NotFoundError, ResultGoneError, RecordMissingError.
        """
        self.check_id(task_id, caller)
        cancelled = await self.store.run(commands.cancel(task_id))
        self._count_ended(cancelled.ended)
        if cancelled.verdict == "ended":
            raise AlreadyTerminalError("The job ended before it could be cancelled; GET its result.")
        return await self.view(task_id)

    async def retry(self, task_id: str, caller: Caller) -> View:
        """Run a failed or expired job again, as a new generation under its id; the job as it stands then.

        AlreadyTerminalError when it completed or was cancelled, NotEndedError while it is under way; NotFoundError,
        ResultGoneError (its input too), RecordMissingError.
        """
        self.check_id(task_id, caller)
        head = await self.store.run(commands.head_of(task_id))
        view = await self.view(task_id)
        if view.state in {"queued", "processing"}:
            raise NotEndedError("The job has not ended; there is nothing to retry yet.")
        (verdict,) = await self.store.run(commands.replay([(task_id, head)], self.clock.now_ms())) if head else [""]
        if verdict == "gone":
            raise ResultGoneError("The job's input is not kept any more; submit it again.")
        if verdict != "replayed":
            raise AlreadyTerminalError(f"The job is {view.state}; only failed and expired jobs are run again.")
        return await self.view(task_id)

    def check_id(self, task_id: str, caller: Caller) -> None:
        """NotFoundError unless we issued ``task_id`` to the caller's tenant; does not touch the store."""
        self._ids.verify(task_id, caller.tenant_bytes)

    async def view(self, task_id: str) -> View:
        """A job as it stands; ResultGoneError, RecordMissingError."""
        view = await self._polls.ask(task_id)
        if view is not None:
            return view
        if past_retention(task_id, self.clock.now_ms()):
            raise ResultGoneError("The result was kept for its retention and is gone.")
        self.metrics.records_missing.inc()
        raise RecordMissingError("The record of this task is missing; the operators can see it.")

    async def ping_store(self) -> None:
        """StoreUnavailableError unless the store answers in time."""
        try:
            await self.client.ping()
        except (redis.RedisError, OSError):
            raise StoreUnavailableError("The job store does not answer.") from None

    async def workers(self) -> int:
        """How many workers gave a sign of life lately; 0 while the store is away."""
        try:
            return int(await self.client.zcard(f"{self.store.prefix}workers-seen"))
        except (redis.RedisError, OSError):
            return 0

    async def _answer_view(self, request: Request, task_id: str, view: View, wait_s: float, send: Send) -> None:
        headers = [_JSON, (b"x-request-id", request.request_id.encode())]
        if wait_s:
            headers.append((b"preference-applied", b"wait=%d" % wait_s))
        if is_terminal(view):
            await answer(send, 200, headers, render(task_id, view))
        else:
            headers += (_RETRY, (b"location", b"/result/" + task_id.encode()))
            await answer(send, 202, headers, render(task_id, view))

    async def _await_end(self, task_id: str, wait_s: float) -> View:
        """The job once it has ended, or as it stands when the wait is over."""
        until = time.monotonic() + wait_s
        while True:
            woken = self.waiters.enter(task_id)
            try:
                view = await self.view(task_id)
                left_s = until - time.monotonic()
                if is_terminal(view) or left_s <= 0 or self.waiters.closed:
                    return view
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(woken, left_s)
            finally:
                self.waiters.leave(task_id, woken)

    async def _write(self, jobs: list[Job]) -> list[None]:
        submitted = await self.store.run(commands.submit(jobs))
        if faults:
            faults.reach("gateway.stored")
        self.broker.publish(submitted.publish)
        if faults:
            faults.reach("gateway.published")
        self.metrics.gathered.observe(len(jobs))
        for version, count in Counter((job.head.model, job.head.version) for job in jobs).items():
            self.metrics.submitted.labels(*version).inc(count)
        return [None] * len(jobs)

    def _count_ended(self, ended: list[Ended]) -> None:
        for each in ended:
            model, version = each.line.split("/")[2:]
            self.metrics.jobs.labels(model, version, each.state).inc()

    async def _read(self, task_ids: list[str]) -> list[View | None]:
        views = await self.store.run(commands.read(task_ids))
        for view in views:
            if view is not None and view.ended_here and view.head is not None:
                self.metrics.jobs.labels(view.head.model, view.head.version, view.state).inc()
        return views

    async def _refresh(self) -> bool:
        """Learn clock, keys and models from the store; False while it is away."""
        asked_s = time.monotonic()
        try:
            seconds, micros = await self.client.time()
        except (redis.RedisError, OSError):
            return False
        self.clock.learn(seconds * 1000 + micros / 1000, asked_s, time.monotonic())
        return all(await asyncio.gather(self.access.refresh(), self.catalog.refresh()))

    def _answer_waiters_at(self, *numbers: signal.Signals) -> None:
        """When the server is told to end, whoever waits for a result is told how the job stands, at once."""
        loop = asyncio.get_running_loop()
        for number in numbers:
            before = signal.getsignal(number)
            if threading.current_thread() is threading.main_thread() and callable(before):

                def handle(told: int, frame: FrameType | None, before: Callable[..., Any] = before) -> None:
                    loop.call_soon_threadsafe(self.waiters.close)
                    before(told, frame)

                signal.signal(number, handle)

    async def _first_refresh(self) -> None:
        """Wait for the store: before keys and models are known, nobody may be answered."""
        while not await self._refresh():  # noqa: ASYNC110 - the store tells nobody that it is back
            await asyncio.sleep(DUTY_PAUSE_S)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            await self._refresh()


async def _kept_up(duty: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a duty for ever; one that meets a fault of ours is logged and begun again, never silently gone."""
    while True:
        try:
            await duty()
        except Exception:
            log.exception("a duty of the gateway failed", extra={"duty": duty.__qualname__})
        await asyncio.sleep(DUTY_PAUSE_S)


def _accepted(job: Job) -> Accepted:
    head = job.head
    return Accepted(
        job.task_id,
        "queued",
        head.model,
        head.version,
        instant(head.queued_at_ms),
        instant(head.deadline_at_ms),
        links(job.task_id),
    )


def _accepted_headers(job: Job, request: Request) -> list[tuple[bytes, bytes]]:
    return [
        _JSON,
        _RETRY,
        (b"location", b"/result/" + job.task_id.encode()),
        (b"x-request-id", request.request_id.encode()),
    ]
