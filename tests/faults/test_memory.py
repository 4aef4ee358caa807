"""A stage runs out of memory, or is left by an exception that Python's threads do not survive."""

from __future__ import annotations

import pytest

from jobs.records import STAGES
from tests.faults.case import Case, claim
from tests.system import END_S
from tests.waiting import wait_until

ALONE = 20
ACTIONS = {"memory": "out of memory", "exit": "SystemExit"}
NTH = 3


AROUND = "preprocess.received=raise:memory?nth:3;inference.taken=raise:memory?nth:3"
"""One for each slot of a worker, outside of what the stage function may raise."""


def _cases() -> list[object]:
    inside = [
        pytest.param(
            stage,
            f"{stage}.run=raise:{action}?nth:{NTH}",
            marks=claim(f"{action}-{stage}", f"{what} in a stage: {stage}", at_most=10.0),
        )
        for stage in STAGES
        for action, what in ACTIONS.items()
    ]
    around = claim("memory-around-stages", "out of memory on receipt, and after the lease was taken", at_most=10.0)
    return [*inside, pytest.param("inference", AROUND, marks=around)]


@pytest.mark.faults
@pytest.mark.parametrize(("stage", "fault"), _cases())
def test_a_stage_that_an_error_leaves_costs_no_worker_no_slot_and_no_job(case: Case, stage: str, fault: str) -> None:
    system = case.system
    hit, other = system.workers
    system.arm(hit, fault)
    system.wait_ready()
    pid = hit.pid

    def runs() -> float:
        return system.figures(hit).total("penstock_stage_seconds_count", stage=stage)

    with case.workload():
        wait_until(lambda: runs() >= NTH, END_S, "the fault is met")
        case.fault()
    case.check()
    assert hit.running
    assert hit.pid == pid

    other.stop()
    before = runs()
    alone = [system.submit() for _ in range(ALONE)]
    assert {system.ended(task_id)["status"] for task_id in alone} == {"completed"}
    wait_until(lambda: runs() > before, END_S, "the worker that was hit runs on alone")
