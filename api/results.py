"""From what the store says of a job to what a client is told."""

from __future__ import annotations

import msgspec

from api.capacity import WaitingReason
from api.outlook import PROCESSING, EstimateView, Outlook, Queue
from jobs.commands import View
from jobs.errors import (
    CancelledError,
    DeadlinePassedError,
    InternalError,
    PenstockError,
    StageTimeoutError,
    WorkerLostError,
)
from jobs.idempotency import Answer
from jobs.records import Cache, Document, Head, JobError, encode_document, instant


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
    queue: Queue | None = None
    estimate: EstimateView | None = None
    waiting_reason: WaitingReason | None = None


class Accepted(msgspec.Struct, frozen=True):
    """The answer to a submit: the job is stored, and will end."""

    task_id: str
    status: str
    model: str
    version: int
    queued_at: str
    deadline_at: str
    links: dict[str, str]


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


class SharedDocument(Document, frozen=True, omit_defaults=True):
    """A document to be told again: what it carries is taken over as it stands."""

    stages: msgspec.Raw = msgspec.Raw(b"[]")
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Failure(msgspec.Struct):
    error: JobError | None = None


_encode = msgspec.json.Encoder().encode
_decode_shared = msgspec.json.Decoder(SharedDocument).decode
_decode_failure = msgspec.json.Decoder(_Failure).decode


def is_terminal(view: View) -> bool:
    """Whether the job has ended."""
    return view.state not in {"queued", "processing"}


def accepted(answer: Answer) -> bytes:
    """The body of the 202, the same whenever it is told."""
    return _encode(
        Accepted(
            answer.task_id,
            "queued",
            answer.model,
            answer.version,
            instant(answer.queued_at_ms),
            instant(answer.deadline_at_ms),
            links(answer.task_id),
        )
    )


def render(task_id: str, view: View, outlook: Outlook = PROCESSING) -> bytes:
    """The document of a job as JSON; ``outlook`` is told of one that has not ended."""
    if view.document:
        return _joined(task_id, view.document, view.head) if view.head else view.document
    if view.head is None:  # the scripts answer with a document or a head
        raise RuntimeError(view.state)
    if is_terminal(view):
        return encode_document(_ended(task_id, view, view.head))
    return _encode(_pending(task_id, view, view.head, outlook))


def error_of(task_id: str, view: View | None) -> JobError | msgspec.UnsetType:
    """The error of a job that ended badly, as its owner is told; unset of any other."""
    if view is None or not is_terminal(view):
        return msgspec.UNSET
    return _decode_failure(render(task_id, view)).error or msgspec.UNSET


def _joined(task_id: str, document: bytes, head: Head) -> bytes:
    """The document of the job that this one joined, as this one's own: id, instants and how it came by its answer."""
    told = _decode_shared(document)
    return encode_document(
        msgspec.structs.replace(
            told,
            task_id=task_id,
            generation=head.generation,
            queued_at=instant(head.queued_at_ms),
            cache=Cache("joined"),
        )
    )


def _pending(task_id: str, view: View, head: Head, outlook: Outlook) -> Pending:
    return Pending(
        task_id,
        view.state,
        head.model,
        head.version,
        view.attempt,
        instant(head.queued_at_ms),
        instant(head.deadline_at_ms),
        outlook.retry_after_s,
        links(task_id),
        view.stage if view.state == "processing" else "",
        head.generation,
        outlook.queue,
        outlook.estimate,
        outlook.waiting_reason,
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
