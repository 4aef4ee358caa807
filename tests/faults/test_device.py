"""The model itself goes wrong: short of memory, dead with its device, or hung."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import EXIT_REPLACE
from tests.faults.case import Case, claim
from tests.faults.fault_system import BROKERS, FaultSystem
from tests.system import END_S, copy_models
from tests.waiting import wait_until

WARM_UPS = 8
"""Runs of a worker's sessions before its first job: four models, one row and a full batch each."""
STAGE_S_MAX = 3.0
ROWS = 8
JOBS = 200


@pytest.mark.faults
@claim("memory-above-8-rows", "the model is out of memory above 8 rows", number="runs of one job", unit="", at_most=2)
def test_a_batch_that_does_not_fit_is_halved_until_it_does(case: Case) -> None:
    system = case.system
    for worker in system.workers:
        system.arm(worker, f"session.run=raise:memory?rows-above:{ROWS}")
    system.wait_ready()
    with case.workload(JOBS, mixed=False, rate=10 * JOBS):
        case.fault()
    case.measure()
    tally = case.check(max(case.executions.times.values()))
    assert tally.completed == JOBS


@pytest.mark.faults
@claim("cuda-lost", "a CUDA error that stays, in one worker", number="replaced", at_most=5.0)
def test_a_worker_whose_device_is_lost_is_replaced(case: Case) -> None:
    system = case.system
    broken = system.arm(system.workers[0], f"session.run=raise:cuda?from:{WARM_UPS + 3}")
    system.wait_ready()
    pid = broken.pid
    with case.workload() as workload:
        wait_until(lambda: not broken.running, END_S, "the process ends")
        case.fault()
        assert broken.exit_code == EXIT_REPLACE
        assert not _counts(system, pid), "it said goodbye: it is not counted while it is away"
        lost_at = datetime.fromisoformat(broken.lines("the device is lost to this process")[0]["at"]).timestamp()
        system.supervise(lambda: broken.running, END_S)
        replaced_s = time.time() - lost_at
        system.supervise(lambda: not workload.running, END_S)
    case.check(replaced_s)


@pytest.mark.faults
@claim("run-hangs", "a session run hangs for ever", at_most=20.0)
@pytest.mark.parametrize("broker", BROKERS)
def test_a_run_that_hangs_is_ended_by_the_watchdog(
    open_case: Callable[[FaultSystem], Case], broker: str, tmp_path: Path
) -> None:
    copy_models(tmp_path / "models")
    with (tmp_path / "models" / "tensor-demo" / "model.toml").open("a") as config:
        config.write(f"\n[limits]\nstage_s_max = {STAGE_S_MAX}\n")
    with FaultSystem(broker, tmp_path) as system:
        case = open_case(system)
        hung = system.arm(system.workers[0], f"session.run=hang:600?nth:{WARM_UPS + 3}")
        system.wait_ready()
        with case.workload() as workload:
            system.wait_stuck(hung, END_S)
            case.fault()
            wait_until(lambda: not hung.running, END_S, "the watchdog ends the process")
            assert hung.exit_code == EXIT_REPLACE
            system.supervise(lambda: not workload.running, END_S)
        case.check()


def _counts(system: FaultSystem, pid: int) -> bool:
    """Whether the store counts this process among the workers."""
    names: Any = system.redis.hkeys(f"{system.namespace}:workers")
    return any(f":{pid}:".encode() in name for name in names)
