"""What a demonstration found: bounds that held or not, the figures beside them, and how both are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

RECOVERED_PROBES: Final = 5
"""So many probes in a row must be as fast as before."""


@dataclass(frozen=True)
class Check:
    """A bound, and what was measured."""

    what: str
    measured: float
    bound: str
    held: bool
    unit: str = ""


@dataclass
class Report:
    """All that one demonstration found; ``figures`` are those without a bound, by their names with units."""

    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        """Whether every bound held."""
        return all(check.held for check in self.checks)

    def at_least(self, what: str, measured: float, bound: float, unit: str = "") -> None:
        """Judge what must not be less than its bound; what was not measured (NaN) did not hold."""
        self.checks.append(Check(what, measured, f">= {bound:g}", bool(measured >= bound), unit))

    def below(self, what: str, measured: float, bound: float, unit: str = "") -> None:
        """Judge what must be less than its bound."""
        self.checks.append(Check(what, measured, f"< {bound:.4g}", bool(measured < bound), unit))

    def between(self, what: str, measured: float, low: float, high: float, unit: str = "") -> None:
        """Judge what must lie between two bounds."""
        self.checks.append(Check(what, measured, f"{low:g} to {high:g}", bool(low <= measured <= high), unit))

    def exactly(self, what: str, measured: float, bound: float, unit: str = "") -> None:
        """Judge a count."""
        self.checks.append(Check(what, measured, f"= {bound:g}", measured == bound, unit))


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile; NaN where there is nothing to take it of."""
    return float(np.percentile(values, percent)) if len(values) else float("nan")


def share(part: float, whole: float) -> float:
    """A part of the whole; NaN where there is no whole."""
    return part / whole if whole else float("nan")


def latencies_ms(values_s: Sequence[float]) -> dict[str, float]:
    """What is shown of latencies: 50th, 95th, 99th percentile, the longest, in ms, and how many there are."""
    named = {f"p{percent}_ms": round(percentile(values_s, percent) * 1000, 2) for percent in (50, 95, 99, 100)}
    return {**named, "count": len(values_s)}


def recovered_after(probes: Sequence[tuple[float, float]], limit_s: float, ended_at: float) -> float:
    """Seconds from ``ended_at`` to the first of ``RECOVERED_PROBES`` in a row that took at most ``limit_s``.

    ``probes``: when each was due, and how long it took (infinite: it was refused). Infinite where it never came.
    """
    ordered = sorted(probes)
    for place in range(len(ordered) - RECOVERED_PROBES + 1):
        row = ordered[place : place + RECOVERED_PROBES]
        if all(took_s <= limit_s for _, took_s in row):
            return max(0.0, row[0][0] - ended_at)
    return float("inf")


def render(name: str, report: Report) -> str:
    """Tables for a terminal, and for a page."""
    rows = [
        (check.what, f"{_number(check.measured)} {check.unit}".strip(), check.bound, "yes" if check.held else "NO")
        for check in report.checks
    ]
    figures = [(what, _shown(value)) for what, value in report.figures.items()]
    verdict = "every bound held" if report.held else "A BOUND DID NOT HOLD"
    return "\n\n".join(
        (_table(("bound", "measured", "wanted", "held"), rows), _table(("figure", "value"), figures))
        if figures
        else (_table(("bound", "measured", "wanted", "held"), rows),)
    ) + (f"\n\n{name}: {verdict}")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    rule = ["-" * width for width in widths]
    lines = (" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows))
    first, *rest = (f"| {line} |" for line in lines)
    return "\n".join((first, f"|-{'-|-'.join(rule)}-|", *rest))
