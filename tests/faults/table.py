"""The table of docs/reliability.md, made of the result files: ``python -m tests.faults.table`` writes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.faults.fault_system import BROKERS
from tests.faults.results import read_all
from tests.system import ROOT

PAGE: Final = ROOT / "docs" / "reliability.md"
BEGIN: Final = "<!-- made by `python -m tests.faults.table`: begin -->"
END: Final = "<!-- end -->"
HEAD: Final = ("fault", "what is measured", "bound", *BROKERS, "accepted", "lost", "wrong", "doubled")
BREACHES: Final = ("lost", "wrong", "doubled")


def render(results: Sequence[Mapping[str, Any]]) -> str:
    """A line for each fault, then what was measured where."""
    faults: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for result in sorted(results, key=lambda each: each["fault"]):
        faults.setdefault((result["fault"], result["number"]), {})[result["broker"]] = result
    rows = [_row(by_broker) for by_broker in faults.values()]
    lines = ["| " + " | ".join(row) + " |" for row in (HEAD, ["---"] * len(HEAD), *rows)]
    return "\n".join(lines) + "\n\n" + _provenance(results)


def filled(page: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The page with the table of these results between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{render(results)}\n{END}{after}"


def _row(by_broker: Mapping[str, Mapping[str, Any]]) -> list[str]:
    some = next(iter(by_broker.values()))
    sums = [str(sum(result[name] for result in by_broker.values())) for name in ("accepted", *BREACHES)]
    cells = [_cell(by_broker.get(broker)) for broker in BROKERS]
    return [some["fault"], some["number"], _bound(some), *cells, *sums]


def _cell(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    value = "" if result["value"] is None else f"{result['value']:g} {result['unit']}".strip()
    return value or "passed" if result["passed"] else f"**failed** {value}".strip()


def _bound(result: Mapping[str, Any]) -> str:
    """The bound as a reader says it."""
    if result["at_most"] is not None:
        return f"≤ {result['at_most']:g} {result['unit']}".strip()
    if result["at_least"] is not None:
        return f"≥ {result['at_least']:g} {result['unit']}".strip()
    return ""


def _provenance(results: Sequence[Mapping[str, Any]]) -> str:
    if not results:
        return "Nothing was measured yet."
    passed = sum(bool(result["passed"]) for result in results)
    youngest = max(results, key=lambda each: str(each["meta"]["measured_at"]))["meta"]
    oldest = min(str(result["meta"]["measured_at"]) for result in results)
    commits = sorted({result["meta"]["commit"][:8] for result in results})
    versions = youngest["versions"]
    return (
        f"{len(results)} cases, {passed} passed; measured {oldest[:10]} to {youngest['measured_at'][:10]} at "
        f"{', '.join(commits)} on {youngest['cores']} cores; Redis {versions['redis-server']}, "
        f"RabbitMQ {versions['rabbitmq-server']}, Python {versions['python']}, Celery {versions['celery']}, "
        f"ONNX Runtime {versions['onnxruntime']}."
    )


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(), list(read_all())))
    print(f"{PAGE} is written", file=sys.stderr)  # noqa: T201 -- a command says what it did
