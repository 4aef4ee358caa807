"""A worker that is stopped for a minute and goes on as if nothing had happened."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.faults.case import Case, claim
from tests.system import END_S, Role
from tests.waiting import wait_until

STOPPED_S = 60.0
STOP = "inference.ran=stop?nth:3; inference.ran=hang:1?nth:3"
"""A thread may run on for a moment after it has stopped its process: it is held up."""


@pytest.mark.faults
@claim("worker-stopped", "SIGSTOP a worker for 60 s, then SIGCONT", at_most=30.0)
def test_the_jobs_of_a_stopped_worker_are_taken_over_and_its_late_write_is_refused(case: Case) -> None:
    zombie = case.system.workers[0]
    case.system.arm(zombie, STOP)
    case.system.wait_ready()
    with case.workload():
        wait_until(lambda: _is_stopped(zombie), END_S, "the worker stops between its run and its commit")
        stopped_at = case.fault()
    ended = case.measure()
    recovery_s = case.recovery_s()
    wait_until(lambda: time.monotonic() > stopped_at + STOPPED_S, STOPPED_S, "a minute is over")

    before = case.executions.jobs
    zombie.send(signal.SIGCONT)
    wait_until(lambda: case.executions.jobs > before, END_S, "the zombie commits")
    again = case.check(recovery_s)
    assert (again.completed, again.failed, again.cancelled) == (ended.completed, ended.failed, ended.cancelled)
    case.notes["executions_of_the_zombie"] = case.executions.jobs - before
    assert zombie.running


def _is_stopped(role: Role) -> bool:
    return Path(f"/proc/{role.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
