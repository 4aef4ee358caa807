"""The tables of a result file, as aligned Markdown: for the terminal and for the README alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = (
    *("broker", "clients", "re-poll ms", "side", "jobs/s", "p50 ms", "p90 ms", "p99 ms", "polls/job"),
    *(
        "completed",
        "lost",
        "wrong",
        "failed",
        "broken",
        "cores: gateway",
        "worker",
        "broker",
        "store",
        "load",
    ),
)
ROLES = ("gateway", "worker", "broker", "store", "load")
LABELS = {"jobs_s": "jobs/s", "p50_ms": "p50 latency (lower is better)"}


def render(result: Mapping[str, Any]) -> str:
    """Provenance, figures and ratios of one result file."""
    summary = result["summary"]
    figures = [_figures(group) for group in summary["groups"]]
    ratios = [_ratio(ratio) for ratio in summary["ratios"]]
    return "\n\n".join(
        [
            _provenance(result["meta"]),
            markdown(HEAD, figures),
            markdown(("ratio", "broker", "clients", "of", "median", "lowest to highest", "pairs"), ratios),
        ]
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table with aligned columns."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [_line(row, widths) for row in (head, *rows)]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"


def _provenance(meta: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    changed = " with uncommitted changes" if meta["changed"] else ""
    before = f", against {meta['against']}" if meta.get("against") else ""
    return (
        f"Commit {meta['commit'][:12]}{changed}{before}, {meta['measured_at']}, {meta['cores']} cores "
        f"shared by all, 1-minute load before {meta['load_before']:.1f}; "
        f"{meta['pairs']} repetitions, windows of {meta['seconds']:g} s; {versions}."
    )


def _figures(group: Mapping[str, Any]) -> list[str]:
    return [
        group["broker"],
        str(group["connections"]),
        f"{group['poll_ms']:g}",
        group["side"],
        *(_spread(group[name]) for name in ("jobs_s", "p50_ms", "p90_ms", "p99_ms")),
        f"{group['polls']['median']:.1f}",
        *(str(group[name]) for name in ("completed", "lost", "wrong", "failed", "broken")),
        *(f"{group['cores'][role]:.2f}" if role in group["cores"] else "" for role in ROLES),
    ]


def _ratio(ratio: Mapping[str, Any]) -> list[str]:
    return [
        ratio["what"],
        ratio["broker"],
        str(ratio["connections"]),
        LABELS[ratio["figure"]],
        f"{ratio['median']:.2f}",
        f"{ratio['min']:.2f} to {ratio['max']:.2f}",
        str(ratio["repetitions"]),
    ]


def _spread(figure: Mapping[str, float]) -> str:
    digits = 0 if figure["median"] >= 100 else 1  # noqa: PLR2004 - three digits are enough
    return f"{figure['median']:.{digits}f} ({figure['min']:.{digits}f} to {figure['max']:.{digits}f})"
