"""Idempotency-Key (IETF draft-ietf-httpapi-idempotency-key-header): what makes a submit safe to repeat.

Under a key lies the fingerprint of the request that came with it and the answer to that. Both are written with the
job itself, in one step, so there is no moment in which a key is taken and its job is not stored: requests that arrive
together get the one answer.
"""

from __future__ import annotations

import re
from hashlib import sha256

import msgspec

from jobs.errors import IdempotencyKeyError, KeyReusedError
from jobs.records import Idempotency

FINGERPRINT_BYTES = 32
_FORM = re.compile(rb"[\x21-\x7e]{1,255}")
_QUOTED = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
"""A string of RFC 8941."""


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """The answer that is kept: what the 202 said."""

    task_id: str
    model: str
    version: int
    queued_at_ms: int
    deadline_at_ms: int


class Repeat(msgspec.Struct, frozen=True):
    """The answer to be given again: the 202, or without ``answer`` the result of job ``task_id`` from the cache."""

    task_id: str
    answer: Answer | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Answer).decode


def read_key(header: bytes) -> bytes:
    """The key that a header's value stands for, quoted or not; IdempotencyKeyError."""
    quoted = _QUOTED.fullmatch(header)
    key = re.sub(rb"\\(.)", rb"\1", quoted[1]) if quoted else header
    if not _FORM.fullmatch(key):
        raise IdempotencyKeyError(
            "An Idempotency-Key has 1 to 255 visible ASCII characters, best in quotation marks."
        )
    return key


def idempotency(key: bytes, tenant: str, request: tuple[bytes, ...], answer: Answer) -> Idempotency:
    """What is kept under ``key``, whose scope is tenant and route; ``request`` is route, query, media type, body."""
    name = _hash((tenant.encode(), request[0], key)).hex()
    return Idempotency(name, _hash(request) + _encode(answer))


def repeat_of(ours: Idempotency, kept: bytes) -> Repeat:
    """What was kept under our key, to be told again; KeyReusedError where that was another request's."""
    if kept[:FINGERPRINT_BYTES] != ours.kept[:FINGERPRINT_BYTES]:
        raise KeyReusedError(
            "This Idempotency-Key came with another request before; use a new key for a new request."
        )
    rest = kept[FINGERPRINT_BYTES:]
    try:
        answer = _decode(rest)
    except msgspec.DecodeError:
        return Repeat(rest.decode(), None)
    return Repeat(answer.task_id, answer)


def _hash(parts: tuple[bytes, ...]) -> bytes:
    """SHA-256 over parts of any length, none of which can pass for two others."""
    whole = sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8))
        whole.update(part)
    return whole.digest()
