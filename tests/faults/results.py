"""Result files: one a case and broker, with what a reader needs to judge it.

A result is *current* while the code that it judges has not changed: product, models, and the tests that it runs with.
"""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.provenance import provenance
from tests.system import ROOT

FOLDER = Path(__file__).parent / "results"
JUDGED = ("api", "inference", "jobs", "models", "penstock", "postprocess", "preprocess", "tasks", "tests")
NOT_JUDGED = (":!tests/*/results/*", ":!tests/unit", ":!tests/contract", ":!tests/hostile", ":!tests/soak")


class Claim(msgspec.Struct, frozen=True):
    """What a case claims: a fault, and its own number with the bound that it must keep.

    ``fault`` is the line of the table in docs/reliability.md; cases with equal ``fault`` and ``number`` share it.
    """

    name: str
    fault: str
    number: str = "worst recovery"
    unit: str = "s"
    at_most: float | None = None
    at_least: float | None = None

    def holds(self, value: float | None) -> bool:
        """Whether the case's own number keeps its bound; a number that was not measured does not."""
        if self.at_most is None and self.at_least is None:
            return True
        if value is None:
            return False
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


@functools.cache
def code() -> str:
    """Digest of what is judged, as git has it; what is not committed counts by its difference."""
    listed = _git("ls-files", "-s", *JUDGED, *NOT_JUDGED)
    changed = _git("diff", "HEAD", "--", *JUDGED, *NOT_JUDGED)
    return sha256((listed + changed).encode()).hexdigest()[:16]


def path(claim: Claim, broker: str) -> Path:
    """Where the result of a case lies."""
    return FOLDER / f"{claim.name}-{broker}.json"


def is_current(claim: Claim, broker: str) -> bool:
    """Whether this very code has passed the case already."""
    found = path(claim, broker)
    if not found.exists():
        return False
    result = json.loads(found.read_text())
    return bool(result["passed"]) and result["meta"]["code"] == code()


def write(claim: Claim, broker: str, result: dict[str, Any]) -> None:
    """Write a result."""
    FOLDER.mkdir(exist_ok=True)
    whole = {**msgspec.to_builtins(claim), "broker": broker, **result, "meta": {"code": code(), **provenance()}}
    path(claim, broker).write_text(json.dumps(whole, indent=1) + "\n")


def read_all() -> Iterator[dict[str, Any]]:
    """Every result, by name and broker."""
    for found in sorted(FOLDER.glob("*.json")):
        yield json.loads(found.read_text())


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout
