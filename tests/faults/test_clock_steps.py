"""A clock that steps by an hour while its process runs: the process stops taking work, and nothing expires for it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jobs.errors import EXIT_REPLACE
from tests.clocks import Clock
from tests.faults.case import Case, claim
from tests.faults.workload import Workload
from tests.system import START_S
from tests.waiting import wait_until

pytestmark = pytest.mark.faults

STOPS_S = 5.0
HOUR_S = 3600
BEFORE = 40
WRONG = {"ahead": HOUR_S, "behind": -HOUR_S}


def _cases(role: str, number: str) -> pytest.MarkDecorator:
    fault = f"{role} clock steps by ± 3600 s while it runs"
    params = [
        pytest.param(step_s, marks=claim(f"clock-steps-{way}-{role}", fault, number=number, at_most=STOPS_S))
        for way, step_s in WRONG.items()
    ]
    return pytest.mark.parametrize("step_s", params)


def _under_way(workload: Workload) -> None:
    wait_until(lambda: len(workload.accepted()) >= BEFORE, START_S, "jobs are under way")


@_cases("worker", "gone after")
def test_a_worker_whose_clock_steps_gives_back_what_it_holds_and_goes(
    case: Case, tmp_path: Path, step_s: int
) -> None:
    worker, clock = case.system.workers[1], Clock(tmp_path / "clock")
    worker.stop()
    worker.start(**clock.environment)
    case.system.wait_ready()
    process = worker._process
    assert process is not None
    with case.workload(600) as workload:
        _under_way(workload)
        clock.set(step_s)
        stepped_at = case.fault()
        wait_until(lambda: process.poll() is not None, START_S, "the worker goes")
        gone_s = time.monotonic() - stepped_at
    assert process.returncode == EXIT_REPLACE
    case.check(gone_s)


@_cases("gateway", "not ready after")
def test_a_gateway_whose_clock_steps_says_so_until_it_is_right_again(case: Case, tmp_path: Path, step_s: int) -> None:
    system, gateway, clock = case.system, case.system.gateway, Clock(tmp_path / "clock")
    gateway.stop()
    gateway.start(**clock.environment)
    system.wait_ready()
    try:
        with case.workload(600) as workload:
            _under_way(workload)
            clock.set(step_s)
            stepped_at = time.monotonic()
            wait_until(lambda: _is_unready(case), START_S, "the gateway says that its clock is wrong")
            unready_s = time.monotonic() - stepped_at
            wait_until(lambda: "clock-skew" in _codes(workload), START_S, "submits are refused for it")
            clock.set(0)
            case.over()
            system.wait_ready()
        tally = case.check(unready_s)
        assert set(tally.refused) == {"503 clock-skew"}
    finally:
        gateway.kill()  # the next case gets one with the machine's own clock


def _codes(workload: Workload) -> set[str]:
    return {each.answer.code for each in list(workload.submits) if each.answer}


def _is_unready(case: Case) -> bool:
    answer = case.system.client.get("/readyz")
    return answer.status_code == 503 and not answer.json()["checks"]["clock"]
