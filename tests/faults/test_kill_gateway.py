"""The gateway dies between acceptance, publish and answer; whoever supervises it starts it again."""

from __future__ import annotations

import pytest

from tests.faults.case import Case, claim
from tests.waiting import wait_until

DEATH_S = 20.0
POINTS = {
    "stored": "kill -9 gateway after the record, before the publish",
    "published": "kill -9 gateway after the publish, before the answer",
}


@pytest.mark.parametrize(
    "point",
    [pytest.param(point, marks=claim(f"gateway-{point}", fault, at_most=15.0)) for point, fault in POINTS.items()],
)
def test_jobs_of_a_gateway_killed_in_a_submit_end_once(case: Case, point: str) -> None:
    gateway = case.system.gateway
    case.system.arm(gateway, f"gateway.{point}=kill?nth:30")
    case.system.wait_ready()
    with case.workload():
        wait_until(lambda: not gateway.running, DEATH_S, "the gateway dies")
        gateway.start()
        case.system.wait_ready()
        case.fault()
    tally = case.check()
    assert tally.unknown >= 1, "the kill hit no submit"
    assert tally.orphans >= 1, "the job of the unanswered submit was stored"
