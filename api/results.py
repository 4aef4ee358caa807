"""From what the store says of a job to what a client is told."""

from __future__ import annotations

import msgspec

from jobs.commands import View
from jobs.errors import (
    CancelledError,
    DeadlinePassedError,
    InternalError,
    PenstockError,
    StageTimeoutError,
    WorkerLostError,
)
from jobs.records import Document, Head, JobError, encode_document, instant

RETRY_AFTER_S = 0.05
"""When to ask again, for the impatient; the header says whole seconds."""


class Pending(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer while a job is queued or processing."""

    task_id: str
    status: str
    model: str
    version: int
    attempt: int
    queued_at: str
    deadline_at: str
    retry_after_s: float
    links: dict[str, str]
    stage: str = ""
    generation: int = 1


_ERRORS: dict[str, tuple[type[PenstockError], str]] = {
    "deadline-passed": (DeadlinePassedError, "The deadline passed before the job ended."),
    "cancelled-by-client": (CancelledError, "The client cancelled the job."),
    "timeout": (StageTimeoutError, "A stage ran this job alone for too long, at every attempt."),
    "internal": (InternalError, "The job came back too often."),
    "worker-lost": (WorkerLostError, "The worker died while it ran this job alone, at every attempt."),
}


def links(task_id: str) -> dict[str, str]:
    """Where a job that is under way can be asked for, and cancelled."""
    path = f"/result/{task_id}"
    return {"self": path, "cancel": f"{path}/cancel"}


class _Failure(msgspec.Struct):
    error: JobError | None = None


_encode = msgspec.json.Encoder().encode
_decode_failure = msgspec.json.Decoder(_Failure).decode


def is_terminal(view: View) -> bool:
    """Whether the job has ended."""
    return view.state not in {"queued", "processing"}


def render(task_id: str, view: View) -> bytes:
    """The document of a job as JSON."""
    if view.document:
        return view.document
    if view.head is None:  # the scripts answer with a document or a head
        raise RuntimeError(view.state)
    if is_terminal(view):
        return encode_document(_ended(task_id, view, view.head))
    return _encode(_pending(task_id, view, view.head))


def error_of(task_id: str, view: View | None) -> JobError | msgspec.UnsetType:
    """The error of a job that ended badly, as its owner is told; unset of any other."""
    if view is None or not is_terminal(view):
        return msgspec.UNSET
    return _decode_failure(render(task_id, view)).error or msgspec.UNSET


def _pending(task_id: str, view: View, head: Head) -> Pending:
    return Pending(
        task_id,
        view.state,
        head.model,
        head.version,
        view.attempt,
        instant(head.queued_at_ms),
        instant(head.deadline_at_ms),
        RETRY_AFTER_S,
        links(task_id),
        view.stage if view.state == "processing" else "",
        head.generation,
    )


def _ended(task_id: str, view: View, head: Head) -> Document:
    """The document of a job that no worker ended: expired by the clock, or given up after lost workers."""
    kind, message = _ERRORS.get(view.code, (PenstockError, "The job ended without a result."))
    return Document(
        task_id=task_id,
        status=view.state,
        model=head.model,
        version=head.version,
        attempt=view.attempt,
        generation=head.generation,
        queued_at=instant(head.queued_at_ms),
        ended_at=instant(view.ended_at_ms),
        error=JobError(view.code or kind.code, message, kind.retryable, view.stage, view.attempt),
    )
