"""The sweeper itself dies in the middle, or two sweep at once: nothing is run more than once too often."""

from __future__ import annotations

import signal
import time

import pytest

from jobs.settings import Settings
from tests.faults.case import Case, claim
from tests.system import END_S, START_S
from tests.waiting import wait_until

LEASE_S = float(Settings.model_fields["lease_s"].default)
SWEEPER_LEASE_S = 3.0
BOUND = {"number": "runs of one job", "unit": "", "at_most": 2}


@pytest.mark.faults
@claim("two-sweepers", "two gateways sweep, the one whose turn it is stops for 5 s", **BOUND)
def test_two_sweepers_run_nothing_more_than_once_too_often(case: Case) -> None:
    system = case.system
    other_url, _ = system.add_gateway()
    system.arm(system.workers[0], "postprocess.run=kill?nth:3")
    system.wait_ready()
    with case.workload(urls=[other_url]) as workload:
        wait_until(lambda: not system.workers[0].running, END_S, "a worker dies, and leaves work to a sweeper")
        stopped_at = case.fault()
        system.gateway.send(signal.SIGSTOP)  # it swept first, so it is its turn
        wait_until(lambda: time.monotonic() > stopped_at + SWEEPER_LEASE_S + 2, END_S, "its turn is over")
        system.gateway.send(signal.SIGCONT)
        system.supervise(lambda: not workload.running, END_S)
    case.measure()
    case.check(max(case.executions.times.values()))


@pytest.mark.faults
@claim("sweeper-killed", "sweeper killed between its pass and what that publishes", **BOUND)
def test_a_sweeper_killed_in_the_middle_is_made_good_by_the_next(case: Case) -> None:
    system = case.system
    gateway, worker = system.gateway, system.workers[0]
    system.arm(worker, "postprocess.run=kill?nth:60")
    system.wait_ready()
    with case.workload() as workload:
        wait_until(lambda: not worker.running, END_S, "a worker dies, and leaves work to the sweeper")
        died_at = time.monotonic()
        gateway.kill()
        wait_until(lambda: time.monotonic() > died_at + LEASE_S + 1, END_S, "the lease of the dead has run out")
        system.arm(gateway, "sweeper.swept=kill")
        wait_until(lambda: not gateway.running, START_S, "the sweeper gives back in the store, and dies")
        case.fault()
        system.supervise(lambda: not workload.running, END_S)
    system.start_roles()
    case.measure()
    case.check(max(case.executions.times.values()))
