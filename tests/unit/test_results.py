"""What a poll is told of a job, from what the store says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.outlook import EstimateView, Outlook, Queue
from api.results import accepted, error_of, is_terminal, render
from jobs.commands import View
from jobs.idempotency import Answer
from jobs.records import MISS, SCHEMA, Cache, Document, Head, JobError, StageRun, encode_document, next_generation
from jobs.states import TERMINAL, State

QUEUED_AT_MS = 1_795_000_000_000
HEAD = Head(SCHEMA, "acme", "m", 2, "bulk", QUEUED_AT_MS, QUEUED_AT_MS + 60_000, 3, "a/b", b"sha")


def _read(view: View) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(render("id", view))
    return read


@pytest.mark.parametrize("state", State)
def test_a_job_is_terminal_as_the_table_of_states_has_it(state: State) -> None:
    assert is_terminal(View(state)) == (state in TERMINAL)


def test_a_document_of_a_worker_is_answered_byte_for_byte() -> None:
    document = b'{"status":"completed", "result":  1}'

    assert render("id", View("completed", document)) == document


def test_a_queued_job_is_told_with_when_to_ask_again() -> None:
    assert _read(View("queued", b"", HEAD, attempt=2, stage="inference")) == {
        "task_id": "id",
        "status": "queued",
        "model": "m",
        "version": 2,
        "attempt": 2,
        "queued_at": "2026-11-18T11:06:40.000Z",
        "deadline_at": "2026-11-18T11:07:40.000Z",
        "retry_after_s": 0.05,
        "links": {"self": "/result/id", "cancel": "/result/id/cancel"},
    }


def test_a_processing_job_names_its_stage() -> None:
    read = _read(View("processing", b"", HEAD, stage="inference"))

    assert (read["status"], read["stage"]) == ("processing", "inference")


@pytest.mark.parametrize(
    ("state", "code", "retryable"),
    [
        ("expired", "deadline-passed", False),
        ("failed", "worker-lost", True),
        ("failed", "", True),
        ("failed", "word-of-a-newer-worker", False),
    ],
)
def test_a_job_that_no_worker_ended_gets_its_document_here(state: str, code: str, retryable: Any) -> None:
    view = View(state, b"", HEAD, attempt=3, stage="inference", ended_at_ms=QUEUED_AT_MS + 1_500, code=code)

    read = _read(view)
    assert (read["status"], read["attempt"], read["ended_at"]) == (state, 3, "2026-11-18T11:06:41.500Z")
    error = read["error"]
    assert (error["code"], error["stage"], error["attempt"]) == (code or "internal", "inference", 3)
    assert error["message"]
    assert "result" not in read
    if code in {"deadline-passed", "worker-lost"}:
        assert error["retryable"] is retryable


def test_a_job_without_head_and_document_is_a_fault_of_ours() -> None:
    with pytest.raises(RuntimeError):
        render("id", View("queued"))


def test_a_queued_job_is_told_its_place_its_estimate_and_what_it_waits_for() -> None:
    ahead = Outlook(2.5, Queue(4, 3, "bulk"), EstimateView(2.5, 5.0), "bulk-window")

    read = json.loads(render("id", View("queued", b"", HEAD), ahead))

    assert read["retry_after_s"] == 2.5
    assert read["queue"] == {"position": 4, "ahead": 3, "lane": "bulk"}
    assert read["estimate"] == {"finish_in_s": 2.5, "p90_finish_in_s": 5.0}
    assert read["waiting_reason"] == "bulk-window"


def test_the_answer_to_a_submit_is_the_same_whenever_it_is_told() -> None:
    answer = Answer("id", "m", 2, QUEUED_AT_MS, QUEUED_AT_MS + 60_000)

    assert accepted(answer) == accepted(answer)
    assert json.loads(accepted(answer)) == {
        "task_id": "id",
        "status": "queued",
        "model": "m",
        "version": 2,
        "queued_at": "2026-11-18T11:06:40.000Z",
        "deadline_at": "2026-11-18T11:07:40.000Z",
        "links": {"self": "/result/id", "cancel": "/result/id/cancel"},
    }


# --- A job that joined another ---

RESULT = b'{"y":[1.0,-0.0,1e-45,9007199254740993],"s":"\\u00e9 \\"cache\\"","cache":{"status":"miss"}}'
ODD = b'{"y" : [ 1.50 , 2e1 ],\n "cache":{"status":"miss"}}'
"""As no encoder of ours would write it."""


def _document(**rest: Any) -> bytes:
    given: dict[str, Any] = {
        "started_at": "started",
        "stages": (StageRun("preprocess", 0.1, 0.2, 3, 0, "w"),),
        "cache": MISS,
        **rest,
    }
    return encode_document(Document("leader", "completed", "m", 2, 1, "queued", "ended", **given))


def _joined(document: bytes, state: str = "completed") -> bytes:
    return render("id", View(state, document, HEAD))


def test_a_job_that_joined_another_has_its_own_id_instant_and_way_to_the_answer() -> None:
    document = _document(result=[1])

    read = json.loads(_joined(document))

    assert read == json.loads(document) | {
        "task_id": "id",
        "queued_at": "2026-11-18T11:06:40.000Z",
        "cache": {"status": "joined"},
    }


@pytest.mark.parametrize("result", [RESULT, ODD], ids=["ours", "odd"])
def test_the_bytes_of_a_shared_result_stay_as_they_are(result: bytes) -> None:
    document = _document(result="HERE").replace(b'"HERE"', result)

    assert _joined(document).count(result) == 1


def test_a_job_that_joined_another_in_its_second_generation_says_so() -> None:
    view = View("completed", _document(result=1), next_generation(HEAD, QUEUED_AT_MS))

    read = json.loads(render("id", view))

    assert read["generation"] == 2


def test_a_shared_document_without_stages_or_marker_gets_none_it_did_not_have() -> None:
    document = _document(result=None, stages=(), started_at=None, cache=Cache("hit", 2.0))

    read = json.loads(_joined(document))

    assert "stages" not in read
    assert "started_at" not in read
    assert read["result"] is None
    assert read["cache"] == {"status": "joined"}


def test_a_failure_is_shared_with_its_error() -> None:
    error = JobError("invalid-input", "why", retryable=False, stage="preprocess", attempt=1)
    document = _document(error=error)
    view = View("failed", document.replace(b"completed", b"failed"), HEAD)

    read = json.loads(render("id", view))

    assert (read["task_id"], read["status"]) == ("id", "failed")
    assert "result" not in read
    assert error_of("id", view) == error


def test_a_follower_whose_leader_s_document_is_gone_is_told_how_it_ended() -> None:
    read = _read(View("failed", b"", HEAD, code="invalid-input", stage="preprocess"))

    assert (read["status"], read["error"]["code"]) == ("failed", "invalid-input")
