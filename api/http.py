"""The little of HTTP that the hot routes need: headers of interest, a bounded body, one way to answer.

The hot routes are plain ASGI callables: a framework's stack around them cost half of the gateway's time.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from jobs.errors import MalformedError, PayloadTooLargeError, UnsupportedMediaTypeError

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]
Headers: TypeAlias = list[Header]

UNDECLARED_BYTES_MAX = 4 * 1024 * 1024
"""Largest body without a Content-Length."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_WAIT = re.compile(rb"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?(?:$|[,;\s])", re.IGNORECASE)
_JSON = b"application/json"
_WANTED = frozenset(
    (
        b"authorization",
        b"content-type",
        b"content-length",
        b"content-encoding",
        b"prefer",
        b"traceparent",
        b"x-request-id",
        b"idempotency-key",
        b"cache-control",
    )
)


class Request:
    """One request on a hot route."""

    __slots__ = ("_found", "_scope", "path", "request_id")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.path: str = scope["path"]
        self._found = {name: value for name, value in scope["headers"] if name in _WANTED}
        self.request_id = self._request_id()

    @property
    def authorization(self) -> bytes | None:
        """The Authorization header."""
        return self._found.get(b"authorization")

    @property
    def media_type(self) -> str:
        """The body's media type without parameters, in lower case; JSON where none is given."""
        given: bytes = self._found.get(b"content-type", _JSON)
        return given.partition(b";")[0].strip().lower().decode("latin-1")

    @property
    def query(self) -> bytes:
        """The query string, not decoded."""
        query: bytes = self._scope["query_string"]
        return query

    @property
    def server(self) -> tuple[str, int | None] | None:
        """The address that the request was sent to."""
        server: tuple[str, int | None] | None = self._scope.get("server")
        return server

    @property
    def traceparent(self) -> str:
        """The W3C trace context that came with the request, if it is well-formed."""
        given: bytes = self._found.get(b"traceparent", b"")
        return given.decode() if given and _TRACEPARENT.fullmatch(given) else ""

    @property
    def idempotency_key(self) -> bytes | None:
        """The Idempotency-Key header, as it was sent; one that came twice is both, and so no key."""
        return self._joined(b"idempotency-key") if b"idempotency-key" in self._found else None

    @property
    def cache_control(self) -> bytes:
        """The Cache-Control header in lower case."""
        return self._joined(b"cache-control").lower() if b"cache-control" in self._found else b""

    def wait_s(self, most: float) -> float:
        """Seconds of ``Prefer: wait=N``, at most ``most``; 0 where none is asked for."""
        prefer = self._found.get(b"prefer")
        if prefer is None:
            return 0.0
        found = _WAIT.search(prefer)
        return min(float(found[1]), most) if found else 0.0

    async def body(self, receive: Receive, bytes_max: int) -> bytes:
        """The whole body; PayloadTooLargeError, UnsupportedMediaTypeError (coded), MalformedError (client gone).

        A body whose length is not declared is held in part before it can be refused, so its bound is lower.
        """
        if self._found.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            raise UnsupportedMediaTypeError("Bodies are taken without Content-Encoding; send it uncompressed.")
        declared = self._found.get(b"content-length")
        if declared is None:
            return await _receive_all(receive, min(bytes_max, UNDECLARED_BYTES_MAX))
        if declared.isdigit() and int(declared[:20]) > bytes_max:
            raise _too_large(bytes_max)
        return await _receive_all(receive, bytes_max)

    def _joined(self, wanted: bytes) -> bytes:
        """A header that may come in several lines, which stand for one (RFC 9110, 5.2)."""
        return b", ".join(value for name, value in self._scope["headers"] if name == wanted)

    def _request_id(self) -> str:
        given: bytes | None = self._found.get(b"x-request-id")
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given.decode()
        return new_request_id()


def new_request_id() -> str:
    """An id that no other request of any gateway has."""
    return f"{_PROCESS}-{next(_counter):x}"


_PROCESS = os.urandom(5).hex()
_counter = itertools.count(1)


async def _receive_all(receive: Receive, bytes_max: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise MalformedError("The client went away before its body was complete.")
        part = message.get("body", b"")
        size += len(part)
        if size > bytes_max:
            raise _too_large(bytes_max)
        if not message.get("more_body", False):
            return part if not parts else b"".join((*parts, part))
        parts.append(part)


def _too_large(bytes_max: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"The body may have at most {bytes_max} bytes; without a Content-Length at most {UNDECLARED_BYTES_MAX}."
    )


async def answer(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole response."""
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
