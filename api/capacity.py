"""What the system can do now, as this gateway knows it: looked at several times a second, and carried on in between.

Nothing here asks the store while a request waits. A look is at most ``LOOK_S`` old, and what this gateway has let in
since is counted on top of it; what other gateways let in meanwhile is not known until the next look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Literal

from jobs.errors import StoreUnavailableError
from jobs.estimates import Estimate, Pace, estimate, pace_of
from jobs.looks import LineSeen, Seen, look
from jobs.records import Lane
from jobs.store import AsyncJobStore, Flow

log = logging.getLogger(__name__)

LOOK_S = 0.25
RETRY_S_MAX = 300.0
"""Nobody is told to come back later than this."""

WaitingReason = Literal["ahead-in-queue", "no-worker", "worker-starting", "retry-backoff", "paused", "bulk-window"]


class Line:
    """A line as it was seen, with what was let in since."""

    __slots__ = ("is_bulk", "now", "pace", "paused", "turns", "waiting")

    def __init__(self, name: str, seen: LineSeen, pace: Pace, *, paused: bool) -> None:
        self.pace = pace
        self.paused = paused
        self.is_bulk = name.split("/")[1] == "bulk"
        self.waiting = seen.waiting
        self.now = seen.now
        self.turns = dict(seen.turns)

    def ahead_of(self, tenant: str, weight_of: Callable[[str], float]) -> float:
        """Jobs that go before the next one of ``tenant``, as the line's turns have it."""
        mine = max(self.now, self.turns.get(tenant, 0.0))
        before = 0.0
        for each, turn in self.turns.items():
            if turn > self.now:
                before += (min(turn, mine) - self.now) * weight_of(each)
        return min(before, float(self.waiting))

    def let_in(self, tenant: str, weight: float) -> None:
        """One more job of ``tenant``."""
        self.waiting += 1
        self.turns[tenant] = max(self.now, self.turns.get(tenant, 0.0)) + 1 / weight


class Capacity:
    """Lines, pools and tenants, as they were seen last."""

    def __init__(self, store: AsyncJobStore, flow: Flow) -> None:
        self._store = store
        self._flow = flow
        self.seen = Seen()
        self.lines: dict[str, Line] = {}
        self.open_jobs = 0
        self.open_by_tenant: dict[str, int] = {}
        self._reasons: dict[str, WaitingReason] = {}
        """By line, as far as somebody has asked since the last look."""

    async def watch(self) -> None:
        """Look again, for ever; while the store is away the last look stands."""
        while True:
            try:
                self.learn(await self._store.run(look()))
            except StoreUnavailableError:
                log.warning("capacity not refreshed: the store did not answer")
            await asyncio.sleep(LOOK_S)

    def learn(self, seen: Seen) -> None:
        """Take over a look."""
        self.seen = seen
        self.open_jobs = seen.open_jobs
        self.open_by_tenant = dict(seen.open_by_tenant)
        self.lines = {
            name: Line(name, line, self._pace(name, line), paused=_model(name) in seen.paused)
            for name, line in seen.lines.items()
        }
        self._reasons = {}

    def let_in(self, line: str, tenant: str, weight: float, *, waits: bool) -> None:
        """Count a job that was accepted since the last look; one that joined another does not wait in its line."""
        self.open_jobs += 1
        self.open_by_tenant[tenant] = self.open_by_tenant.get(tenant, 0) + 1
        known = self.lines.get(line) if waits else None
        if known:
            known.let_in(tenant, weight)

    def estimate(self, line: str, ahead: float) -> Estimate | None:
        """When a job of ``line`` with so many before it will have ended; None while that cannot be known."""
        known = self.lines.get(line)
        if known is None or known.paused:
            return None
        return estimate(ahead, known.pace, self._interactive_s(line) if known.is_bulk else 0.0)

    def waiting_reason(self, line: str) -> WaitingReason:
        """Why the jobs of a line wait; the same until the next look."""
        known = self._reasons.get(line)
        if known is None:
            known = self._reasons[line] = self._waiting_reason(line)
        return known

    def is_paused(self, line: str) -> bool:
        """Whether the line's model is paused."""
        known = self.lines.get(line)
        return known.paused if known else _model(line) in self.seen.paused

    def slots(self, line: str) -> int:
        """Stages that the workers of the line's pool run at once."""
        pool = self.seen.pools.get(line.split("/", 1)[0])
        return pool.slots if pool else 0

    def to_drain_s(self, lane: Lane) -> float | None:
        """Seconds until what waits in a lane would be done; None while one of its lines stands still."""
        waits = [line for name, line in self.lines.items() if name.split("/")[1] == lane and line.waiting]
        if any(not line.pace.jobs_per_s for line in waits):
            return None
        return max((line.waiting / line.pace.jobs_per_s for line in waits if line.pace.jobs_per_s), default=0.0)

    def _interactive_s(self, line: str) -> float:
        """Seconds that the interactive jobs of the line's pool will take, as far as that is known: they go first."""
        return sum(
            each.waiting / each.pace.jobs_per_s
            for each in self._interactive_beside(line)
            if each.pace.jobs_per_s and not each.paused
        )

    def _interactive_beside(self, line: str) -> Iterator[Line]:
        """The interactive lines of a line's pool."""
        start = line.split("/", 1)[0] + "/interactive/"
        return (each for name, each in self.lines.items() if name.startswith(start))

    def _waiting_reason(self, line: str) -> WaitingReason:
        if self.is_paused(line):
            return "paused"
        if not self.slots(line):
            return "worker-starting" if self.seen.starting else "no-worker"
        if line.split("/")[1] == "bulk" and any(each.waiting for each in self._interactive_beside(line)):
            return "bulk-window"
        return "ahead-in-queue"

    def _pace(self, name: str, line: LineSeen) -> Pace:
        return pace_of(line.pace, line.costs_us, self.slots(name), self._flow.jobs_max, self._flow.slice_us)


def _model(line: str) -> str:
    return line.split("/")[2]
