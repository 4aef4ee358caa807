"""Processes that are told to end while there is work: SIGTERM to a worker, to a gateway, to all in turn."""

from __future__ import annotations

import signal
import time

import pytest

from tests.faults.case import Case, claim
from tests.faults.client import NO_ANSWER
from tests.faults.workload import Workload
from tests.system import END_S, START_S, Role
from tests.waiting import wait_until

LONG = "inference.run=hang:40?nth:3"
HEARD = "Warm shutdown"
EXIT_S = 45.0
ROLLING_JOBS = 10_000
"""More than are needed: the load ends with the last restart."""


@pytest.mark.faults
@claim("worker-drained", "SIGTERM a worker with a run of 40 s in flight", number="exit", at_most=30.0)
def test_a_worker_told_to_end_gives_back_what_takes_too_long(case: Case) -> None:
    worker = _with_a_long_run(case)
    with case.workload():
        case.system.wait_stuck(worker, END_S)
        case.fault()
        worker.send(signal.SIGTERM)
    took_s = _exited_after(case, worker)
    case.check(took_s)


@pytest.mark.faults
@claim("worker-drained-twice", "SIGTERM a worker twice, with a run of 40 s in flight", number="exit", at_most=10.0)
def test_a_worker_told_twice_to_end_gives_back_at_once(case: Case) -> None:
    worker = _with_a_long_run(case)
    with case.workload():
        case.system.wait_stuck(worker, END_S)
        before = worker.output().count(HEARD)
        worker.send(signal.SIGTERM)
        wait_until(lambda: worker.output().count(HEARD) > before, END_S, "the worker has heard it")
        case.fault()
        worker.send(signal.SIGTERM)
        took_s = _exited_after(case, worker)
    case.check(took_s)


@pytest.mark.faults
@claim("gateway-drained", "SIGTERM a gateway under load, another one stays", number="exit", at_most=10.0)
def test_a_gateway_told_to_end_answers_what_it_has_accepted(case: Case) -> None:
    system = case.system
    system.add_gateway()
    with case.workload(keepalive=False) as workload:
        wait_until(lambda: len(workload.accepted()) >= len(workload.submits) // 3, END_S, "there is load")
        case.fault()
        system.gateway.send(signal.SIGTERM)
        took_s = _exited_after(case, system.gateway)
    case.notes["connections_cut"] = _unanswered(workload)
    tally = case.check(took_s)
    assert tally.orphans == 0, "what was accepted was answered"


@pytest.mark.faults
@claim(
    "rolling-restart", "every role restarted in turn under load", number="accepted, not answered", unit="", at_most=0
)
def test_a_rolling_restart_of_every_role_costs_nothing(case: Case) -> None:
    system = case.system
    other_url, other = system.add_gateway()
    with case.workload(ROLLING_JOBS, keepalive=False) as workload:
        _restart(case, system.gateway, system.url)
        _restart(case, other, other_url)
        for worker in system.workers:
            case.fault()
            worker.stop()
            worker.start()
            system.wait_ready()
        assert workload.running, "the load went on all the while"
        workload.stop()
    case.notes["connections_cut"] = _unanswered(workload)
    case.check(case.measure().orphans)


def _with_a_long_run(case: Case) -> Role:
    worker = case.system.arm(case.system.workers[0], LONG)
    case.system.wait_ready()
    return worker


def _exited_after(case: Case, role: Role) -> float:
    """Seconds from the fault to the end of the process."""
    wait_until(lambda: not role.running, EXIT_S, "the process ends")
    return time.monotonic() - case.faults[-1]


def _restart(case: Case, gateway: Role, url: str) -> None:
    case.fault()
    gateway.stop()
    gateway.start()
    wait_until(lambda: case.system.is_ready_at(url), START_S, "the gateway is ready again")


def _unanswered(workload: Workload) -> list[str]:
    """Requests without an answer: the kernel resets what waits in the queue of a socket that closes."""
    return [answer.code for answer in workload.answers if answer.status == NO_ANSWER and answer.what != "probe"]
