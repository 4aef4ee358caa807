"""Cancelling: at once what waits, at the next boundary what runs, inside the run what runs alone."""

from __future__ import annotations

import signal
from typing import Any

import httpx

from tests.end_to_end.test_door import check_problem
from tests.system import END_S, System
from tests.waiting import wait_until

FOR_EVER = [1e12, 0.0, 0.0, 0.0]
"""A run of the model ``spin`` that takes hours."""
WITHIN_S = 5.0
"""Two signs of life of a worker, on a busy machine."""


def _cancel(system: System, task_id: str) -> httpx.Response:
    return system.client.post(f"/result/{task_id}/cancel")


def _runs(system: System, task_id: str) -> None:
    def held() -> bool:
        number = system.job(task_id, "microbatch")
        found: Any = system.redis.hmget(f"{system.namespace}:microbatch:{number}", "stage", "holder")
        return bool(found[0] == b"inference" and found[1])

    wait_until(held, END_S, "a worker runs the job")


def test_a_waiting_job_is_cancelled_at_once_and_never_runs(system: System) -> None:
    system.stop_workers()
    task_id = system.submit()

    answer = _cancel(system, task_id)

    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert answer.json()["error"]["code"] == "cancelled-by-client"
    assert _cancel(system, task_id).json() == answer.json()
    system.start_roles()
    assert system.ended(system.submit())["status"] == "completed"
    assert system.poll(task_id).json() == answer.json()


def test_a_run_that_would_take_hours_is_ended_and_then_said_to_be_cancelled(system: System) -> None:
    task_id = system.submit("spin", FOR_EVER)
    _runs(system, task_id)

    answer = _cancel(system, task_id)

    assert (answer.status_code, answer.json()["status"]) == (202, "processing")
    assert answer.headers["location"] == f"/result/{task_id}"
    document = system.ended(task_id, WITHIN_S)
    assert (document["status"], document["error"]["stage"]) == ("cancelled", "inference")
    assert all(worker.running for worker in system.workers)


def test_what_a_frozen_worker_runs_is_promised_and_kept(system: System) -> None:
    task_id = system.submit("spin", FOR_EVER)
    _runs(system, task_id)
    for worker in system.workers:
        worker.send(signal.SIGSTOP)

    assert _cancel(system, task_id).status_code == 202
    assert system.poll(task_id).json()["status"] == "processing"
    assert system.ended(task_id, END_S)["status"] == "cancelled"


def test_what_has_ended_is_not_cancelled(system: System) -> None:
    task_id = system.submit()
    document = system.ended(task_id)

    check_problem(_cancel(system, task_id), 409, "already-terminal")
    assert system.ended(task_id) == document
    check_problem(_cancel(system, "0" * 56), 404, "not-found")
    check_problem(_cancel(system, "no-id"), 404, "not-found")


def test_a_stage_that_takes_too_long_is_ended_and_tried_again(system: System) -> None:
    before = [worker.pid for worker in system.workers]
    task_id = system.submit("spin", FOR_EVER)
    good = system.submit("spin", [3.0, 1.0, 1.0, 1.0])

    assert system.ended(good)["result"] == {"y": [3.0, 1.0, 1.0, 1.0]}
    document = system.ended(task_id, 60)

    assert (document["status"], document["error"]["code"]) == ("failed", "timeout")
    assert (document["attempt"], document["error"]["retryable"]) == (2, True)
    assert [worker.pid for worker in system.workers] == before
