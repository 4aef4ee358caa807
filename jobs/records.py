"""What is written of a job: its head at submit, its document at the end, and the instants in both.

Instants inside are integer milliseconds on the store's clock; on the wire they are RFC 3339 in UTC.
"""

from __future__ import annotations

import functools
import time
from typing import Any, Literal

import msgspec

from jobs.estimates import Told

SCHEMA = 1
"""Version of every record and message; a process reads its own and the one before."""

Lane = Literal["interactive", "bulk"]
LANES: tuple[Lane, ...] = ("interactive", "bulk")
StageName = Literal["preprocess", "inference", "postprocess"]
STAGES: tuple[StageName, ...] = ("preprocess", "inference", "postprocess")


class Head(msgspec.Struct, array_like=True, frozen=True):
    """The facts of a job that do not change: written at submit, read by every stage and every poll.

    A command that runs an ended job again writes them anew, with the next ``generation`` (from 1).
    """

    schema: int
    tenant: str
    model: str
    version: int
    lane: Lane
    queued_at_ms: int
    deadline_at_ms: int
    attempts_max: int
    media_type: str
    input_sha256: bytes
    request_id: str = ""
    traceparent: str = ""
    generation: int = 1
    estimate: Told | None = None
    cached: bool = False
    """Whether its answer goes into the result cache."""


class Idempotency(msgspec.Struct, frozen=True):
    """An Idempotency-Key: its name in the store, and what is kept under it (``jobs.idempotency``)."""

    name: str
    kept: bytes


class CacheTerms(msgspec.Struct, frozen=True):
    """How a job uses the result cache: the key of its answer, how long that is fresh, whether a known one will do."""

    key: bytes
    fresh_ms: int
    refresh: bool


class Job(msgspec.Struct, frozen=True):
    """A job on its way into the store. ``weight``: its model's, beside the others of the pool."""

    task_id: str
    head: Head
    line: str
    data: bytes
    weight: float = 1.0
    idempotency: Idempotency | None = None
    cache: CacheTerms | None = None


class StageRun(msgspec.Struct, frozen=True):
    """One stage of the micro-batch that a job travelled in. Seconds; ``batch_rows``: rows in the session call."""

    name: StageName
    queued_s: float
    run_s: float
    microbatch_jobs: int
    batch_rows: int
    worker: str


class JobError(msgspec.Struct, frozen=True):
    """Why a job did not complete."""

    code: str
    message: str
    retryable: bool
    stage: str
    attempt: int


class Provenance(msgspec.Struct, frozen=True):
    """What computed the result from what."""

    model_sha256: str
    input_sha256: str
    provider: str


class Cache(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether an answer was computed for this job (``miss``), one that it ``joined``, or an earlier one (``hit``)."""

    status: str
    age_s: float | msgspec.UnsetType = msgspec.UNSET


MISS = Cache("miss")


class Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """The terminal document, as it is answered."""

    task_id: str
    status: str
    model: str
    version: int
    attempt: int
    queued_at: str
    ended_at: str
    generation: int = 1
    started_at: str | None = None
    stages: tuple[StageRun, ...] | msgspec.Raw = ()
    provenance: Provenance | None = None
    result: Any = msgspec.UNSET
    error: JobError | msgspec.UnsetType = msgspec.UNSET
    cache: Cache | msgspec.UnsetType = msgspec.UNSET


def line_of(pool: str, lane: Lane, model: str, version: int) -> str:
    """The line that a job waits in: the jobs that may share a micro-batch."""
    return f"{pool}/{lane}/{model}/{version}"


def from_cache(document: bytes, status: str, age_ms: int) -> bytes:
    """A terminal document as the result cache answers with it: all as it was but for ``cache``."""
    end = _MISSED if document.endswith(_MISSED) else b"}"
    body = document.removesuffix(end)
    return body + b',"cache":' + encode_document(Cache(status, age_ms / 1000)) + b"}"


def next_generation(head: Head, now_ms: int) -> Head:
    """The head of a job that is run again: as much time as it had, from now."""
    ttl_ms = head.deadline_at_ms - head.queued_at_ms
    return msgspec.structs.replace(
        head,
        queued_at_ms=now_ms,
        deadline_at_ms=now_ms + ttl_ms,
        generation=head.generation + 1,
        estimate=None,
        cached=False,
    )


encode_head = msgspec.msgpack.Encoder().encode
decode_head = msgspec.msgpack.Decoder(Head).decode
encode_document = msgspec.json.Encoder().encode
_MISSED = b',"cache":' + encode_document(MISS) + b"}"


def instant(ms: int) -> str:
    """Unix milliseconds as RFC 3339 in UTC: ``2026-11-21T05:30:00.123Z``."""
    seconds, rest = divmod(ms, 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


@functools.lru_cache(maxsize=1024)
def _second(seconds: int) -> str:
    """The text of a second; instants of a moment share few of them."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
