"""A connection's own bounds, over a real socket pair: heads, trailers, and what drips while nobody is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from api.connection import HEAD_BYTES_MAX, HEADERS_MAX, Connection, Joined, connection
from api.http import Receive, Scope, Send, answer

PATIENT_S, HASTY_S = 30.0, 0.05
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the whole body of a POST, then answer; answer a GET at once."""
    while scope["method"] == "POST" and (await receive()).get("more_body"):
        pass
    await answer(send, 200, [], b"served")


@asynccontextmanager
async def _serving(
    head_timeout_s: float, connections_max: int = 1_000
) -> AsyncIterator[tuple[asyncio.Server, ServerState]]:
    config = Config(cast("Any", _app), lifespan="off", log_config=None)
    config.load()
    made = cast("Callable[..., Connection]", connection(head_timeout_s, connections_max))
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: made(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    async with server:
        yield server, state


def _exchange(head_timeout_s: float, *sent: bytes, close: bool = True) -> bytes:
    """What comes back on one connection, until the gateway closes it, or has served all of ``sent``."""

    async def run() -> bytes:
        async with _serving(head_timeout_s) as (server, _):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for piece in sent:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            received = await _bounded(reader.read() if close else reader.readuntil(b"served"))
            writer.close()
            return received

    return asyncio.run(run())


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 -- uvicorn has no event for it
            await asyncio.sleep(0.001)


async def _bounded(read: Awaitable[bytes]) -> bytes:
    async with asyncio.timeout(10):
        return await read


def test_a_request_in_single_bytes_is_served() -> None:
    request = GET + b"\r\n"
    pieces = [request[at : at + 1] for at in range(len(request))]
    assert b"200 OK" in _exchange(PATIENT_S, *pieces, close=False)


def test_requests_on_one_connection_are_served_though_each_has_a_head_near_the_limit() -> None:
    request = GET + b"X-A: " + b"a" * (HEAD_BYTES_MAX - 200) + b"\r\n\r\n"
    last = GET + b"Connection: close\r\n\r\n"
    assert _exchange(PATIENT_S, request, request, last).count(b"200 OK") == 3


@pytest.mark.parametrize(
    "head",
    [
        GET + b"X-A: a\r\n" * HEADERS_MAX + b"\r\n",
        GET + b"X-A: " + b"a" * HEAD_BYTES_MAX + b"\r\n\r\n",
        b"GET /" + b"a" * HEAD_BYTES_MAX + b" HTTP/1.1\r\n\r\n",
        b"GET /?" + b"a" * HEAD_BYTES_MAX + b" HTTP/1.1\r\n\r\n",
        CHUNKED[:-2] + b"X-A: " + b"a" * HEAD_BYTES_MAX + b"\r\n\r\n",
    ],
    ids=["fields", "a value", "a target", "a query", "a post"],
)
def test_a_head_above_its_bounds_is_refused_and_the_connection_closed(head: bytes) -> None:
    received = _exchange(PATIENT_S, head)
    assert received.startswith(b"HTTP/1.1 431 ")
    assert b"/problems/head-too-large" in received


def test_a_head_that_does_not_end_is_refused_when_it_is_too_large() -> None:
    pieces = [GET, b"X-A: ", *[b"a" * (HEAD_BYTES_MAX * 2 // 3)] * 2]
    assert _exchange(PATIENT_S, *pieces).startswith(b"HTTP/1.1 431 ")


def test_trailers_that_do_not_end_are_refused_when_they_are_too_large() -> None:
    pieces = [CHUNKED, b"1\r\na\r\n", b"0\r\nX-A: ", *[b"a" * (HEAD_BYTES_MAX * 2 // 3)] * 2]
    assert _exchange(PATIENT_S, *pieces).startswith(b"HTTP/1.1 431 ")


def test_a_body_in_many_pieces_is_not_taken_for_trailers() -> None:
    pieces = [CHUNKED, *[b"1\r\na\r\n"] * (HEAD_BYTES_MAX // 4), b"0\r\n\r\n"]
    assert b"200 OK" in _exchange(PATIENT_S, *pieces, close=False)


def test_a_head_that_does_not_come_is_given_up() -> None:
    received = _exchange(HASTY_S, GET)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"/problems/request-timeout" in received


@pytest.mark.parametrize("sent", [(), (b"\r\n",)])
def test_a_connection_without_a_request_is_closed_without_a_word(sent: tuple[bytes, ...]) -> None:
    assert _exchange(HASTY_S, *sent) == b""


def test_what_comes_behind_an_answer_does_not_keep_the_connection() -> None:
    unread = b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    received = _exchange(HASTY_S, unread, b"1\r\na\r\n")
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"200 OK" in received


def _while_it_ends(sent: bytes) -> bytes:
    """What comes back when the gateway is told to end while it has read nothing yet, and ``sent`` follows."""

    async def run() -> bytes:
        async with _serving(PATIENT_S) as (server, state):
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await _until(lambda: bool(state.connections))
            for each in list(state.connections):
                each.shutdown()
            writer.write(sent)
            received = await _bounded(reader.read())
            writer.close()
            return received

    return asyncio.run(run())


def test_a_gateway_that_ends_serves_the_request_that_was_on_its_way() -> None:
    received = _while_it_ends(GET + b"\r\n")
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in received


def test_a_gateway_that_ends_closes_a_connection_that_says_nothing() -> None:
    assert _while_it_ends(b"") == b""


def test_what_is_not_http_is_refused_as_a_problem() -> None:
    received = _exchange(PATIENT_S, b"\x16\x03\x01 hello\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/problem+json\r\n" in received
    assert b"/problems/malformed" in received


def test_a_connection_too_many_is_refused_and_one_that_goes_makes_room() -> None:
    async def run() -> list[bytes]:
        async with _serving(PATIENT_S, connections_max=2) as (server, state):
            address = server.sockets[0].getsockname()
            first, second = [await asyncio.open_connection(*address) for _ in range(2)]
            await _until(lambda: len(state.connections) == 2)
            reader, writer = await asyncio.open_connection(*address)
            received = [await _bounded(reader.read())]
            writer.close()
            first[1].close()
            await _until(lambda: len(state.connections) == 1)
            for reader, writer in (second, await asyncio.open_connection(*address)):
                writer.write(GET + b"\r\n")
                received.append(await _bounded(reader.readuntil(b"served")))
                writer.close()
            return received

    refused, *served = asyncio.run(run())

    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"/problems/too-many-connections" in refused
    assert b"retry-after: 1\r\n" in refused
    assert all(b"200 OK" in each for each in served)


# --- An answer goes out whole ---


class _Recorded:
    """A transport that notes what it is given at once."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def writelines(self, parts: Iterable[bytes]) -> None:
        self.sent.append(b"".join(parts))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


async def _joined() -> tuple[Joined, _Recorded]:
    transport = _Recorded()
    return Joined(cast("asyncio.Transport", transport), asyncio.get_running_loop()), transport


def test_a_head_goes_out_with_the_body_that_follows_at_once() -> None:
    async def run() -> list[bytes]:
        joined, transport = await _joined()
        for piece in (b"head ", b"first ", b"second"):
            joined.write(piece)
        await asyncio.sleep(0)
        return transport.sent

    assert asyncio.run(run()) == [b"head first ", b"second"]


def test_a_head_does_not_wait_for_a_body_that_comes_later() -> None:
    async def run() -> list[bytes]:
        joined, transport = await _joined()
        joined.write(b"head")
        await asyncio.sleep(0)
        joined.write(b"later")
        return transport.sent

    assert asyncio.run(run()) == [b"head", b"later"]


def test_a_head_without_a_body_goes_out_before_the_connection_closes() -> None:
    async def run() -> tuple[list[bytes], bool]:
        joined, transport = await _joined()
        joined.write(b"head")
        joined.close()
        return transport.sent, joined.is_closing()

    assert asyncio.run(run()) == ([b"head"], True)
