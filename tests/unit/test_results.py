"""What a poll is told of a job, from what the store says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.results import is_terminal, render
from jobs.commands import View
from jobs.records import SCHEMA, Head
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
