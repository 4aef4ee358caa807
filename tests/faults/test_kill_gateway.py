"""The gateway dies between acceptance, publish and answer; whoever supervises it starts it again."""

from __future__ import annotations

import pytest

from tests.faults.case import JOBS, Case, claim
from tests.faults.checker import task_ids
from tests.waiting import wait_until

DEATH_S = 20.0
FAST = "stored"
"""The one that `make test` runs too."""
POINTS = {
    "stored": "kill -9 gateway after the record, before the publish",
    "published": "kill -9 gateway after the publish, before the answer",
}


def _case(point: str) -> object:
    marks = [claim(f"gateway-{point}", POINTS[point], at_most=15.0)]
    return pytest.param(point, marks=marks if point == FAST else [*marks, pytest.mark.faults])


@pytest.mark.parametrize("point", [_case(point) for point in POINTS])
def test_jobs_of_a_gateway_killed_in_a_submit_end_once(case: Case, point: str) -> None:
    gateway = case.system.gateway
    case.system.arm(gateway, f"gateway.{point}=kill?nth:30")
    case.system.wait_ready()
    with case.workload(repeat="none"):  # a repeat stores nothing, so it would leave no orphan
        wait_until(lambda: not gateway.running, DEATH_S, "the gateway dies")
        gateway.start()
        case.system.wait_ready()
        case.fault()
    tally = case.check()
    assert tally.unknown >= 1, "the kill hit no submit"
    assert tally.orphans >= 1, "the job of the unanswered submit was stored"


@pytest.mark.faults
@claim(
    "gateway-published-keys",
    "kill -9 gateway after the publish, before the answer; the client repeats with its key",
    number="jobs a key",
    unit="",
    at_most=1.0,
    at_least=1.0,
)
def test_a_client_that_repeats_with_its_key_has_one_job_whatever_the_gateway_had_done(case: Case) -> None:
    gateway = case.system.gateway
    case.system.arm(gateway, "gateway.published=kill?nth:30")
    case.system.wait_ready()
    before = task_ids(case.system)
    with case.workload(repeat="all") as workload:
        wait_until(lambda: not gateway.running, DEATH_S, "the gateway dies")
        gateway.start()
        case.system.wait_ready()
        case.fault()
    assert any(submit.left_unknown for submit in workload.submits), "the kill hit no submit"
    assert len(workload.accepted()) == JOBS, "a repeat was not answered"
    case.check(len(task_ids(case.system) - before) / JOBS)
