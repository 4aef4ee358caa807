"""One job's way over the wire: every header and field of a submit and of a poll."""

from __future__ import annotations

import re
import signal
import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from jobs.records import instant
from tests.end_to_end.reference import WIDTH, inputs, outputs
from tests.system import System

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
TASK_ID = re.compile(r"[0-9a-f]{56}")


def _ms(text: str) -> int:
    assert INSTANT.fullmatch(text), text
    return round(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000)


def test_a_submit_answers_with_every_header_and_field(system: System) -> None:
    before_ms = system.now_ms()
    answer = system.client.post(
        "/predict/tensor-demo",
        json={"input": [0.5] * WIDTH, "ttl_s": 60, "version": 1, "lane": "bulk"},
        headers={"X-Request-ID": "mine-1"},
    )
    said = answer.json()

    assert answer.status_code == 202
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["location"] == f"/result/{said['task_id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-request-id"] == "mine-1"
    assert said.keys() == {"task_id", "status", "model", "version", "queued_at", "deadline_at", "links"}
    assert TASK_ID.fullmatch(said["task_id"])
    assert (said["status"], said["model"], said["version"]) == ("queued", "tensor-demo", 1)
    assert before_ms - 50 <= _ms(said["queued_at"]) <= system.now_ms() + 50
    assert _ms(said["deadline_at"]) - _ms(said["queued_at"]) == 60_000
    assert said["links"]["self"] == f"/result/{said['task_id']}"


def test_a_poll_tells_a_queued_job_then_the_terminal_document(system: System) -> None:
    system.stop_workers()
    task_id = system.submit(value=[0.25] * WIDTH)
    pending = system.poll(task_id)
    system.start_roles()
    document = system.ended(task_id)

    assert pending.status_code == 202
    assert int(pending.headers["retry-after"]) >= 1
    said = pending.json()
    assert {"task_id": task_id, "status": "queued", "model": "tensor-demo", "version": 1, "attempt": 1}.items() <= (
        said.items()
    )
    assert said["retry_after_s"] > 0
    assert _ms(said["queued_at"]) < _ms(said["deadline_at"])
    _check_document(document, task_id)
    assert document["queued_at"] == said["queued_at"]
    assert system.poll(task_id).json() == document  # it stays as it is


def _check_document(document: dict[str, Any], task_id: str) -> None:
    assert document.keys() == {
        *("task_id", "status", "model", "version", "attempt", "queued_at", "started_at", "ended_at"),
        *("stages", "provenance", "result"),
    }
    assert {"task_id": task_id, "status": "completed", "attempt": 1}.items() <= document.items()
    assert _ms(document["queued_at"]) <= _ms(document["started_at"]) <= _ms(document["ended_at"])
    assert [stage["name"] for stage in document["stages"]] == ["preprocess", "inference", "postprocess"]
    for stage in document["stages"]:
        assert stage.keys() == {"name", "queued_s", "run_s", "microbatch_jobs", "batch_rows", "worker"}
        assert stage["queued_s"] >= 0
        assert 0 < stage["run_s"] < 10
        assert stage["microbatch_jobs"] == 1
    assert document["stages"][1]["batch_rows"] == 1
    provenance = document["provenance"]
    assert re.fullmatch(r"[0-9a-f]{64}", provenance["model_sha256"])
    assert re.fullmatch(r"[0-9a-f]{64}", provenance["input_sha256"])
    assert provenance["provider"] == "CPU"
    assert np.allclose(document["result"]["y"], outputs(np.full((1, WIDTH), 0.25, np.float32))[0], atol=1e-5)


def test_a_submit_that_waits_gets_the_terminal_document_as_soon_as_it_is_there(system: System) -> None:
    started = time.monotonic()
    answer = system.client.post(
        "/predict/tensor-demo", json={"input": [0.0] * WIDTH}, headers={"Prefer": "respond-async, wait=25"}
    )
    assert answer.status_code == 200
    assert answer.json()["status"] == "completed"
    assert "wait=25" in answer.headers["preference-applied"]
    assert time.monotonic() - started < 20


def test_a_poll_that_waits_is_answered_as_soon_as_the_job_ends(system: System) -> None:
    system.stop_workers()
    task_id = system.submit()
    for worker in system.workers:
        worker.start()
    started = time.monotonic()
    answer = system.client.get(f"/result/{task_id}", headers={"Prefer": "wait=59"}, timeout=60)
    assert answer.json()["status"] == "completed"
    assert time.monotonic() - started < 30


def test_a_wait_that_runs_out_tells_the_job_as_it_stands(system: System) -> None:
    for worker in system.workers:
        worker.send(signal.SIGSTOP)
    started = time.monotonic()
    answer = system.client.post("/predict/tensor-demo", json={"input": [0.0] * WIDTH}, headers={"Prefer": "wait=1"})
    took_s = time.monotonic() - started
    for worker in system.workers:
        worker.send(signal.SIGCONT)
    assert answer.status_code == 202
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["location"] == f"/result/{answer.json()['task_id']}"
    assert answer.json()["status"] in {"queued", "processing"}
    assert 0.9 < took_s < 3
    assert system.ended(answer.json()["task_id"])["status"] == "completed"


def test_the_body_may_name_the_model(system: System) -> None:
    answer = system.client.post("/predict", json={"model": "tensor-demo", "input": [0.0] * WIDTH})
    assert answer.status_code == 202
    assert answer.json()["model"] == "tensor-demo"
    assert system.ended(answer.json()["task_id"])["status"] == "completed"


def test_raw_bytes_are_an_input_and_the_query_carries_the_options(system: System) -> None:
    rows = inputs(3, seed=1)
    answer = system.client.post(
        "/predict/tensor-demo",
        params={"ttl_s": 30, "lane": "bulk", "version": 1},
        content=rows.astype("<f4").tobytes(),
        headers={"Content-Type": "application/octet-stream"},
    )
    said = answer.json()
    assert answer.status_code == 202, answer.text
    assert _ms(said["deadline_at"]) - _ms(said["queued_at"]) == 30_000
    document = system.ended(said["task_id"])
    assert np.allclose(document["result"]["y"], outputs(rows), atol=1e-5)
    assert document["stages"][1]["batch_rows"] == 3


@pytest.mark.parametrize("lane", ["interactive", "bulk"])
def test_both_lanes_are_served(system: System, lane: str) -> None:
    assert system.ended(system.submit(lane=lane))["status"] == "completed"


def test_instants_are_on_the_stores_clock(system: System) -> None:
    document = system.ended(system.submit())
    assert abs(_ms(document["ended_at"]) - system.now_ms()) < 5_000
    assert instant(_ms(document["ended_at"])) == document["ended_at"]
