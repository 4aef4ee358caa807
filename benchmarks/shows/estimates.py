"""What clients are told of the end of their jobs, against when these ended: bursts, lulls, two models, two lanes.

A 90th percentile is right where nine jobs in ten end before it: more would be as wrong as fewer. The estimates at
submit are judged by the worker, which counts how they held; those of polls by this client, which asks for each job
once, at a chance instant, and then waits for its end.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple

import msgspec

from benchmarks.shows import drive, heavy
from benchmarks.shows.client import Client, get
from benchmarks.shows.drive import Document, task_id
from benchmarks.shows.report import Report, latencies_ms, percentile, share
from benchmarks.shows.stand import Stand
from benchmarks.sides import MODEL

SECONDS = 90.0
APART = True
SETTINGS: dict[str, str] = {}

SEED: Final = 5
LOW: Final = 0.85
HIGH: Final = 0.95
PHASE_S: Final = 3.0
LOADS: Final = (0.3, 1.6, 0.1, 3.0, 0.2, 0.7, 0.0, 0.9, 2.2, 0.4, 0.0, 0.5)
"""Load of each phase in capacities; on average eight tenths, so that queues come and go."""
BURST: Final = 100
"""Jobs that come at once at the start of every fourth phase."""
BURST_EVERY: Final = 4
BULK_EVERY: Final = 10
LIGHT_EVERY: Final = 5
POLL_WITHIN_S: Final = 0.5
DEPTH_EVERY_S: Final = 0.25


class Arrival(NamedTuple):
    """A job: when it comes, in seconds from the start; its model and lane."""

    at_s: float
    model: str
    lane: str


class _Estimate(msgspec.Struct):
    finish_in_s: float
    p90_finish_in_s: float


class _Pending(msgspec.Struct):
    status: str
    estimate: _Estimate | None = None


class Told(NamedTuple):
    """An estimate that a poll was told, and how many seconds after it the job ended."""

    line: str
    finish_in_s: float
    p90_finish_in_s: float
    took_s: float

    @property
    def error_s(self) -> float:
        """How far off it was."""
        return abs(self.took_s - self.finish_in_s)


_read_pending = msgspec.json.Decoder(_Pending).decode


def show(standing: Stand, seconds: float) -> Report:
    """Put the load on, collect what was told."""
    return drive.run(_show(standing, seconds))


async def _show(standing: Stand, seconds: float) -> Report:
    async with Client(standing.port) as client:
        capacity = await drive.capacity(client, heavy.NAME, min(15.0, seconds / 4))
        await drive.capacity(client, MODEL, 1.0)
        standing.wait_until_empty()
        before, cpu = standing.worker_figures(), standing.cpu_s()
        depths: list[int] = []
        watch = asyncio.create_task(_watch(standing, depths))
        ends = await _offer(client, list(arrivals(capacity, seconds)))
        watch.cancel()
        standing.wait_until_empty()
        used, after = standing.cpu_s(), standing.worker_figures()

    held, missed = (
        after.total("penstock_estimates_total", p90_held=word)
        - before.total("penstock_estimates_total", p90_held=word)
        for word in ("yes", "no")
    )
    told = [each for _, each in ends if each is not None]
    report = Report()
    report.between("jobs that ended before the p90 of their submit", share(held, held + missed), LOW, HIGH)
    report.between("jobs that ended before the p90 of a poll", covered(told), LOW, HIGH)
    report.exactly("jobs that did not complete", sum(document is None for document, _ in ends), 0)
    report.figures = {
        "capacity_jobs_s": capacity,
        "jobs": len(ends),
        "estimates_at_submit": int(held + missed),
        "estimates_polled": len(told),
        "by_line": {
            line: {"covered": covered(some), "told": len(some), **errors(some)}
            for line in sorted({each.line for each in told})
            if (some := [each for each in told if each.line == line])
        },
        **errors(told),
        "jobs_queued": {f"p{percent}": percentile(depths, percent) for percent in (10, 50, 90, 100)},
        "end_to_end": latencies_ms([document.took_s for document, _ in ends if document]),
        "cores": {role: (used[role] - cpu[role]) / seconds for role in used},
    }
    return report


def arrivals(capacity: float, seconds: float) -> Iterator[Arrival]:
    """Jobs in the order of their coming, at chance instants (Poisson) at the rate of each phase."""
    draw = random.Random(SEED)  # noqa: S311 - a load, not a secret
    number = 0
    for phase in range(math.ceil(seconds / PHASE_S)):
        start_s, rate = phase * PHASE_S, LOADS[phase % len(LOADS)] * capacity
        end_s = min(start_s + PHASE_S, seconds)
        times = [start_s] * (BURST if phase % BURST_EVERY == 1 else 0)
        at_s = start_s
        while rate and (at_s := at_s + draw.expovariate(rate)) < end_s:
            times.append(at_s)
        for each in times:
            number += 1
            model = MODEL if number % LIGHT_EVERY == 0 else heavy.NAME
            yield Arrival(each, model, "bulk" if number % BULK_EVERY == 1 else "interactive")


def covered(told: Sequence[Told]) -> float:
    """The share of jobs that ended before their 90th percentile."""
    return share(sum(each.took_s <= each.p90_finish_in_s for each in told), len(told))


def errors(told: Sequence[Told]) -> dict[str, float]:
    """How far estimates were off, in the middle: in seconds, and by what the job really took."""
    relative = [each.error_s / each.took_s for each in told if each.took_s > 0]
    return {
        "median_error_s": percentile([each.error_s for each in told], 50),
        "median_relative_error": percentile(relative, 50),
    }


async def _offer(client: Client, jobs: Sequence[Arrival]) -> list[tuple[Document | None, Told | None]]:
    draw = random.Random(SEED + 1)  # noqa: S311 - when to poll, not a secret
    streams = {
        (model, lane): drive.submits(model, wait_s=0, lane=lane, cache="off")
        for model in (heavy.NAME, MODEL)
        for lane in ("interactive", "bulk")
    }
    started = time.monotonic()
    tasks = []
    for job in jobs:
        left_s = started + job.at_s - time.monotonic()
        if left_s > 0:
            await asyncio.sleep(left_s)
        request = next(streams[job.model, job.lane])
        tasks.append(asyncio.create_task(_one(client, request, job, draw.random() * POLL_WITHIN_S)))
    return list(await asyncio.gather(*tasks))


async def _one(client: Client, request: bytes, job: Arrival, pause_s: float) -> tuple[Document | None, Told | None]:
    """Submit, poll once after a pause, wait for the end."""
    answer = await client.ask(request)
    if answer.status != HTTPStatus.ACCEPTED:
        return None, None
    path = f"/result/{task_id(answer)}"
    await asyncio.sleep(pause_s)
    answer = await client.ask(get(path))
    polled_at = time.time()
    pending = _read_pending(answer.body) if answer.status == HTTPStatus.ACCEPTED else None
    while answer.status == HTTPStatus.ACCEPTED:
        answer = await client.ask(get(path, wait_s=drive.WAIT_S))
    if answer.status != HTTPStatus.OK:
        return None, None
    document = drive.read_document(answer.body)
    if document.status != "completed":
        return None, None
    if pending is None or pending.estimate is None:
        return document, None
    took_s = document.ended_at.timestamp() - polled_at
    estimate = pending.estimate
    return document, Told(f"{job.model}/{job.lane}", estimate.finish_in_s, estimate.p90_finish_in_s, took_s)


async def _watch(standing: Stand, depths: list[int]) -> None:
    while True:
        depths.append(standing.waiting())
        await asyncio.sleep(DEPTH_EVERY_S)
