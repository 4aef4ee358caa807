"""What a soak is judged by: pure functions over series of numbers, so that they can be tried on made-up ones.

A bound on growth in a day cannot be measured in ten minutes: memory does not rise along a line, it climbs in steps,
whenever an allocator asks for its next megabyte, and one such step is more than the day may bring. So each judgement
is an estimate with an interval, and only what lies beyond its bound with all of its interval is a breach. What could
have gone unnoticed is told beside it (`Growth.unnoticed_bytes_s`); a longer run makes that smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from jobs.estimates import SIZES_S

DAY_S: Final = 86_400.0
GROWTH_BYTES: Final = 20e6
GROWTH_SHARE: Final = 0.05
"""A process may grow by the larger of the two in a day."""
BLOCKS: Final = 12
T_99: Final = 2.764
"""One-sided 99 % of Student's t with 10 degrees of freedom: 12 blocks have 11 steps between them."""
NOISE_BYTES: Final = 2 * 2**20
"""Two arenas of Python's allocator: a smaller rise is no leak that anybody could tell."""
POINTS_MAX: Final = 400
LATENCY_RATIO: Final = 1.1
RESAMPLES: Final = 4_000
COUNT_RISE: Final = 2.0
COUNT_SHARE: Final = 0.05
"""Counts (descriptors, threads, connections) are flat where they rise by no more than the larger of the two."""
PACE_FIELDS_MAX: Final = 6 + 2 * (len(SIZES_S) + 1)
"""Fields of ``pace:{line}``: six, and two for each size of estimate."""

Numbers = Sequence[float] | NDArray[Any]


class Growth(msgspec.Struct, frozen=True):
    """How a process's memory moved: bytes a second, with a one-sided bound of 99 % on either side."""

    median_bytes: float
    slope_bytes_s: float
    low_bytes_s: float
    high_bytes_s: float
    rise_bytes: float
    """From the first to the last block, all that happened in between."""
    seconds: float

    @property
    def allowed_bytes(self) -> float:
        """What a day may bring."""
        return max(GROWTH_BYTES, GROWTH_SHARE * self.median_bytes)

    @property
    def unnoticed_bytes_s(self) -> float:
        """A steady leak smaller than this may hide in what memory does by itself."""
        surely = self.slope_bytes_s - self.low_bytes_s + self.allowed_bytes / DAY_S
        return max(surely, NOISE_BYTES / self.seconds)

    @property
    def is_leak(self) -> bool:
        """Whether it surely grows by more than a day allows, or has done so already."""
        grows = self.low_bytes_s * DAY_S > self.allowed_bytes and self.rise_bytes > NOISE_BYTES
        return grows or self.rise_bytes > self.allowed_bytes


def theil_sen(at: Numbers, values: Numbers) -> float:
    """The median of the slopes between all pairs: units of ``values`` a second. Few outliers do not move it."""
    x, y = _thinned(np.asarray(at, float)), _thinned(np.asarray(values, float))
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def growth(at: Numbers, held_bytes: Numbers) -> Growth:
    """Theil-Sen's slope of evenly taken samples; at least two a block.

    The interval is that of a walk whose steps are independent: the standard error of the mean step from one block's
    median to the next. Steps of an allocator are rare and large, so they make it wide; a leak is in every step.
    """
    slope, error, medians = _slope(at, held_bytes)
    rise = float(medians[-1] - medians[0])
    return Growth(float(np.median(held_bytes)), slope, slope - error, slope + error, rise, float(at[-1] - at[0]))


class Trend(msgspec.Struct, frozen=True):
    """How a count moved under load: its median, and by how much it surely rose (99 %) from begin to end."""

    median: float
    rose: float

    @property
    def is_flat(self) -> bool:
        """Whether it did not surely rise by more than counts may."""
        return self.rose <= max(COUNT_RISE, COUNT_SHARE * self.median)


def trend(at: Numbers, counts: Numbers) -> Trend:
    """Judge a count that wavers with the load by the same slope and interval as memory."""
    slope, error, _ = _slope(at, counts)
    return Trend(float(np.median(counts)), (slope - error) * float(at[-1] - at[0]))


class Level(msgspec.Struct, frozen=True):
    """A count before the load and after it."""

    before: float
    after: float

    @property
    def is_flat(self) -> bool:
        """Whether it did not rise by more than counts may."""
        return self.after - self.before <= max(COUNT_RISE, COUNT_SHARE * self.before)


class Latency(msgspec.Struct, frozen=True):
    """Medians of the p95s of short windows, seconds; ``low`` bounds their ratio from below with 99 %."""

    first_s: float
    last_s: float
    ratio: float
    low: float

    @property
    def is_worse(self) -> bool:
        """Whether it surely rose by more than it may."""
        return self.low > LATENCY_RATIO


def latency(first_s: Numbers, last_s: Numbers) -> Latency:
    """Compare p95s of windows at the begin and at the end, by a bootstrap over windows: machines have bad moments."""
    first, last = np.asarray(first_s, float), np.asarray(last_s, float)
    assert min(len(first), len(last)) >= 5, f"{len(first)} and {len(last)} windows are too few to compare"
    draw = np.random.default_rng(1)
    ratios = _medians(last, draw) / _medians(first, draw)
    before, after = float(np.median(first)), float(np.median(last))
    return Latency(before, after, after / before, float(np.quantile(ratios, 0.01)))


def window_p95s(at: Numbers, seconds: Numbers, begin: float, end: float, window_s: float) -> list[float]:
    """The p95 of each whole window of ``window_s`` from ``begin`` to ``end``; windows without a job are left out."""
    x, y = np.asarray(at, float), np.asarray(seconds, float)
    places = np.floor((x - begin) / window_s)
    whole = math.floor((end - begin) / window_s)
    parts = (y[places == place] for place in range(whole))
    return [float(np.quantile(part, 0.95)) for part in parts if len(part)]


def key_breaches(before: Mapping[str, int], after: Mapping[str, int], without_ttl: Sequence[str]) -> list[str]:
    """What keys say: none is new, none holds more than before, and none outside the list lives for ever.

    The pace of a line may fill up to its form: an estimate's size gets its fields when a job first has it.
    """
    new = sorted(after.keys() - before.keys())
    room = {name: PACE_FIELDS_MAX if name.startswith("pace:") else before[name] for name in before}
    grown = [name for name, size in after.items() if name in before and size > max(before[name], room[name])]
    return [
        *(f"new: {name}" for name in new),
        *(f"grown from {before[name]} to {after[name]}: {name}" for name in grown),
        *(f"without TTL: {name}" for name in without_ttl),
    ]


def _slope(at: Numbers, values: Numbers) -> tuple[float, float, NDArray[np.float64]]:
    """Theil-Sen's slope, how far off it may be, and the medians of the blocks."""
    x, y = np.asarray(at, float), np.asarray(values, float)
    assert len(x) >= 2 * BLOCKS, f"{len(x)} samples are too few to judge a slope by"
    medians = np.array([np.median(block) for block in np.array_split(y, BLOCKS)])
    steps, block_s = np.diff(medians), float(x[-1] - x[0]) / BLOCKS
    return theil_sen(x, y), T_99 * float(steps.std(ddof=1)) / math.sqrt(len(steps)) / block_s, medians


def _thinned(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[:: math.ceil(len(values) / POINTS_MAX)]


def _medians(values: NDArray[np.float64], draw: np.random.Generator) -> NDArray[np.float64]:
    drawn = draw.choice(values, (RESAMPLES, len(values)))
    return np.asarray(np.median(drawn, axis=1))
