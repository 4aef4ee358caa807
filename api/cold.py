"""What the cold routes share: who asks, and how an answer is sent."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Request
from fastapi.responses import Response

from api.access import Caller
from api.gateway import Gateway
from jobs.errors import ForbiddenError


def caller_of(gateway: Gateway, request: Request) -> Caller:
    """Whose request this is; UnauthorizedError."""
    authorization = request.headers.get("authorization")
    key = authorization.encode("latin-1") if authorization else None
    return gateway.access.caller(key, request.scope.get("server"))


def admin_of(gateway: Gateway, request: Request) -> Caller:
    """The same, for what operators do; ForbiddenError."""
    caller = caller_of(gateway, request)
    if caller.role != "admin":
        raise ForbiddenError("This takes a key with the role admin.")
    return caller


def answer_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")
