"""A client that must not be what is measured: HTTP/1.1 on bare sockets, connections kept, requests made before."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Final, NamedTuple, Self, cast

KEPT_S: Final = 2.0
"""How long an idle connection is used again: less than the gateway keeps it, else a request races its end."""
TIMEOUT_S: Final = 90.0
LOOPBACK: Final = "127.0.0.1"
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Answer(NamedTuple):
    """Status (0: none came), the instant (monotonic) at which it was there, head, body."""

    status: int
    at: float
    head: bytes = b""
    body: bytes = b""

    @property
    def is_replayed(self) -> bool:
        """Whether it repeats what a request with the same Idempotency-Key was told before."""
        return b"idempotent-replayed: true" in self.head.lower()


class Wire(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._have = b""
        self._asked: asyncio.Future[Answer] | None = None
        self._transport: asyncio.Transport | None = None
        self.is_open = True
        self.since = 0.0
        """Since when it is idle."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a whole request; its answer."""
        if self._transport is None:
            raise ConnectionError
        self._asked = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._asked

    def data_received(self, data: bytes) -> None:
        """Read on, until the answer is whole."""
        self._have += data
        head = self._have.find(_HEAD_END)
        if head < 0:
            return
        length = _LENGTH.search(self._have, 0, head)
        whole = head + len(_HEAD_END) + (int(length[1]) if length else 0)
        if len(self._have) < whole:
            return
        body = self._have[head + len(_HEAD_END) : whole]
        answer = Answer(int(self._have[9:12]), time.monotonic(), self._have[:head], body)
        self._have = b""
        self._settle(answer)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """It is gone, and so is the answer that was not there yet."""
        self.is_open = False
        self._settle(Answer(0, time.monotonic()))

    def close(self, *, reset: bool = False) -> None:
        """Close it, in order or as a client does that crashes."""
        if self._transport is not None:
            if reset:
                self._transport.abort()
            else:
                self._transport.close()

    def _settle(self, answer: Answer) -> None:
        asked, self._asked = self._asked, None
        if asked is not None and not asked.done():
            asked.set_result(answer)


class Client:
    """Connections to one gateway, as many as requests are under way."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Wire] = []
        self.opened = 0
        """Connections that were made."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for wire in self._idle:
            wire.close()

    async def ask(self, request: bytes) -> Answer:
        """One request; whatever becomes of it is an answer."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                wire = self._kept() or await self.connect()
                answer = await wire.ask(request)
        except OSError:  # among them TimeoutError
            return Answer(0, time.monotonic())
        if wire.is_open:
            wire.since = answer.at
            self._idle.append(wire)
        return answer

    async def connect(self) -> Wire:
        """Make a connection."""
        self.opened += 1
        _, wire = await asyncio.get_running_loop().create_connection(Wire, LOOPBACK, self._port)
        return wire

    def _kept(self) -> Wire | None:
        fresh_from = time.monotonic() - KEPT_S
        while self._idle:
            wire = self._idle.pop()
            if wire.is_open and wire.since > fresh_from:
                return wire
            wire.close()
        return None


def get(path: str, *, key: str = "", wait_s: int = 0) -> bytes:
    """A GET as it is sent."""
    return _request(f"GET {path}", key=key, wait_s=wait_s)


def submit(model: str, body: bytes, *, key: str = "", wait_s: int = 0, idempotency_key: str = "") -> bytes:
    """A submit as it is sent; ``wait_s``: wait so long for the end of the job."""
    fields = f'Idempotency-Key: "{idempotency_key}"\r\n' if idempotency_key else ""
    fields += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return _request(f"POST /predict/{model}", key=key, wait_s=wait_s, fields=fields) + body


def _request(line: str, *, key: str, wait_s: int, fields: str = "") -> bytes:
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    prefer = f"Prefer: wait={wait_s}\r\n" if wait_s else ""
    return f"{line} HTTP/1.1\r\nHost: {LOOPBACK}\r\n{authorization}{prefer}{fields}\r\n".encode()
