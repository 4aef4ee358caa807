"""How a job leaves a stage: completed, failed, or tried again."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from jobs.commands import Member
from jobs.errors import InternalError, InvalidInputError, ModelError, OutOfMemoryError, PenstockError
from jobs.models import ModelConfig, ModelRecord, RetryPolicy
from jobs.records import SCHEMA, Head, StageRun
from jobs.states import Event
from tasks.documents import Journey, completed, decode_journey, encode_journey, refused

QUEUED_AT_MS = 1_795_000_000_000
RUNS = (
    StageRun("preprocess", 0.004, 0.001, 3, 0, "w"),
    StageRun("inference", 0.002, 0.005, 3, 3, "w"),
)
JOURNEY = Journey(QUEUED_AT_MS + 250, QUEUED_AT_MS + 260, RUNS, "CPU")
RECORD = ModelRecord("m", 2, "ready", ModelConfig(retry=RetryPolicy(3, 0.5, 30.0)), "d" * 64)


def _member(attempt: int = 1, attempts_max: int = 3) -> Member:
    head = Head(SCHEMA, "acme", "m", 2, "bulk", QUEUED_AT_MS, QUEUED_AT_MS + 9_000, attempts_max, "a/b", b"\1\2")
    return Member(0, "id", head, attempt, b"")


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr("tasks.documents.random.random", lambda: 0.5)
    return 0.5


def test_a_completed_job_tells_its_whole_story() -> None:
    outcome = completed(_member(attempt=2), {"y": [1.5]}, JOURNEY, RECORD)

    assert (outcome.task_id, outcome.event, outcome.code) == ("id", Event.COMPLETE, "")
    assert json.loads(outcome.document) == {
        "task_id": "id",
        "status": "completed",
        "model": "m",
        "version": 2,
        "attempt": 2,
        "queued_at": "2026-11-18T11:06:40.000Z",
        "started_at": "2026-11-18T11:06:40.250Z",
        "ended_at": "2026-11-18T11:06:40.260Z",
        "stages": [
            {
                "name": "preprocess",
                "queued_s": 0.25,
                "run_s": 0.001,
                "microbatch_jobs": 3,
                "batch_rows": 0,
                "worker": "w",
            },
            {
                "name": "inference",
                "queued_s": 0.002,
                "run_s": 0.005,
                "microbatch_jobs": 3,
                "batch_rows": 3,
                "worker": "w",
            },
        ],
        "provenance": {"model_sha256": "d" * 64, "input_sha256": "0102", "provider": "CPU"},
        "result": {"y": [1.5]},
    }


def test_a_wait_is_never_negative() -> None:
    early = msgspec.structs.replace(JOURNEY, started_at_ms=QUEUED_AT_MS - 5)

    assert json.loads(completed(_member(), 1, early, RECORD).document)["stages"][0]["queued_s"] == 0


@pytest.mark.parametrize("result", [None, 0, "", [], {}])
def test_an_empty_result_is_a_result(result: Any) -> None:
    assert json.loads(completed(_member(), result, JOURNEY, RECORD).document)["result"] == result


@pytest.mark.parametrize("error", [InvalidInputError("no"), ModelError("no")])
def test_a_permanent_error_fails_at_once(error: PenstockError) -> None:
    outcome = refused(_member(), error, "inference", JOURNEY, RECORD)

    document = json.loads(outcome.document)
    assert (outcome.event, outcome.code) == (Event.FAIL, error.code)
    assert document["status"] == "failed"
    assert document["error"] == {
        "code": error.code,
        "message": "no",
        "retryable": False,
        "stage": "inference",
        "attempt": 1,
    }
    assert "result" not in document


@pytest.mark.parametrize(("attempt", "delay_ms"), [(1, 250), (2, 500)])
@pytest.mark.parametrize("error", [InternalError("no"), OutOfMemoryError("no")])
def test_a_transient_error_is_tried_again_later_and_later(
    draw: float, attempt: int, delay_ms: int, error: PenstockError
) -> None:
    outcome = refused(_member(attempt), error, "inference", JOURNEY, RECORD)

    assert draw == 0.5
    assert (outcome.event, outcome.code, outcome.delay_ms, outcome.document) == (
        *(Event.RETRY, error.code, delay_ms),
        b"",
    )


@pytest.mark.parametrize("attempt", [3, 4])
def test_a_transient_error_at_the_last_attempt_fails(attempt: int) -> None:
    outcome = refused(_member(attempt), InternalError("no"), "inference", JOURNEY, RECORD)

    assert outcome.event == Event.FAIL
    assert json.loads(outcome.document)["error"]["attempt"] == attempt
    assert json.loads(outcome.document)["error"]["retryable"] is True


def test_one_attempt_means_one_attempt() -> None:
    assert refused(_member(1, attempts_max=1), InternalError("no"), "inference", JOURNEY, RECORD).event == Event.FAIL


def test_without_a_stage_that_ran_no_stages_are_told() -> None:
    outcome = refused(_member(), InvalidInputError("no"), "preprocess", Journey(1, 2), RECORD)

    assert "stages" not in json.loads(outcome.document)


def test_a_journey_travels_unchanged() -> None:
    assert decode_journey(encode_journey(JOURNEY)) == JOURNEY
