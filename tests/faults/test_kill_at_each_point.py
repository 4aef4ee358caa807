"""A worker dies at each point of each stage; whoever supervises it starts it again a second later."""

from __future__ import annotations

import pytest

from jobs.records import STAGES
from tests.faults.case import Case, claim
from tests.system import END_S
from tests.waiting import wait_until

DEATH_S = 20.0
POINTS = {
    "received": "on receipt, before the lease",
    "taken": "with the lease, before the run",
    "run": "in the run",
    "ran": "after the run, before the commit",
    "committed": "after the commit, before the ack",
}


def _cases() -> list[object]:
    return [
        pytest.param(
            f"{stage}.{point}",
            marks=claim(f"worker-{stage}-{point}", f"kill -9 worker {when}: {stage}", at_most=10.0),
        )
        for stage in STAGES
        for point, when in POINTS.items()
    ]


@pytest.mark.faults
@pytest.mark.parametrize("point", _cases())
def test_jobs_of_a_worker_killed_at_a_point_run_again_and_end_once(case: Case, point: str) -> None:
    worker = case.system.workers[0]
    case.system.arm(worker, f"{point}=kill?nth:3")
    case.system.wait_ready()
    with case.workload() as workload:
        wait_until(lambda: not worker.running, DEATH_S, "the worker dies")
        case.fault()
        case.system.supervise(lambda: not workload.running, END_S)
    tally = case.check()
    assert tally.executions is not None
    assert tally.executions <= tally.completed + case.system.in_flight_max
