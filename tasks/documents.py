"""How a job leaves a stage: its outcome for the store, with the document that clients will get."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from jobs.commands import Member, Outcome
from jobs.errors import PenstockError
from jobs.models import ModelRecord
from jobs.records import (
    MISS,
    Cache,
    Document,
    JobError,
    Provenance,
    StageName,
    StageRun,
    encode_document,
    instant,
)
from jobs.retries import backoff_s
from jobs.states import Event


class Journey(msgspec.Struct, array_like=True, frozen=True):
    """What a micro-batch has been through: it travels in its record from stage to stage.

    ``started_at_ms`` is when its first stage took it, ``ended_at_ms`` when its last stage ended.
    """

    started_at_ms: int
    ended_at_ms: int = 0
    runs: tuple[StageRun, ...] = ()
    provider: str = ""


encode_journey = msgspec.msgpack.Encoder().encode
decode_journey = msgspec.msgpack.Decoder(Journey).decode


def completed(member: Member, result: Any, journey: Journey, record: ModelRecord) -> Outcome:
    """The job ends with ``result``, any value that JSON can carry."""
    head = member.head
    provenance = Provenance(record.digest, head.input_sha256.hex(), journey.provider)
    return Outcome(
        member.task_id,
        Event.COMPLETE,
        _document(member, "completed", journey, provenance=provenance, result=result, **_cache(member)),
    )


def refused(member: Member, error: PenstockError, stage: StageName, journey: Journey, record: ModelRecord) -> Outcome:
    """The job is tried again where the error's class and the attempts left allow it; else it fails."""
    if error.retryable and member.attempt < member.head.attempts_max:
        draw = random.random()  # noqa: S311 - jitter, not a secret
        delay_ms = int(backoff_s(member.attempt, record.config.retry, draw) * 1000)
        return Outcome(member.task_id, Event.RETRY, code=error.code, delay_ms=delay_ms)
    why = JobError(error.code, error.detail, error.retryable, stage, member.attempt)
    document = _document(member, "failed", journey, error=why, **_cache(member))
    return Outcome(member.task_id, Event.FAIL, document, error.code)


def _cache(member: Member) -> dict[str, Cache]:
    return {"cache": MISS} if member.head.cached else {}


def _document(member: Member, status: str, journey: Journey, **rest: Any) -> bytes:
    head = member.head
    return encode_document(
        Document(
            task_id=member.task_id,
            status=status,
            model=head.model,
            version=head.version,
            attempt=member.attempt,
            generation=head.generation,
            queued_at=instant(head.queued_at_ms),
            started_at=instant(journey.started_at_ms),
            ended_at=instant(journey.ended_at_ms),
            stages=_runs_of(member, journey),
            **rest,
        )
    )


def _runs_of(member: Member, journey: Journey) -> tuple[StageRun, ...]:
    """The micro-batch's stages; only how long the first one let this job wait is the job's own."""
    if not journey.runs:
        return ()
    waited_s = (journey.started_at_ms - member.head.queued_at_ms) / 1000
    first = msgspec.structs.replace(journey.runs[0], queued_s=max(0.0, waited_s))
    return (first, *journey.runs[1:])
