"""The look command: what a gateway knows of the whole system, read at one moment several times a second."""

from __future__ import annotations

from typing import Any

import msgspec

from jobs.commands import Command

LINES_MAX, TURNS_MAX, TENANTS_MAX = 200, 1_000, 10_000


class PoolSeen(msgspec.Struct, frozen=True):
    """Workers and slots that give signs of life; micro-batches in the window, and how many of these are bulk."""

    workers: int
    slots: int
    live: int
    bulk: int


class LineSeen(msgspec.Struct, frozen=True):
    """Jobs that wait; where the line stands, and where each tenant's next job would go; pace; costs by stage."""

    waiting: int
    now: float
    turns: dict[str, float]
    pace: dict[str, float]
    costs_us: list[float]


class Seen(msgspec.Struct, frozen=True):
    """Everything at one moment. ``open_jobs``: queued or processing, of all tenants; ``open_by_tenant``: of each."""

    now_ms: int = 0
    open_jobs: int = 0
    open_by_tenant: dict[str, int] = {}
    paused: frozenset[str] = frozenset()
    starting: int = 0
    pools: dict[str, PoolSeen] = {}
    lines: dict[str, LineSeen] = {}
    cached: int = 0
    evicted: int = 0


def look() -> Command[Seen]:
    """Look at the system."""
    return Command("look", (LINES_MAX, TURNS_MAX, TENANTS_MAX), _seen)


def _seen(reply: list[Any]) -> Seen:
    now_ms, open_jobs, tenants, paused, starting, pools, lines, cached, evicted = reply
    return Seen(
        now_ms,
        open_jobs,
        {name: int(count) for name, count in _pairs(tenants)},
        frozenset(each.decode() for each in paused),
        starting,
        {each[0].decode(): PoolSeen(*each[1:]) for each in pools},
        {each[0].decode(): _line(*each[1:]) for each in lines},
        cached,
        evicted,
    )


def _line(waiting: int, now: bytes, turns: list[bytes], pace: list[bytes], costs: list[bytes]) -> LineSeen:
    by_tenant = {name: float(turn) for name, turn in _pairs(turns) if name != ".now"}
    fields = {name: float(value) for name, value in _pairs(pace)}
    return LineSeen(waiting, float(now), by_tenant, fields, [float(each) for each in costs])


def _pairs(flat: list[bytes]) -> list[tuple[str, bytes]]:
    return [(name.decode(), value) for name, value in zip(flat[::2], flat[1::2], strict=True)]
