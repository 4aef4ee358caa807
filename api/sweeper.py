"""The sweeper: what keeps the promises when somebody died.

Several times a second it ends what is late, gives back what a dead worker held, publishes again what the broker
lost, and fills windows that have room.

Every gateway runs one; a lease in the store lets one at a time act, for efficiency only: each act is one script,
bounded and harmless when repeated.
"""

from __future__ import annotations

import asyncio
import logging
import secrets

from api.broker import Broker
from api.metrics import Metrics
from jobs import commands
from jobs.commands import Doubtful, Swept
from jobs.errors import StoreUnavailableError
from jobs.faults import faults
from jobs.store import AsyncJobStore

log = logging.getLogger(__name__)

INTERVAL_S = 0.25
LEASE_MS = 3_000
MOST = 200
"""Entries of each kind in one pass; a pass that was full is followed by another at once."""


class Sweeper:
    """One gateway's sweeper."""

    def __init__(
        self,
        store: AsyncJobStore,
        broker: Broker,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._broker = broker
        self._returns = broker.returns
        self._metrics = metrics
        self._name = secrets.token_hex(8)
        self._doubts: asyncio.Task[None] | None = None
        self.turn = False
        """Whether this gateway holds the sweeper's lease."""

    async def run(self) -> None:
        """Sweep for ever; a store that is away is asked again."""
        while True:
            try:
                returns = self._broker.returns
                command = commands.sweep(self._name, LEASE_MS, MOST, after_outage=returns != self._returns)
                swept = await self._store.run(command)
                self._returns = returns
                if faults:
                    faults.reach("sweeper.swept")
                await self._act(swept)
                pause_s = 0.0 if len(swept.ended) >= MOST or swept.retried >= MOST else INTERVAL_S
            except StoreUnavailableError:
                self.turn, pause_s = False, INTERVAL_S * 4
            await asyncio.sleep(pause_s)

    async def _act(self, swept: Swept) -> None:
        self.turn = swept.turn
        self._broker.publish(swept.publish)
        self._count(swept)
        if swept.doubtful and (self._doubts is None or self._doubts.done()):
            self._doubts = asyncio.create_task(self._settle(swept.doubtful))

    async def _settle(self, doubtful: list[Doubtful]) -> None:
        """Publish again what the broker no longer has; beside the sweep, which a slow broker must not hold up."""
        empty = {queue: await self._broker.empty(queue) for queue in {each.queue for each in doubtful}}
        lost = [each for each in doubtful if empty[each.queue]]
        if lost:
            try:
                await self._again(lost)
            except StoreUnavailableError:
                log.warning("lost messages wait for the store")

    async def _again(self, lost: list[Doubtful]) -> None:
        publish = await self._store.run(commands.republish(lost))
        log.warning("messages lost by the broker are published again", extra={"count": len(publish)})
        self._metrics.swept.labels("lost-message").inc(len(publish))
        self._broker.publish(publish)

    def _count(self, swept: Swept) -> None:
        for ended in swept.ended:
            model, version = ended.line.split("/")[2:]
            self._metrics.jobs.labels(model, version, ended.state).inc()
            log.info("job ended by the sweeper", extra={"task_id": ended.task_id, "state": ended.state})
        for kind, count in (
            ("lost-worker", swept.recovered),
            ("lost-message", swept.published),
            ("retry-due", swept.retried),
        ):
            if count:
                self._metrics.swept.labels(kind).inc(count)
                log.info("swept", extra={"kind": kind, "count": count})
