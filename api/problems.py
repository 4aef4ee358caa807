"""Errors as ``application/problem+json`` (RFC 9457): the one form in which the gateway refuses a request."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from jobs.errors import PenstockError

MEDIA_TYPE = b"application/problem+json"
TYPE_PREFIX = "/problems/"
_BODY_BYTES_MAX = 4_000
_DETAIL_MAX, _POINTER_MAX, _INSTANCE_MAX = 1_000, 200, 200
_SHORT = 8
"""Where texts that grow in JSON (a control character takes six bytes) exceed the bound, they are cut to an eighth."""


class FieldProblem(msgspec.Struct, frozen=True):
    """Which field is wrong (a JSON pointer into the body) and why."""

    pointer: str
    detail: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of a refusal. ``type`` is relative to the gateway, where it can be read."""

    type: str
    title: str
    status: int
    detail: str
    retryable: bool | None = None
    instance: str = ""
    request_id: str = ""
    errors: tuple[FieldProblem, ...] = ()


class Refusal(msgspec.Struct, frozen=True):
    """A refusal, ready to send."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def refusal(error: PenstockError, instance: str = "", request_id: str = "") -> Refusal:
    """How ``error`` is answered."""
    body = _body(error, instance, request_id, 1)
    if len(body) > _BODY_BYTES_MAX:
        body = _body(error, instance, request_id, _SHORT)
    headers: list[tuple[bytes, bytes]] = [(b"content-type", MEDIA_TYPE)]
    if error.status == 503 or error.retry_after_s is not None:  # noqa: PLR2004 - Service Unavailable
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s or 1.0))).encode()))
    headers += error.fields
    if error.status == 401:  # noqa: PLR2004 - Unauthorized
        headers.append((b"www-authenticate", b'Bearer realm="penstock"'))
    return Refusal(error.status, headers, body)


def _body(error: PenstockError, instance: str, request_id: str, cut: int) -> bytes:
    """The problem as JSON, its texts at most a ``cut``-th of their bounds."""
    detail, pointer = error.detail[: _DETAIL_MAX // cut], error.pointer
    problem = Problem(
        type=TYPE_PREFIX + error.code,
        title=error.title,
        status=error.status,
        detail=detail,
        retryable=error.retryable,
        instance=instance[: _INSTANCE_MAX // cut],
        request_id=request_id,
        errors=(FieldProblem(pointer[: _POINTER_MAX // cut], detail),) if pointer is not None else (),
    )
    return msgspec.json.encode(problem)


def known() -> dict[str, type[PenstockError]]:
    """Every error class by its code."""
    found: dict[str, type[PenstockError]] = {}
    open_: list[Any] = [PenstockError]
    while open_:
        each = open_.pop()
        found[each.code] = each
        open_ += each.__subclasses__()
    return found
