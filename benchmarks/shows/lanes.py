"""An interactive job does not wait behind bulk ones: its latency on an idle system, and under a flood of bulk jobs.

The bound follows from the design: a worker is asked for one slice more of each stage than on an idle system.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Final

from benchmarks.shows import drive, heavy
from benchmarks.shows.client import Client
from benchmarks.shows.report import Report, latencies_ms, percentile
from benchmarks.shows.stand import Stand

SECONDS = 60.0
APART = True
SETTINGS: dict[str, str] = {}

TIMES: Final = 10
PROBES_A_S: Final = 5.0
"""Few enough that they do not meet each other."""
STAGES: Final = 3
SLICE_S: Final = 0.05
"""What the design lets a stage take."""
FILL_S: Final = 3.0
"""The flood's start, before the probes."""
FOLLOWED: Final = 20
"""One bulk job in so many is followed, for what its stages took."""


def show(standing: Stand, seconds: float) -> Report:
    """Probes alone, then beside the flood."""
    return drive.run(_show(standing, seconds))


async def _show(standing: Stand, seconds: float) -> Report:
    async with Client(standing.port) as client:
        capacity = await drive.capacity(client, heavy.NAME, seconds / 4)
        follow = partial(drive.follow, client)
        idle = await drive.open_loop(follow, drive.submits(heavy.NAME), PROBES_A_S, seconds)
        rate, flood_s = TIMES * capacity / FOLLOWED, seconds + FILL_S
        flood = asyncio.create_task(
            drive.open_loop(
                partial(drive.send, client),
                drive.submits(heavy.NAME, wait_s=0, lane="bulk"),
                *((FOLLOWED - 1) * rate, flood_s),
            )
        )
        sample = asyncio.create_task(
            drive.open_loop(follow, drive.submits(heavy.NAME, lane="bulk", ttl_s=flood_s), rate, flood_s)
        )
        await asyncio.sleep(FILL_S)
        before = standing.cpu_s()
        beside = await drive.open_loop(follow, drive.submits(heavy.NAME), PROBES_A_S, seconds)
        after = standing.cpu_s()
        sent, followed = await flood, await sample

    runs = [stage.run_s for each in followed if each.document and each.is_completed for stage in each.document.stages]
    idle_s = [each.took_s for each in idle if each.is_completed]
    beside_s = [each.took_s for each in beside if each.is_completed]
    slowest_s = max(runs, default=float("nan"))
    bound_s = percentile(idle_s, 99) + STAGES * min(SLICE_S, slowest_s)
    report = Report()
    report.below("interactive p99 beside the flood", percentile(beside_s, 99) * 1000, bound_s * 1000, "ms")
    report.exactly("interactive jobs that did not complete", len(idle) + len(beside) - len(idle_s) - len(beside_s), 0)
    report.figures = {
        "capacity_jobs_s": capacity,
        "bulk_offered_jobs_s": (len(sent) + len(followed)) / flood_s,
        "bulk_statuses": dict(Counter(str(each.status) for each in (*sent, *followed))),
        "bulk_completed_of_those_followed": sum(each.is_completed for each in followed),
        "bulk_slowest_stage_ms": slowest_s * 1000,
        "interactive_idle": latencies_ms(idle_s),
        "interactive_beside": latencies_ms(beside_s),
        "send_lateness": latencies_ms([each.sent_at - each.due_at for each in (*sent, *beside)]),
        "cores": {role: (after[role] - before[role]) / seconds for role in after},
    }
    return report
