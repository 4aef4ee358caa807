"""A stage that runs longer than the broker has patience for: its copy is dropped at the lease, not run again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.case import Case, claim
from tests.faults.fault_system import BROKERS, FaultSystem

pytestmark = pytest.mark.faults

HANG_S = 12
"""Longer than RabbitMQ's consumer timeout here, and than a worker waits for its Redis (10 s)."""
PATIENCE_MS, LOOK_MS = 5_000, 1_000


@pytest.mark.parametrize("broker", BROKERS)
@claim("long-stage", "a stage longer than any broker timeout", number="most executions of a job", unit="", at_most=2)
def test_a_stage_longer_than_the_brokers_patience_shows_one_result(
    open_case: Callable[[FaultSystem], Case], tmp_path: Path, broker: str
) -> None:
    system = FaultSystem(broker, tmp_path)
    if system.rabbit is not None:
        system.rabbit.config = {"consumer_timeout": str(PATIENCE_MS)}
        system.rabbit.options = f"-rabbit channel_tick_interval {LOOK_MS}"
    with system:
        for worker in system.workers:
            system.arm(worker, f"session.run=hang:{HANG_S}?nth:2")
        system.wait_ready()
        case = open_case(system)
        with case.workload():
            case.fault()
        if system.rabbit is not None:
            case.notes["timed_out"] = _timeouts(tmp_path / "rabbit" / "log")
        case.measure()
        case.check(max(case.executions.times.values()))


def _timeouts(logs: Path) -> int:
    """How often the broker lost its patience with a consumer."""
    return sum(log.read_text(errors="replace").count("delivery acknowledgement") for log in logs.glob("*.log"))
