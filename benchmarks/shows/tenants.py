"""A tenant below its quota beside another that floods: what the second does to the first.

Tenant B submits at a steady rate below its quota, alone and then while tenant A offers ten times the capacity, for
the same time. Where B's time goes is told from its documents and from the instants that the store notes.
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
SHARE: Final = 1 / 8
"""Of the capacity, what tenant B submits: a good deal less than the half that is its due beside A."""
QUOTA: Final = 2.0
"""In rates of tenant B."""
LEARN_S: Final = 3.0
"""After which the gateway knows keys and tenants."""
LOOK_S: Final = 0.01
LOOKS_MAX: Final = 500
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
        store.put(standing.redis, standing.namespace, Tenant("b", rate=QUOTA * rate, burst=math.ceil(QUOTA * rate)))
        await asyncio.sleep(LEARN_S)
        alone = await _measure(standing, client, b, rate, seconds)
        flood = asyncio.create_task(
            drive.open_loop(
                partial(drive.send, client),
                drive.submits(heavy.NAME, key=a, wait_s=0),
                *(TIMES * capacity, seconds + LEARN_S),
            )
        )
        await asyncio.sleep(LEARN_S)
        before = standing.cpu_s()
        beside = await _measure(standing, client, b, rate, seconds)
        after = standing.cpu_s()
        sent = await flood

    report = Report()
    b_s = [[each.took_s for each in waits.outcomes if each.is_completed] for waits in (alone, beside)]
    statuses = Counter(str(each.status) for each in beside.outcomes)
    report.exactly("429 that B was told", statuses["429"], 0)
    report.exactly("503 that B was told", statuses["503"], 0)
    report.exactly("jobs of B that did not complete", sum(not each.is_completed for each in beside.outcomes), 0)
    report.below("B's p95 beside the flood, by alone", share(percentile(b_s[1], 95), percentile(b_s[0], 95)), SLOWER)
    report.figures = {
        "capacity_jobs_s": capacity,
        "offered_by_a_jobs_s": len(sent) / (seconds + LEARN_S),
        "b_jobs_s": rate,
        "a_statuses": dict(Counter(str(each.status) for each in sent)),
        "b_alone": latencies_ms(b_s[0]),
        "b_beside": latencies_ms(b_s[1]),
        "b_alone_where_ms": alone.shares(),
        "b_beside_where_ms": beside.shares(),
        "send_lateness": latencies_ms([each.sent_at - each.due_at for each in (*sent, *beside.outcomes)]),
        "cores": {role: (after[role] - before[role]) / seconds for role in after},
    }
    return report


class Waits(msgspec.Struct):
    """Jobs of B, and when the store noted that each entered the window (ms), by task id."""

    outcomes: Sequence[Outcome]
    made: dict[str, int]

    def shares(self) -> dict[str, float]:
        """Mean milliseconds that the completed jobs spent at each place."""
        places = [each for outcome in self.outcomes if (each := where(outcome, self.made))]
        return {name: round(mean(each[name] for each in places), 2) for name in places[0]} if places else {}


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
