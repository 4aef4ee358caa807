"""A tenant at its quota beside another that floods: what the second does to the first.

Tenants A and B have equal quotas. Both submit at them; then A offers ten times its quota while B goes on. The bound
is on what the flood does to B. Last A floods without a quota, ten times what the system can do: what B has to wait
then is the slices that run and cannot be pre-empted, and no bound in percent is promised. Where B's time goes is told
from its documents and from the instants that the store notes.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from statistics import mean
from typing import Any, Final

import msgspec

from benchmarks.shows import drive, heavy
from benchmarks.shows.client import Client
from benchmarks.shows.drive import Outcome
from benchmarks.shows.report import Report, latencies_ms, percentile, share
from benchmarks.shows.stand import Stand
from jobs import apikeys
from jobs import tenants as store
from jobs.connect import async_redis_client
from jobs.tenants import Tenant

SECONDS = 60.0
APART = True
SETTINGS = {"PENSTOCK_QUEUE_JOBS_MAX": "2000"}
"""So that the flood fills it: then B must find room all the same."""

TIMES: Final = 10
SHARE: Final = 0.3
"""Of the capacity, each tenant's quota."""
MARGIN: Final = 1.02
"""A quota is a little above what its tenant submits: two clocks count it."""
LEARN_S: Final = 3.0
"""After which the gateway knows keys and tenants."""
LOOK_S: Final = 0.01
LOOKS_MAX: Final = 500
DRAIN_LOOK_S: Final = 0.2
SLOWER: Final = 1.2


def show(standing: Stand, seconds: float) -> Report:
    """B alone, then B beside A."""
    a, b = (
        apikeys.add(standing.redis, standing.namespace, name=name, tenant=name, role="user") for name in ("a", "b")
    )
    return drive.run(_show(standing, seconds, a, b))


async def _show(standing: Stand, seconds: float, a: str, b: str) -> Report:
    await asyncio.sleep(LEARN_S)
    async with Client(standing.port) as client:
        capacity = await drive.capacity(client, heavy.NAME, seconds / 4, a)
        rate = capacity * SHARE
        for name in ("a", "b"):
            quota = Tenant(name, rate=MARGIN * rate, burst=math.ceil(rate))
            store.put(standing.redis, standing.namespace, quota)
        await asyncio.sleep(LEARN_S)
        at_quota = await _beside(standing, client, a, b, rates=(rate, rate), seconds=seconds)
        flooded = await _beside(standing, client, a, b, rates=(TIMES * rate, rate), seconds=seconds)
        store.remove(standing.redis, standing.namespace, "a")
        await asyncio.sleep(LEARN_S)
        no_quota = await _beside(standing, client, a, b, rates=(TIMES * capacity, rate), seconds=seconds)

    report = Report()
    for what, beside in (("its quota", flooded), ("the capacity", no_quota)):
        statuses = Counter(each.status for each in beside.b.outcomes)
        report.exactly(f"429 that B was told, A at 10 x {what}", statuses[429], 0)
        report.exactly(f"503 that B was told, A at 10 x {what}", statuses[503], 0)
        undone = sum(not each.is_completed for each in beside.b.outcomes)
        report.exactly(f"jobs of B that did not complete, A at 10 x {what}", undone, 0)
    slower = share(percentile(flooded.b.took_s(), 95), percentile(at_quota.b.took_s(), 95))
    report.below("B's p95, A at 10 x its quota, by A at its quota", slower, SLOWER)
    report.figures = {
        "capacity_jobs_s": capacity,
        "quota_jobs_s": rate,
        "a_at_quota": at_quota.figures(),
        "a_at_10_quotas": flooded.figures(),
        "a_at_10_capacities_without_quota": no_quota.figures(),
    }
    return report


class Waits(msgspec.Struct):
    """Jobs of B, and when the store noted that each entered the window (ms), by task id."""

    outcomes: Sequence[Outcome]
    made: dict[str, int]

    def took_s(self) -> list[float]:
        """Of each job that completed, from the instant it was due."""
        return [each.took_s for each in self.outcomes if each.is_completed]

    def shares(self) -> dict[str, float]:
        """Mean milliseconds that the completed jobs spent at each place."""
        places = [each for outcome in self.outcomes if (each := where(outcome, self.made))]
        return {name: round(mean(each[name] for each in places), 2) for name in places[0]} if places else {}


