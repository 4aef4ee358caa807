"""The soak: ten minutes at 60 % of what the system can do, or as many as SOAK_S says; and what it must notice.

`make soak` runs it. A run of ten minutes or more writes `tests/soak/results/soak-{kind}.json`; a shorter one proves
the instruments.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

import pytest

from benchmarks.provenance import provenance
from tests.faults.fault_system import BROKERS
from tests.soak.soak import Soak, Verdict
from tests.soak.soak_system import SoakSystem

SECONDS: Final = float(os.environ.get("SOAK_S", "600"))
CONTROL_S: Final = 90.0
"""Each worker sees its 5,000th job after its restart."""
AROUND_S: Final = 400.0
"""Start, capacity, drain and end of a run, generously."""
WRITTEN_FROM_S: Final = 600.0
RESULTS: Final = Path(__file__).parent / "results"

pytestmark = pytest.mark.slow


@pytest.mark.timeout(SECONDS + AROUND_S)
@pytest.mark.parametrize("kind", BROKERS)
def test_nothing_grows_and_nothing_is_lost(kind: str, tmp_path: Path) -> None:
    with SoakSystem(kind, tmp_path) as system:
        verdict = Soak(system, SECONDS).run()
    _write(kind, verdict, tmp_path)
    assert not verdict.breaches, f"\n{verdict}"


@pytest.mark.timeout(CONTROL_S + AROUND_S)
@pytest.mark.parametrize(("defect", "promise"), [("leak", "memory"), ("keys", "keys"), ("drop", "lost")])
def test_a_defect_is_noticed(defect: str, promise: str, tmp_path: Path) -> None:
    with SoakSystem("redis", tmp_path, defect=defect) as system:
        verdict = Soak(system, CONTROL_S).run()
    _write(defect, verdict, tmp_path)
    assert promise in verdict.breaches
    assert defect == "drop" or "lost" not in verdict.breaches
    if defect == "leak":
        assert {each.split()[0] for each in verdict.breaches["memory"]} == {"gateway", "worker-0", "worker-1"}


def _write(name: str, verdict: Verdict, folder: Path) -> None:
    """Write what was found: into the results where it is worth keeping, else beside the logs."""
    kept = name in BROKERS and verdict.figures["seconds"] >= WRITTEN_FROM_S
    target = RESULTS if kept else folder
    target.mkdir(exist_ok=True)
    whole = {
        "kind": name,
        "passed": not verdict.breaches,
        "breaches": verdict.breaches,
        **verdict.figures,
        "meta": provenance(),
    }
    (target / f"soak-{name}.json").write_text(json.dumps(whole, indent=1) + "\n")
