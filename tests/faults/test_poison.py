"""One job that kills whichever worker runs it, among five hundred good ones."""

from __future__ import annotations

import pytest

from tests.faults.case import Case, claim
from tests.system import END_S

JOBS = 501
POISON = 100
EXECUTIONS_MAX = 4
ENDED_S = 120.0


@pytest.mark.faults
@claim("poison", "a poison job among 500 good ones", number="executions", unit="", at_most=EXECUTIONS_MAX)
def test_a_poison_job_fails_after_four_executions_and_the_good_complete(case: Case) -> None:
    system = case.system
    with case.workload(JOBS, mixed=False) as quiet:
        pass
    case.measure()
    undisturbed = _per_second(case, quiet.accepted_ids(), quiet.started_at)

    faults = "inference.run=kill?poison"
    for worker in system.workers:
        system.arm(worker, faults)
    system.wait_ready()
    with case.workload(JOBS, mixed=False, poison=POISON) as workload:

        def over() -> bool:
            return not workload.running and workload.accepted_ids() <= case.endings.at.keys()

        deaths = system.supervise(over, ENDED_S, faults)
    tally = case.check(number=len(deaths))
    good = workload.accepted_ids() - {workload.submits[POISON].task_id}
    case.notes["throughput_of_undisturbed"] = round(_per_second(case, good, workload.started_at) / undisturbed, 2)
    document = system.ended(workload.submits[POISON].task_id, END_S)
    assert document["error"]["code"] == "worker-lost"
    assert tally.completed == JOBS + JOBS - 1


def _per_second(case: Case, task_ids: set[str], started_at: float) -> float:
    return len(task_ids) / (max(case.endings.at[task_id] for task_id in task_ids) - started_at)
