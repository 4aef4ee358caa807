"""Garbage in the queue: it goes, nothing of it is run, and no good job notices."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.broken_messages import KINDS
from tests.faults.case import Case, claim
from tests.system import END_S, START_S
from tests.waiting import wait_until

TIMES = 5
"""More than the slots of all workers: a slot that each of them took away would be missed."""
DELETED = "fragile"


def _cases() -> list[object]:
    return [
        pytest.param(
            kind,
            marks=claim(f"garbage-{kind.replace(' ', '-')}", f"garbage in the queue: {kind}", number="left in it",
                        unit="", at_most=0),
        )
        for kind in KINDS
    ]  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("kind", _cases())
def test_garbage_in_the_queue_goes_and_harms_nobody(case: Case, kind: str, tmp_path: Path) -> None:
    system = case.system
    canary = tmp_path / "canary"
    pids = [worker.pid for worker in system.workers]
    with case.workload():
        case.fault()
        for _ in range(TIMES):
            KINDS[kind](system, canary)
    wait_until(lambda: system.waiting_messages() == 0, END_S, "the queue is empty")
    tally = case.check(system.waiting_messages())
    assert not canary.exists()
    assert tally.executions is not None
    assert tally.executions <= tally.completed + tally.cancelled, "nothing else was run"
    assert [worker.pid for worker in system.workers if worker.running] == pids


@pytest.mark.faults
@claim("garbage-deleted-model", "garbage in the queue: a job of a deleted model", number="ended", at_most=30.0)
def test_a_job_of_a_deleted_model_fails_and_the_others_complete(case: Case) -> None:
    system = case.system
    system.stop_workers()
    task_id = system.submit(DELETED)
    shutil.rmtree(system.models / DELETED)
    with case.workload():
        for worker in system.workers:
            worker.start()
        for worker in system.workers:
            wait_until(lambda worker=worker: worker.said("ready"), START_S, "a worker is ready")  # type: ignore[misc]
        ready_at = case.fault()
        document = system.ended(task_id, END_S)
    assert document["error"]["code"] == "model-unavailable"
    case.check(case.endings.at[task_id] - ready_at)
    system.stop_workers()
