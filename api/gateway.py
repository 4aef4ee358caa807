"""The gateway: what every route needs, opened once and closed in order, and what each route does with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from types import FrameType
from typing import Any

import redis.asyncio

from api.access import Access, Caller
from api.admission import Admission
from api.arrivals import Arrivals
from api.broker import Broker
from api.cache import ResultCache
from api.capacity import Capacity
from api.catalog import Catalog
from api.clock import StoreClock
from api.deadletters import DeadLetters
from api.door import Door
from api.http import Receive, Request, Send
from api.metrics import Metrics
from api.polls import Polls, preference_applied
from api.submit import Desk
from api.sweeper import Sweeper
from api.tenants import Tenants
from api.waiters import Waiters
from api.writer import Writer
from jobs import commands
from jobs.commands import Ended, View
from jobs.errors import (
    AlreadyTerminalError,
    BrokerUnavailableError,
    ClockSkewError,
    NotEndedError,
    ResultGoneError,
    StoreUnavailableError,
)
from jobs.ids import KeyRing, TaskIds
from jobs.settings import Settings
from jobs.store import AsyncJobStore, Flow

REFRESH_S = 1.0
DUTY_PAUSE_S = 1.0

log = logging.getLogger(__name__)


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
        self.tenants = Tenants(client, settings.namespace)
        self.capacity = Capacity(store, Flow.of(settings))
        self.admission = Admission(settings, self.capacity, self.tenants)
        self.results = ResultCache(settings.gateway_cache_bytes_max)
        self.dead_letters = DeadLetters(store, self.clock)
        self.waiters = Waiters(client, settings.namespace)
        self.sweeper = Sweeper(store, broker, self.metrics)
        self.polls = Polls(store, self.clock, self.metrics, self.waiters, self.capacity)
        self._ids = TaskIds(ring, settings.retention_s)
        desk = Desk(self.catalog, self._ids, self.clock, caches=settings.cache_bytes_max > 0)
        writer = Writer(store, broker, self.tenants, self.admission, self.metrics)
        self._door = Door(
            *(desk, self.admission, self.results, self.polls, writer), self.metrics, settings.wait_s_max
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run what runs beside requests: refresh, subscription, broker watch, sweeper."""
        await self._first_refresh()
        self._answer_waiters_at(signal.SIGTERM, signal.SIGINT)
        duties = [self._keep_fresh, self.waiters.listen, self.broker.watch, self.arrivals.watch, self.capacity.watch]
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
        """``POST /predict/{model}`` and ``POST /predict`` (``model`` is None)."""
        caller = self.access.caller(request.authorization, request.server)
        if self.clock.skewed:
            raise ClockSkewError(
                "The gateway's clock and the store's are apart; nothing was stored.", retry_after_s=5.0
            )
        if self.broker.away:
            raise BrokerUnavailableError("The broker does not answer; nothing was stored.", retry_after_s=1.0)
        body = await self.arrivals.bounded(request.body(receive, self.settings.body_bytes_max))
        await self._door.submit(request, caller, model, body, send)

    async def result(self, request: Request, task_id: str, send: Send) -> None:
        """``GET /result/{task_id}``: 202 while it is under way, 200 once it has ended."""
        caller = self.access.caller(request.authorization, request.server)
        self.check_id(task_id, caller)
        wait_s = request.wait_s(self.settings.wait_s_max)
        view = await self.polls.at_end(task_id, wait_s)
        await self.polls.answer(request, task_id, view, send, preference_applied(wait_s))

    async def cancel(self, task_id: str, caller: Caller) -> View:
        """Cancel a job; the job as it stands then: cancelled, or processing until the stage's boundary.

        AlreadyTerminalError when it ended otherwise; NotFoundError, ResultGoneError, RecordMissingError.
        """
        self.check_id(task_id, caller)
        cancelled = await self.store.run(commands.cancel(task_id))
        self._count_ended(cancelled.ended)
        if cancelled.verdict == "ended":
            raise AlreadyTerminalError("The job ended before it could be cancelled; GET its result.")
        return await self.polls.view(task_id)

    async def retry(self, task_id: str, caller: Caller) -> View:
        """Run a failed or expired job again, as a new generation under its id; the job as it stands then.

        AlreadyTerminalError when it completed or was cancelled, NotEndedError while it is under way; NotFoundError,
        ResultGoneError (its input too), RecordMissingError.
        """
        self.check_id(task_id, caller)
        head = await self.store.run(commands.head_of(task_id))
        view = await self.polls.view(task_id)
        if view.state in {"queued", "processing"}:
            raise NotEndedError("The job has not ended; there is nothing to retry yet.")
        (verdict,) = await self.store.run(commands.replay([(task_id, head)], self.clock.now_ms())) if head else [""]
        if verdict == "gone":
            raise ResultGoneError("The job's input is not kept any more; submit it again.")
        if verdict != "replayed":
            raise AlreadyTerminalError(f"The job is {view.state}; only failed and expired jobs are run again.")
        return await self.polls.view(task_id)

    def check_id(self, task_id: str, caller: Caller) -> None:
        """NotFoundError unless we issued ``task_id`` to the caller's tenant; does not touch the store."""
        self._ids.verify(task_id, caller.tenant_bytes)

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

    def _count_ended(self, ended: list[Ended]) -> None:
        for each in ended:
            model, version = each.line.split("/")[2:]
            self.metrics.jobs.labels(model, version, each.state).inc()

    async def _refresh(self) -> bool:
        """Learn clock, keys and models from the store; False while it is away."""
        asked_s = time.monotonic()
        try:
            seconds, micros = await self.client.time()
            answered_s = time.monotonic()
            memory = await self.client.info("memory")
        except (redis.RedisError, OSError):
            return False
        self.admission.learn_memory(memory["used_memory"], memory.get("maxmemory", 0))
        self.clock.learn(seconds * 1000 + micros / 1000, asked_s, answered_s)
        return all(await asyncio.gather(self.access.refresh(), self.catalog.refresh(), self.tenants.refresh()))

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
