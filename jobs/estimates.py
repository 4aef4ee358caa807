"""When a queued job will have ended: from how fast its line moves, corrected by how earlier estimates held.

A raw estimate is the jobs before it divided by the measured rate, and the time from the window to the end. For each
size of estimate a factor makes it the median, and a second one, beyond that, the 90th percentile. The store moves
both a little with every micro-batch that ends (commit.lua), so that half, and a tenth, of the jobs take longer,
whatever the load is like. The median follows what jobs took by their raw estimates: judged by what they were told, a
whole queue ago, it would swing.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec

SIZES_S = (0.05, 0.25, 1.0, 5.0, 30.0)
"""Bounds between the sizes of raw estimates that have factors of their own."""
HOPS_S = 0.01
"""What a micro-batch costs beside its jobs: three hops on the broker, measured."""
SERVICE_S = 0.02
"""From the window to the end on an idle system, until it has been measured."""
MEASURED_JOBS = 5
"""A rate that was measured on fewer jobs than these is not taken for one."""
START_P90 = math.log(2.0)


class Pace(msgspec.Struct, frozen=True):
    """How fast a line moves: jobs a second (None: not known), seconds from window to end, jobs in a micro-batch."""

    jobs_per_s: float | None
    service_s: float
    fill: float
    factors: tuple[tuple[float, float], ...]


class Told(msgspec.Struct, array_like=True, frozen=True):
    """The estimate that a job was let in with, as its head keeps it, in ms from then."""

    size: int
    raw_ms: int
    median_ms: int
    p90_ms: int


class Estimate(msgspec.Struct, frozen=True):
    """Seconds from now to the end: raw, median and 90th percentile. ``size``: which factors made the latter two."""

    size: int
    raw_s: float
    finish_in_s: float
    p90_finish_in_s: float

    def told(self) -> Told:
        """In the form that a job's head keeps."""
        return Told(self.size, int(self.raw_s * 1000), int(self.finish_in_s * 1000), int(self.p90_finish_in_s * 1000))


def pace_of(fields: Mapping[str, float], costs_us: Sequence[float], slots: int, jobs_max: int, slice_us: int) -> Pace:
    """From what the store keeps of a line, the costs of its stages, and the slots that serve it now."""
    busy = fields.get("t", 0.0)
    rate: float | None = None
    if slots and busy > 0 and fields.get("n", 0.0) >= MEASURED_JOBS:
        rate = fields.get("n", 0.0) / busy * slots * 1000
    elif slots and costs_us:
        jobs = max(1.0, min(jobs_max, slice_us / max(1.0, *costs_us)))
        rate = jobs / (jobs * sum(costs_us) / 1e6 + HOPS_S)
    factors = tuple(
        (math.exp(median), math.exp(median + fields.get(f"f90:{size}", START_P90)))
        for size in range(len(SIZES_S) + 1)
        for median in (fields.get(f"f50:{size}", 0.0),)
    )
    return Pace(rate, fields.get("service", SERVICE_S * 1000) / 1000, fields.get("fill", 0.0), factors)


def estimate(ahead: float, pace: Pace, others_s: float = 0.0) -> Estimate | None:
    """When a job with so many others before it will have ended; None while nobody works on its line.

    ``others_s``: how long the lines that go before its own will keep the workers.
    """
    if not pace.jobs_per_s:
        return None
    raw_s = others_s + ahead / pace.jobs_per_s + pace.service_s
    size = bisect.bisect_right(SIZES_S, raw_s)
    median, p90 = pace.factors[size]
    return Estimate(size, raw_s, raw_s * median, raw_s * p90)


def verdict(held: Iterable[tuple[Told, int]]) -> str:
    """How estimates held: for each job what it was told and what it took, in ms, in the form that the store takes.

    ``size:logarithm of what it took by the raw estimate:1 where that was above the 90th percentile``, blanks between.
    """
    return " ".join(
        f"{told.size}:{math.log(max(1, took_ms) / max(1, told.raw_ms)):.4f}:{took_ms > told.p90_ms:d}"
        for told, took_ms in held
    )
