"""From single measurements to medians, spreads and ratios."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

Run = Mapping[str, Any]

SPREAD = ("jobs_s", "p50_ms", "p90_ms", "p99_ms", "polls")
"""Figures summed up as median, lowest and highest."""
TOTALS = ("accepted", "completed", "late", "lost", "failed", "wrong", "broken")
"""Counts summed over repetitions; all but the first three should be 0."""
OURS = "ours"
ONE = 1
"""Connections of the client that is alone."""


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """Sum up groups (side, broker, connections) and the ratios between them."""
    return {"groups": groups(runs), "ratios": ratios(runs)}


def groups(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One entry for each side, broker and number of connections, in the order of measuring."""
    entries = []
    for key in dict.fromkeys(_group_of(run) for run in runs):
        members = [run for run in runs if _group_of(run) == key]
        entries.append(
            {
                **dict(zip(("broker", "connections", "side"), key, strict=True)),
                "poll_ms": members[0]["poll_ms"],
                "repetitions": len(members),
                **{name: spread(run[name] for run in members) for name in SPREAD},
                **{name: sum(run[name] for run in members) for name in TOTALS},
                "statuses": _add(run["statuses"] for run in members),
                "cores": {role: median(run["cores"][role] for run in members) for role in members[0]["cores"]},
            }
        )
    return entries


def ratios(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Ratios within one repetition, then their median and spread."""
    others = [side for side in dict.fromkeys(run["side"] for run in runs) if side != OURS]
    loads = sorted({(run["broker"], run["connections"]) for run in runs}, reverse=True)
    found = []
    for (broker, connections), other in itertools.product(loads, others):
        figure = "p50_ms" if connections == ONE else "jobs_s"
        over = _picker(broker=broker, connections=connections, side=OURS)
        under = _picker(broker=broker, connections=connections, side=other)
        found.append(_ratio(f"{OURS} / {other}", broker, connections, figure, _pairs(runs, over, under, figure)))
    for connections in sorted({run["connections"] for run in runs} - {ONE}, reverse=True):
        over = _picker(broker="rabbitmq", connections=connections, side=OURS)
        under = _picker(broker="redis", connections=connections, side=OURS)
        pairs = _pairs(runs, over, under, "jobs_s")
        found.append(_ratio("rabbitmq / redis", "both", connections, "jobs_s", pairs))
    return [ratio for ratio in found if ratio["repetitions"]]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    listed = list(values)
    return {"median": median(listed), "min": min(listed), "max": max(listed)}


def _group_of(run: Run) -> tuple[str, int, str]:
    return run["broker"], run["connections"], run["side"]


def _picker(**wanted: object) -> Callable[[Run], bool]:
    return lambda run: all(run[name] == value for name, value in wanted.items())


def _pairs(
    runs: Sequence[Run], over: Callable[[Run], bool], under: Callable[[Run], bool], figure: str
) -> list[float]:
    """Figure of ``over`` by figure of ``under``, for each repetition that has both."""
    below = {run["pair"]: run[figure] for run in runs if under(run)}
    return [run[figure] / below[run["pair"]] for run in runs if over(run) and below.get(run["pair"])]


def _ratio(what: str, broker: str, connections: int, figure: str, values: Sequence[float]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "what": what,
        "broker": broker,
        "connections": connections,
        "figure": figure,
        "repetitions": len(values),
    }
    return entry | (spread(values) if values else {})


def _add(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for status, times in count.items():
            total[status] = total.get(status, 0) + times
    return dict(sorted(total.items()))
