"""Two hundred cancelled jobs, some running and most waiting, while every worker is killed and started again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.case import Case, claim
from tests.faults.workload import Submit
from tests.system import END_S
from tests.waiting import wait_until

JOBS = 200
CLIENTS = 8


@pytest.mark.faults
@claim("cancelled", "cancel 200 running and queued jobs, restart all workers", number="started", unit="", at_most=0)
def test_no_cancelled_job_is_started_after_its_cancel(case: Case) -> None:
    system = case.system
    for worker in system.workers:
        system.arm(worker, "inference.run=hang:20")
    system.wait_ready()
    with case.workload(JOBS, mixed=False, rate=JOBS) as workload:
        pass
    for worker in system.workers:
        system.wait_stuck(worker, END_S)

    def cancel(submit: Submit) -> int:
        headers = {"Authorization": system.keys[submit.tenant]}
        return system.client.post(f"/result/{submit.task_id}/cancel", headers=headers).status_code

    ids = [each.task_id for each in workload.accepted()]
    with ThreadPoolExecutor(CLIENTS) as pool:
        statuses = list(pool.map(cancel, workload.accepted()))
    case.notes["cancels"] = {str(status): statuses.count(status) for status in sorted(set(statuses))}
    assert set(statuses) == {200, 202}
    for submit in workload.submits:
        submit.kind = "cancel"
    for worker in system.workers:
        worker.kill()
    case.fault()
    before = dict(case.executions.times)
    system.start_roles()
    wait_until(lambda: set(ids) <= case.endings.at.keys(), END_S, "all have ended")
    assert system.ended(system.submit())["status"] == "completed"
    tally = case.measure()
    started = sum(case.executions.times[task_id] - before.get(task_id, 0) for task_id in ids)
    case.check(started)
    assert tally.cancelled == len(ids)