class Beside(msgspec.Struct):
    """What A was answered, and how B fared meanwhile; CPU by role, in cores."""

    a: list[Outcome]
    b: Waits
    cores: dict[str, float]

    def figures(self) -> dict[str, Any]:
        """Those that have no bound."""
        sent = (*self.a, *self.b.outcomes)
        return {
            "a_statuses": dict(Counter(str(each.status) for each in self.a)),
            "b": latencies_ms(self.b.took_s()),
            "b_where_ms": self.b.shares(),
            "send_lateness": latencies_ms([each.sent_at - each.due_at for each in sent]),
            "cores": self.cores,
        }


def where(outcome: Outcome, made: dict[str, int]) -> dict[str, float] | None:
    """Milliseconds that a job spent in its line, in the broker, between stages, in each stage, on its way to us."""
    document = outcome.document
    if document is None or document.started_at is None or document.task_id not in made:
        return None
    entered_ms = made[document.task_id] - document.queued_at.timestamp() * 1000
    started_ms = (document.started_at - document.queued_at).total_seconds() * 1000
    between_ms = sum(stage.queued_s for stage in document.stages[1:]) * 1000
    runs_ms = {f"run_{stage.name}": stage.run_s * 1000 for stage in document.stages}
    return {
        "line": max(0.0, entered_ms),
        "window": started_ms - entered_ms,
        "between_stages": between_ms,
        **runs_ms,
        "way_to_the_client": (outcome.took_s - document.took_s) * 1000,
    }


async def _beside(
    standing: Stand, client: Client, a: str, b: str, *, rates: tuple[float, float], seconds: float
) -> Beside:
    """A and B at their rates; A begins a moment earlier."""
    requests = drive.submits(heavy.NAME, key=a, wait_s=0)
    flood = asyncio.create_task(drive.open_loop(partial(drive.send, client), requests, rates[0], seconds + LEARN_S))
    await asyncio.sleep(LEARN_S)
    before = standing.cpu_s()
    waits = await _measure(standing, client, b, rates[1], seconds)
    after = standing.cpu_s()
    sent = await flood
    await _drained(standing)
    return Beside(sent, waits, {role: round((after[role] - before[role]) / seconds, 2) for role in after})


async def _drained(standing: Stand) -> None:
    """Wait until no job is open."""
    while standing.redis.zcard(f"{standing.namespace}:deadlines"):  # noqa: ASYNC110 - the store tells nobody
        await asyncio.sleep(DRAIN_LOOK_S)


async def _measure(standing: Stand, client: Client, key: str, rate: float, seconds: float) -> Waits:
    """B at its rate; each job is followed to its end, and looked at in the store until it is in the window."""
    looker = async_redis_client(standing.store.url, 10.0, max_connections=LOOKS_MAX)
    made: dict[str, int] = {}
    looking: list[asyncio.Task[None]] = []

    def told(task_id: str) -> None:
        looking.append(asyncio.create_task(_look(looker, standing.namespace, task_id, made)))

    one = partial(drive.follow, client, key=key, told=told)
    outcomes = await drive.open_loop(one, drive.submits(heavy.NAME, key=key, wait_s=0), rate, seconds)
    await asyncio.gather(*looking)
    await looker.aclose()
    return Waits(outcomes, made)


async def _look(looker: Any, namespace: str, task_id: str, made: dict[str, int]) -> None:
    """Note when the micro-batch of a job was made, unless it ended before that could be seen.

    ``looker``: an asynchronous client (redis-py's types do not say that answers are bytes).
    """
    while True:
        state, number = await looker.hmget(f"{namespace}:job:{task_id}", "state", "microbatch")
        if state != b"queued":
            return
        at = number and await looker.hget(f"{namespace}:microbatch:{number.decode()}", "made")
        if at:
            made[task_id] = int(at)
            return
        await asyncio.sleep(LOOK_S)
