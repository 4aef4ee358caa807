"""``GET /capacity``: what the system can do now, and what waits for it."""

from __future__ import annotations

import msgspec

from api.capacity import Capacity, Line
from jobs.looks import PoolSeen
from jobs.records import LANES


class WorkersView(msgspec.Struct, frozen=True):
    """Workers by state: those that take work, and those that load their models."""

    ready: int
    starting: int


class WindowView(msgspec.Struct, frozen=True):
    """Micro-batches in the broker or at work, and how many of these are bulk."""

    microbatches: int
    bulk: int


class PoolView(msgspec.Struct, frozen=True):
    """A pool: its workers, the stages that they run at once, its window."""

    pool: str
    workers: int
    slots: int
    window: WindowView


class LineView(msgspec.Struct, frozen=True):
    """A version of a model in one lane.

    ``jobs_per_s``: as measured while jobs waited (null: not known, or nobody works on it); ``service_s``: from the
    window to the end; ``microbatch_jobs``: the mean; ``seconds_to_drain``: what waits, at this rate.
    """

    model: str
    version: int
    lane: str
    pool: str
    waiting: int
    paused: bool
    jobs_per_s: float | None
    service_s: float
    microbatch_jobs: float
    seconds_to_drain: float | None


class CapacityView(msgspec.Struct, frozen=True):
    """All of it, at most a second old. ``jobs_per_s`` is the sum of the lines that wait now."""

    open_jobs: int
    open_jobs_max: int
    jobs_per_s: float
    seconds_to_drain: dict[str, float | None]
    workers: WorkersView
    pools: list[PoolView]
    lines: list[LineView]


def capacity_view(capacity: Capacity, open_jobs_max: int) -> CapacityView:
    """What is known now."""
    seen = capacity.seen
    lines = [_line(capacity, name, line) for name, line in sorted(capacity.lines.items())]
    return CapacityView(
        capacity.open_jobs,
        open_jobs_max,
        round(sum(each.jobs_per_s or 0.0 for each in lines if each.waiting), 1),
        {lane: _rounded(capacity.to_drain_s(lane)) for lane in LANES},
        WorkersView(sum(pool.workers for pool in seen.pools.values()), seen.starting),
        [_pool(name, pool) for name, pool in sorted(seen.pools.items())],
        lines,
    )


def _pool(name: str, pool: PoolSeen) -> PoolView:
    return PoolView(name, pool.workers, pool.slots, WindowView(pool.live, pool.bulk))


def _line(capacity: Capacity, name: str, line: Line) -> LineView:
    pool, lane, model, version = name.split("/")
    rate, pace = line.pace.jobs_per_s, line.pace
    drain_s = line.waiting / rate if rate else (None if line.waiting else 0.0)
    return LineView(
        *(model, int(version), lane, pool, line.waiting, capacity.is_paused(name)),
        *(_rounded(rate), round(pace.service_s, 3), round(pace.fill, 1), _rounded(drain_s)),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
