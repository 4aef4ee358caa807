"""Every error that we raise on purpose.

The class carries the policy: the HTTP status when it refuses a request, whether a job that met it is tried
again, and the word that clients see. Errors of libraries are mapped to these in one place, at the edge where
they occur. The text given to a class is shown to clients: it never holds an address, a path, a payload or the
text of another exception.
"""

from __future__ import annotations

from typing import ClassVar


class PenstockError(Exception):
    """Base of all: ``code`` is the word on the wire, ``status`` the HTTP status at the door."""

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    blames_input: ClassVar[bool] = False
    """Whether every job with the same input would end so: jobs that wait for the answer to it share the failure."""

    def __init__(self, detail: str, *, pointer: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.pointer = pointer
        self.retry_after_s = retry_after_s
        self.fields: list[tuple[bytes, bytes]] = []
        """More header fields of the refusal."""


# --- Requests refused at the door (problem types of RFC 9457) ---


class MalformedError(PenstockError):
    """The request cannot be read: broken JSON, a broken header."""

    code, title, status = "malformed", "The request cannot be read", 400


class UnauthorizedError(PenstockError):
    """No key, or one that is not known."""

    code, title, status = "unauthorized", "A valid API key is required", 401


class ForbiddenError(PenstockError):
    """A known key whose role does not allow this."""

    code, title, status = "forbidden", "This key may not do this", 403


class NotFoundError(PenstockError):
    """No such route or task; also the answer for what belongs to another tenant."""

    code, title, status = "not-found", "Not found", 404


class ModelNotFoundError(PenstockError):
    """No model, or no version of it, has this name."""

    code, title, status = "model-not-found", "Unknown model", 404


class MethodNotAllowedError(PenstockError):
    """The route exists, but not for this method."""

    code, title, status = "method-not-allowed", "Method not allowed", 405


class RequestTimeoutError(PenstockError):
    """The head or the body did not arrive in time."""

    code, title, status = "request-timeout", "The request took too long to arrive", 408


class AlreadyTerminalError(PenstockError):
    """The job has ended already, and not in the way that was asked for."""

    code, title, status = "already-terminal", "The job has ended already", 409


class NotEndedError(PenstockError):
    """The job is still under way, so it cannot be run again."""

    code, title, status = "not-ended", "The job has not ended yet", 409


class ResultGoneError(PenstockError):
    """The result was kept for its retention and is gone."""

    code, title, status = "result-gone", "The result is past its retention", 410


class PayloadTooLargeError(PenstockError):
    """The body or the input exceeds its limit."""

    code, title, status = "payload-too-large", "The payload is too large", 413


class UnsupportedMediaTypeError(PenstockError):
    """The model does not take this media type."""

    code, title, status = "unsupported-media-type", "Unsupported media type", 415


class InvalidInputError(PenstockError):
    """Well-formed, but not what the model takes; ``pointer`` is a JSON pointer to the wrong field.

    At the door a 422; found only in a stage, the job fails with the same code.
    """

    code, title, status = "invalid-input", "The input is not valid for this model", 422
    blames_input = True


class HeadTooLargeError(PenstockError):
    """The request's target and header fields are too many or too long."""

    code, title, status = "head-too-large", "The request's head is too large", 431


class StoreUnavailableError(PenstockError):
    """The job store is away; a submit's fate is then unknown."""

    code, title, status, retryable = "store-unavailable", "The job store is unavailable", 503, True


class QueueFullError(PenstockError):
    """As many jobs wait as may, or as the store has memory for; nothing was stored."""

    code, title, status, retryable = "queue-full", "The queue is full", 503, True


class DeadlineUnreachableError(PenstockError):
    """By all estimates the job would wait for longer than its deadline allows; nothing was stored."""

    code, title, status, retryable = "deadline-unreachable", "The deadline cannot be met", 503, True


class TooManyConnectionsError(PenstockError):
    """The gateway serves as many connections as it may."""

    code, title, status, retryable = "too-many-connections", "Too many connections", 503, True


class QuotaExceededError(PenstockError):
    """The tenant's rate, or the number of its open jobs, is at its quota; nothing was stored."""

    code, title, status, retryable = "quota-exceeded", "Your quota is exhausted", 429, True


class KeyReusedError(PenstockError):
    """The Idempotency-Key came with another request before."""

    code, title, status = "idempotency-key-reused", "This Idempotency-Key belongs to another request", 422


class IdempotencyKeyError(PenstockError):
    """The Idempotency-Key is not one."""

    code, title, status = "invalid-idempotency-key", "The Idempotency-Key is not valid", 422


class ClockSkewError(PenstockError):
    """The gateway's clock and the store's are too far apart to promise deadlines."""

    code, title, status, retryable = "clock-skew", "The gateway's clock is wrong", 503, True


class BrokerUnavailableError(PenstockError):
    """The broker is known to be away."""

    code, title, status, retryable = "broker-unavailable", "The broker is unavailable", 503, True


class ModelLoadingError(PenstockError):
    """The model is known, but no version has been loaded yet."""

    code, title, status, retryable = "model-loading", "The model is being loaded", 503, True


class RecordMissingError(PenstockError):
    """An authentic, young task id without a record: our fault."""

    code, title, status, retryable = "record-missing", "The record of this task is missing", 503, True


# --- Outcomes of jobs ---


class ModelError(PenstockError):
    """The model raised an error on this input."""

    code, title = "model-error", "The model failed on this input"
    blames_input = True


class OutOfMemoryError(PenstockError):
    """A stage ran out of memory."""

    code, title, retryable = "out-of-memory", "A stage ran out of memory", True


class WorkerLostError(PenstockError):
    """The worker died while this job ran alone in it."""

    code, title, retryable = "worker-lost", "The worker died while it ran this job", True
    blames_input = True


class StageTimeoutError(PenstockError):
    """A stage ran this job alone for longer than the model allows."""

    code, title, retryable = "timeout", "A stage took too long", True
    blames_input = True


class ModelUnavailableError(PenstockError):
    """The worker cannot load the model's version."""

    code, title, retryable = "model-unavailable", "The model cannot be loaded by the worker", True


class DeadlinePassedError(PenstockError):
    """The deadline passed before the job ended."""

    code, title = "deadline-passed", "The deadline passed before the job ended"


class CancelledError(PenstockError):
    """The client cancelled the job."""

    code, title = "cancelled-by-client", "The client cancelled the job"


class InternalError(PenstockError):
    """A fault of ours, retried in the hope that it passes."""

    code, title, retryable = "internal", "Internal error", True


def shared_failures() -> dict[str, bool]:
    """The codes of failures that jobs with the same input share; whether such a failure may be told again later."""
    found: dict[str, bool] = {}
    open_: list[type[PenstockError]] = [PenstockError]
    while open_:
        each = open_.pop()
        if each.blames_input:
            found[each.code] = not each.retryable
        open_ += each.__subclasses__()
    return dict(sorted(found.items()))


# --- Processes that must not start ---


class SetupError(Exception):
    """A setting or a surrounding that is not safe to run with; the text is one line that says what to do.

    A role that meets it prints the line and exits with ``EXIT_CONFIG``.
    """


class DeviceLostError(Exception):
    """The device under this process is lost to it for good: the process must be replaced, and its work given back."""


EXIT_CONFIG = 78
"""``EX_CONFIG`` of sysexits(3): the supervisor does not start such a process again."""
EXIT_REPLACE = 75
"""``EX_TEMPFAIL`` of sysexits(3): this process can go no further, another one can."""
