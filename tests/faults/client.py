"""The client of the workload: every answer is kept with its time, and none is repeated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec

from tests.faults.wire import Wire

TIMEOUT_S = 30.0
NO_ANSWER = 0
"""In place of a status: the connection was refused, reset, or silent for too long."""


@dataclass(frozen=True)
class Answer:
    """What one request got. ``at`` is a monotonic instant, when the answer was there."""

    what: str
    at: float
    seconds: float
    status: int
    code: str
    """The problem's code; of a request without an answer the transport's error."""
    body: Any = None

    @property
    def is_fault(self) -> bool:
        """A 5xx that is not an honest 503."""
        return self.status >= 500 and self.status != 503

    @property
    def is_unknown(self) -> bool:
        """It may have been taken: it was sent, and nothing was answered."""
        return self.status == NO_ANSWER and self.code != "refused"


class Client:
    """Asks gateways in turn until one takes the connection; a request that was sent is not sent again."""

    def __init__(self, urls: Sequence[str], *, keepalive: bool = True) -> None:
        self._wires = [Wire(url, keepalive=keepalive) for url in urls]
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for wire in self._wires:
            await wire.close()

    async def ask(
        self,
        what: str,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        json: Any = None,
        content: bytes = b"",
    ) -> Answer:
        """One request; whatever becomes of it is an answer."""
        started = time.monotonic()
        given = dict(headers or {})
        if json is not None:
            given["Content-Type"], content = "application/json", msgspec.json.encode(json)
        status, code, body = await self._ask(method, path, given, content)
        now = time.monotonic()
        answer = Answer(what, now, now - started, status, code, body)
        self.answers.append(answer)
        return answer

    async def _ask(self, method: str, path: str, headers: dict[str, str], content: bytes) -> tuple[int, str, Any]:
        for wire in self._wires:
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    status, got = await wire.request(method, path, headers, content)
            except ConnectionRefusedError:
                continue
            except (OSError, EOFError) as error:  # among them TimeoutError
                return NO_ANSWER, type(error).__name__, None
            return status, *_read(got)
        return NO_ANSWER, "refused", None


def _read(got: bytes) -> tuple[str, Any]:
    """The problem's code and the document; a body that is not JSON is a fault of its own."""
    try:
        body = msgspec.json.decode(got)
    except msgspec.DecodeError:
        return "not-json", None
    kind = body.get("type", "") if isinstance(body, dict) else ""
    return str(kind).rsplit("/", 1)[-1], body
