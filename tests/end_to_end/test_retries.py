"""Transient errors are tried again with backoff, counted from 1, and given up after the last attempt.

The error is real: the worker was started without the files of a model that the gateway knows.
"""

from __future__ import annotations

import shutil
from functools import partial

import pytest

from tests.system import END_S, System
from tests.waiting import wait_until


@pytest.fixture
def without_files(system: System) -> System:
    system.stop_workers()
    for name in ("fragile", "patient"):
        shutil.rmtree(system.models / name)
    for worker in system.workers:
        worker.start()
    for worker in system.workers:
        wait_until(partial(worker.said, "ready"), END_S, "a worker is ready")
    return system


def test_a_transient_error_is_retried_until_the_last_attempt_and_then_fails(without_files: System) -> None:
    document = without_files.ended(without_files.submit("fragile"))
    assert document["status"] == "failed"
    assert document["attempt"] == 3
    assert document["error"]["code"] == "model-unavailable"
    assert document["error"]["attempt"] == 3
    assert document["error"]["retryable"] is True
    retried = without_files.figures().total("penstock_retries_total", code="model-unavailable")
    assert retried == 2


def test_a_job_completes_at_a_later_attempt_when_the_error_has_passed(without_files: System) -> None:
    system = without_files
    task_id = system.submit("patient")
    wait_until(lambda: system.poll(task_id).json()["attempt"] >= 2, END_S, "the second attempt waits")
    system.stop_workers()
    system.mend()
    document = system.ended(task_id, 60)
    assert document["status"] == "completed"
    assert 2 <= document["attempt"] < 20
