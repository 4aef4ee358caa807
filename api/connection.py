"""The gateway's side of one connection: uvicorn's, with the bounds that uvicorn lacks.

uvicorn waits for ever for the head of a request, takes a head of any size, and refuses broken framing in plain text.
The body of a request is bounded by whoever asks for it (``api.http``, ``api.arrivals``). Here is bounded what
arrives while nobody asks: the head, trailers, and the rest of a body that was refused before it had arrived. An
honest request costs two comparisons: its head is there at once.
"""

from __future__ import annotations

import asyncio
import logging
from itertools import chain
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.http import new_request_id
from api.problems import refusal
from jobs.errors import (
    HeadTooLargeError,
    MalformedError,
    PenstockError,
    RequestTimeoutError,
    TooManyConnectionsError,
)

log = logging.getLogger(__name__)

HEADERS_MAX = 100
HEAD_BYTES_MAX = 32 * 1024
"""Target, names and values of a head; also trailers. What arrives in one piece is parsed before it is counted."""
REST_BYTES_MAX = 64 * 1024 * 1024
"""What is read, and dropped, of a body that was refused early: a client that still sends does not read its answer."""
LAST_WORD_S = 0.5
"""A gateway that ends still serves a request that was on its way when it stopped listening."""


class Connection(HttpToolsProtocol):
    """One connection, of at most ``connections_max`` at once.

    ``head_timeout_s`` bounds how long nobody may be served on it while bytes still come.
    """

    head_timeout_s = 10.0
    connections_max = 4096

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience: asyncio.TimerHandle | None = None
        self._leaving = False
        self._piece_bytes = 0
        self._idle_bytes = 0
        """What has arrived since a head began, a head was whole, or a body grew."""
        self._flaw: PenstockError = MalformedError("The request is not valid HTTP.")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        if len(self.connections) > self.connections_max:
            text = f"This gateway serves {self.connections_max} connections at once, and it does."
            self._refuse(TooManyConnectionsError(text, retry_after_s=1.0))
            return
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, then look whether that led anywhere."""
        cycle, scope = self.cycle, self.scope
        held = 0 if cycle is None else len(cycle.body)
        self._piece_bytes = len(data)
        super().data_received(data)
        grown = cycle is not None and len(cycle.body) != held
        if self.cycle is not cycle or self.scope is not scope or grown:
            self._idle_bytes = 0
        else:
            self._idle_bytes += len(data)
            self._bound()
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()
        elif self._patience is not None:
            self._stop_waiting()

    def on_headers_complete(self) -> None:
        """Start the request, unless its head is larger than any that we need."""
        long = self._patience is not None or self._piece_bytes > HEAD_BYTES_MAX  # not all of it in one short piece
        if len(self.headers) > HEADERS_MAX or (long and self._head_bytes() > HEAD_BYTES_MAX):
            self._flaw = _too_large()
            raise self._flaw  # the parser stops, and uvicorn calls send_400_response
        super().on_headers_complete()
        self.cycle.transport = Joined(self.transport, self.loop)  # type: ignore[assignment]
        if self._leaving:
            self.cycle.keep_alive = False  # uvicorn says so in its answer, and closes after it

    def shutdown(self) -> None:
        """The gateway ends: close after the answer; where no request is known, a moment later."""
        self._leaving = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(LAST_WORD_S, super().shutdown)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's own words, which are not ours
        """Refuse what the parser could not read, in the form of all refusals."""
        self._refuse(self._flaw)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(map(len, chain.from_iterable(self.headers)))

    @property
    def _reads_head(self) -> bool:
        return self.scope is not None and "path" not in self.scope

    def _bound(self) -> None:
        if self._reads_head or self.cycle is None or not self.cycle.response_complete:
            if self._idle_bytes > HEAD_BYTES_MAX:
                self._refuse(_too_large())
        elif self._idle_bytes > REST_BYTES_MAX:
            self.transport.close()

    def _wait_for_head(self) -> None:
        if self._patience is None and not self.transport.is_closing():
            self._patience = self.loop.call_later(self.head_timeout_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        if self._reads_head:
            self._refuse(RequestTimeoutError(f"The request's head did not arrive within {self.head_timeout_s:g} s."))
        else:  # it never said anything, or has its answer
            self.transport.close()

    def _refuse(self, error: PenstockError) -> None:
        """Answer, unless that has been done, and hang up."""
        if self.transport.is_closing():
            return
        request_id = new_request_id()
        said = refusal(error, request_id=request_id)
        headers = [
            *said.headers,
            (b"x-request-id", request_id.encode()),
            (b"content-length", b"%d" % len(said.body)),
            (b"connection", b"close"),
        ]
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(STATUS_LINE[said.status] + lines + b"\r\n" + said.body)
        self.transport.close()
        log.info("connection refused", extra={"code": error.code, "request_id": request_id})


class Joined:
    """Where one answer is written to: its head goes out together with the body that follows at once.

    uvicorn writes them apart and uvloop sends what is written at once: twice the calls of the kernel, which were a
    fifth of the gateway's time, and a client that wakes up for half an answer.
    """

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head: bytes | None = None
        """What was written first, until it is sent; then empty."""

    def write(self, data: bytes) -> None:
        """Send, but the first piece no earlier than the second, or than the loop turns."""
        if self._head is None:
            self._head = data
            self._loop.call_soon(self.flush)
        elif self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Send what is held back."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def is_closing(self) -> bool:
        """Whether the connection is."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Send what is held back, and hang up."""
        self.flush()
        self._transport.close()


def connection(head_timeout_s: float, connections_max: int) -> type[asyncio.Protocol]:
    """The class of connections that give a head so long, and of which there are at most so many."""
    bounds = {"head_timeout_s": head_timeout_s, "connections_max": connections_max}
    return type("Connection", (Connection,), bounds)


def _too_large() -> PenstockError:
    return HeadTooLargeError(f"A request's head may have at most {HEADERS_MAX} fields and {HEAD_BYTES_MAX} bytes.")
