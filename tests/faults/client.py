"""The client of the workload: every answer is kept with its time, and none is repeated."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

TIMEOUT_S = 30.0
KEPT_S = 2.0
"""How long an idle connection is kept: less than the gateway keeps it, else a request races its end."""
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
        kept = None if keepalive else 0
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=kept, keepalive_expiry=KEPT_S)
        self._http = httpx.AsyncClient(timeout=TIMEOUT_S, limits=limits, verify=False)  # noqa: S501 -- no TLS here
        self._urls = list(urls)
        self.answers: list[Answer] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def ask(self, what: str, method: str, path: str, **options: Any) -> Answer:
        """One request; whatever becomes of it is an answer."""
        started = time.monotonic()
        status, code, body = NO_ANSWER, "refused", None
        for url in self._urls:
            try:
                got = await self._http.request(method, url + path, **options)
            except httpx.ConnectError:
                continue
            except httpx.TransportError as error:
                code = type(error).__name__
            else:
                status, (code, body) = got.status_code, _read(got)
            break
        now = time.monotonic()
        answer = Answer(what, now, now - started, status, code, body)
        self.answers.append(answer)
        return answer


def _read(got: httpx.Response) -> tuple[str, Any]:
    """The problem's code and the document; a body that is not JSON is a fault of its own."""
    try:
        body = got.json()
    except ValueError:
        return "not-json", None
    kind = body.get("type", "") if isinstance(body, dict) else ""
    return str(kind).rsplit("/", 1)[-1], body
