"""Ten times the load that can be served: what is accepted is served in time, the rest is told so at once.

Open loop, distinct inputs, no cache, deadlines of 5 s. Capacity is measured before and after, closed loop, and
goodput (jobs completed before their deadline, a second of the load) is compared with the mean of both.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from statistics import mean
from typing import Final

from benchmarks.shows import drive, heavy
from benchmarks.shows.client import Client
from benchmarks.shows.drive import Outcome
from benchmarks.shows.report import Report, latencies_ms, percentile, recovered_after, share
from benchmarks.shows.stand import Stand

SECONDS = 60.0
APART = True
SETTINGS: dict[str, str] = {}

TIMES: Final = 10
TTL_S: Final = 5.0
PROBES_A_S: Final = 5.0
PROBES_S: Final = 10.0
RECOVERY_S: Final = 40.0
"""How long probes go on after the load."""
AS_BEFORE: Final = 1.2
"""A probe is as fast as before within this factor of the 95th percentile before."""
RSS_EVERY_S: Final = 0.5

GOODPUT: Final = 0.90
IN_TIME: Final = 0.99
REFUSED_S: Final = 0.1
GROWTH_BYTES: Final = 100e6
RECOVERED_S: Final = 30.0


def show(standing: Stand, seconds: float) -> Report:
    """Measure capacity, overload, watch the recovery, measure capacity again."""
    return drive.run(_show(standing, seconds))


async def _show(standing: Stand, seconds: float) -> Report:
    report = Report()
    async with Client(standing.port) as client:
        await drive.capacity(client, heavy.NAME, 1.0)
        follow = partial(drive.follow, client)
        probes = await drive.open_loop(follow, drive.submits(heavy.NAME), PROBES_A_S, min(PROBES_S, seconds))
        limit_s = percentile([each.took_s for each in probes], 95) * AS_BEFORE
        capacities = [await drive.capacity(client, heavy.NAME, seconds / 4)]

        rss, before = [standing.gateway_rss_bytes()], standing.cpu_s()
        watch = asyncio.create_task(_watch(standing, rss))
        requests = drive.submits(heavy.NAME, ttl_s=TTL_S)
        flood = asyncio.create_task(drive.open_loop(follow, requests, TIMES * capacities[0], seconds))
        await asyncio.sleep(seconds)
        ended_at, after = time.monotonic(), standing.cpu_s()
        requests = drive.submits(heavy.NAME, ttl_s=TTL_S)
        recovery = await drive.open_loop(follow, requests, PROBES_A_S, min(RECOVERY_S, 2 * seconds))
        outcomes = await flood
        watch.cancel()
        standing.wait_until_empty()
        capacities.append(await drive.capacity(client, heavy.NAME, seconds / 4))

    judge(report, outcomes, mean(capacities), seconds)
    back_s = recovered_after([(each.due_at, took_s(each)) for each in recovery], limit_s, ended_at)
    report.below("gateway's memory grew by", (max(rss) - rss[0]) / 1e6, GROWTH_BYTES / 1e6, "MB")
    report.below("a paced probe was as fast as before after", back_s, RECOVERED_S, "s")
    report.figures |= {
        "capacity_jobs_s": capacities,
        "offered_jobs_s": len(outcomes) / seconds,
        "statuses": dict(Counter(str(each.status) for each in outcomes)),
        "ends": dict(Counter(each.document.status for each in outcomes if each.document)),
        "accepted_end_to_end": latencies_ms([each.took_s for each in outcomes if each.is_completed]),
        "send_lateness": latencies_ms([each.sent_at - each.due_at for each in outcomes]),
        "idle_probe": latencies_ms([each.took_s for each in probes]),
        "rss_mb": {"before": rss[0] / 1e6, "most": max(rss) / 1e6, "last": rss[-1] / 1e6},
        "cores": {role: (after[role] - before[role]) / seconds for role in after},
        "connections": client.opened,
    }
    return report


def judge(report: Report, outcomes: Sequence[Outcome], capacity: float, seconds: float) -> None:
    """What became of the jobs that were offered for ``seconds``."""
    accepted = [each for each in outcomes if each.is_accepted]
    in_time = [each for each in accepted if each.is_completed and each.document and each.document.took_s <= TTL_S]
    began_at = min((each.due_at for each in outcomes), default=0.0)
    good = sum(each.ended_at < began_at + seconds for each in in_time)
    refused = [each for each in outcomes if each.status == HTTPStatus.SERVICE_UNAVAILABLE]
    refused_s = [each.answered_at - each.due_at for each in refused]
    report.at_least("goodput by capacity", share(good / seconds, capacity), GOODPUT)
    report.at_least("accepted jobs completed in time", share(len(in_time), len(accepted)), IN_TIME)
    report.below("refusals' p99 latency", percentile(refused_s, 99) * 1000, REFUSED_S * 1000, "ms")
    report.exactly(
        "submits answered otherwise than by 200, 202, 503", len(outcomes) - len(accepted) - len(refused), 0
    )


def took_s(probe: Outcome) -> float:
    """How long a probe took; infinite where it was refused or ended without a result."""
    return probe.took_s if probe.is_completed else float("inf")


async def _watch(standing: Stand, rss: list[int]) -> None:
    while True:
        await asyncio.sleep(RSS_EVERY_S)
        rss.append(standing.gateway_rss_bytes())
