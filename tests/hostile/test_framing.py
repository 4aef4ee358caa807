"""Framing: what is not HTTP, or too much of it, or too slow.

Not here, because it takes an HTTP parser of one's own to send and uvicorn reads it with llhttp (strict but for data
after ``Connection: close``): every folding, chunk extension and trailer that RFC 9112 allows. llhttp takes extensions
and drops them, refuses bare line feeds and folded fields, and hands trailers on; ``api.connection`` bounds them.
HTTP/2 and WebSocket are not spoken: their openings are refused or passed over.
"""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.hostile.block import LIVE_S
from tests.hostile.conftest import BODY_TIMEOUT_S, HEAD_TIMEOUT_S
from tests.hostile.rows import (
    Ask,
    Row,
    as_json,
    ask,
    check,
    check_refusal,
    check_silence,
    connect,
    hung_up,
    read,
    send,
)
from tests.hostile.rows import rows as table
from tests.system import System

SLACK_S = 3.0
"""The watch of bodies looks once a second; the machine is busy with other things."""
IDLE = 1_000
DRIP_S = 0.2
OCTET = "application/octet-stream"
POST = b"POST /predict/tensor-demo HTTP/1.1\r\nHost: x\r\n"
OCTETS = b"Content-Type: application/octet-stream\r\n"
CHUNKED = POST + OCTETS + b"Transfer-Encoding: chunked\r\n\r\n"


def get(*lines: bytes) -> bytes:
    """A GET with these header lines."""
    return b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def bomb() -> Ask:
    """A hundred megabytes of blanks in a hundred kilobytes."""
    return as_json("/predict/tensor-demo", gzip.compress(b" " * 100_000_000, 1), **{"Content-Encoding": "gzip"})


BROKEN = [
    Row(name, sent, 400, "malformed")
    for name, sent in {
        "a length beside chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "chunks beside a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
        "the same length twice": POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
        "two lengths in one field": POST + b"Content-Length: 2, 2\r\n\r\n{}",
        "a negative length": POST + b"Content-Length: -1\r\n\r\n",
        "a length with a sign": POST + b"Content-Length: +2\r\n\r\n{}",
        "a length in hexadecimal": POST + b"Content-Length: 0x2\r\n\r\n{}",
        "a length of 30 digits": POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        "an empty length": POST + b"Content-Length: \r\n\r\n",
        "chunked twice, then a coding": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
        "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "a chunk size that is no number": CHUNKED + b"zz\r\n",
        "a negative chunk size": CHUNKED + b"-1\r\n",
        "a chunk size beyond 64 bits": CHUNKED + b"f" * 20 + b"\r\n",
        "a chunk longer than its size": CHUNKED + b"1\r\nab\r\n",
        "a header without colon": get(b"nothing"),
        "a header without name": get(b": x"),
        "a blank before the colon": get(b"X-A : b"),
        "a folded header": get(b"X-A: b", b" c"),
        "a NUL in a header": get(b"X-A: b\0c"),
        "a carriage return in a header": get(b"X-A: b\rc"),
        "a control character in a name": get(b"X\x01: b"),
        "a blank in the target": b"GET /li vez HTTP/1.1\r\nHost: x\r\n\r\n",
        "a NUL in the target": b"GET /li\0vez HTTP/1.1\r\nHost: x\r\n\r\n",
        "bytes beyond ASCII in the target": b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        "no target": b"GET HTTP/1.1\r\nHost: x\r\n\r\n",
        "a tunnel": b"CONNECT redis:6379 HTTP/1.1\r\nHost: x\r\n\r\n",
        "a method that is none": b"BREW /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        "a method in lower case": b"get /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        "a version to come": b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n",
        "HTTP 2 at once": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xa5" * 500,
        "a Redis command": b"*1\r\n$8\r\nFLUSHALL\r\n",
        "noise": bytes(range(256)) * 4,
    }.items()
]

TOO_LARGE = [
    Row(name, sent, 431, "head-too-large")
    for name, sent in {
        "2,000 headers": get(*[b"X-A: b"] * 2_000),
        "a header of 100 kB": get(b"X-A: " + b"b" * 100_000),
        "a name of 100 kB": get(b"X" * 100_000 + b": b"),
        "a target of 100 kB": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        "a query of 100 kB": b"GET /livez?" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        "a head of 10 MB that does not end": b"GET /livez HTTP/1.1\r\nX-A: " + b"b" * 10_000_000,
        "10 MB of headers that do not end": b"GET /livez HTTP/1.1\r\n" + b"X-A: b\r\n" * 1_250_000,
        "trailers of 10 MB": CHUNKED + b"0\r\n" + b"X-A: " + b"b" * 10_000_000,
        "a million trailers": CHUNKED + b"0\r\n" + b"X-A: b\r\n" * 1_000_000,
    }.items()
]
BODIES = [
    Row("an asterisk for a target", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not-found"),
    Row("a bomb of gzip", bomb, 415, "unsupported-media-type"),
    Row(
        "a coding that is none",
        as_json("/predict/tensor-demo", "{}", **{"Content-Encoding": "x"}),
        415,
        "unsupported-media-type",
    ),
    Row("a length above the limit", POST + b"Content-Length: 16777217\r\n\r\n", 413, "payload-too-large"),
    Row("a length of 19 digits", POST + b"Content-Length: 9223372036854775807\r\n\r\n", 413, "payload-too-large"),
    Row(
        "a body above the limit, awaited",
        POST + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n",
        413,
        "payload-too-large",
    ),
    Row(
        "8 MB in chunks",
        Ask("/predict/tensor-demo", (b"\0" * 65_536 for _ in range(128)), headers={"Content-Type": OCTET}),
        413,
        "payload-too-large",
    ),
    Row(
        "a body where none belongs",
        POST.replace(b"POST", b"GET") + b"Content-Length: 2\r\n\r\n{}",
        405,
        "method-not-allowed",
    ),
    Row(
        "an upgrade to HTTP 2",
        POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
        400,
        "malformed",
    ),
]


@table(*BROKEN)
def test_broken_framing_is_refused_and_the_connection_closed(system: System, row: Row) -> None:
    assert isinstance(row.sent, bytes)
    with connect(system) as connection:
        send(connection, row.sent)
        answer = read(connection)
        check_refusal(answer, row.status, row.code)
        check_silence(answer, row.sent)
        assert answer.headers["connection"] == "close"
        assert hung_up(connection)


@table(*TOO_LARGE, *BODIES)
def test_what_is_too_large_or_coded_is_refused(system: System, row: Row) -> None:
    check(system, row)


def test_a_million_chunks_of_one_byte_are_a_body_like_any_other(system: System) -> None:
    """It is read whole, and found to be no tensor of this model."""
    answer = ask(system, CHUNKED + b"1\r\na\r\n" * 1_000_000 + b"0\r\n\r\n")
    check_refusal(answer, 422, "invalid-input")


def test_a_hundred_requests_at_once_get_a_hundred_answers(system: System) -> None:
    with connect(system) as connection:
        send(connection, get() * 99 + get(b"Connection: close"))
        received = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 100


@pytest.mark.parametrize(
    "sent",
    [
        get(b"Connection: Upgrade", b"Upgrade: websocket"),
        get(b"Expect: miracles"),
        b"GET /livez\r\n\r\n",
        b"GET /livez RTSP/1.0\r\n\r\n",
        b"GET http://elsewhere/livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\r\n\r\n" + get(),
    ],
    ids=["an upgrade", "an expectation", "HTTP 0.9", "RTSP", "a target elsewhere", "blank lines before"],
)
def test_what_is_odd_but_harmless_is_answered_as_if_it_were_not(system: System, sent: bytes) -> None:
    answer = ask(system, sent)
    assert (answer.status, answer.json()) == (200, {"status": "live"})


@pytest.mark.parametrize(
    ("begun", "timeout_s", "code"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ", HEAD_TIMEOUT_S, "request-timeout"),
        (POST + b"Content-Length: 100\r\n\r\n", BODY_TIMEOUT_S, "request-timeout"),
        (CHUNKED, BODY_TIMEOUT_S, "request-timeout"),
    ],
    ids=["a-head", "a-body", "a-body-in-chunks"],
)
@pytest.mark.parametrize("dripping", [False, True], ids=["silence", "drips"])
def test_what_does_not_arrive_is_given_up(
    system: System, begun: bytes, timeout_s: float, code: str, *, dripping: bool
) -> None:
    drop = b"1\r\na\r\n" if begun == CHUNKED else b"a"
    with connect(system) as connection, _drips(connection, drop if dripping else b""):
        began = time.monotonic()
        send(connection, begun)
        answer = read(connection)
        took_s = time.monotonic() - began
    check_refusal(answer, 408, code)
    assert timeout_s - 0.1 <= took_s <= timeout_s + SLACK_S


@pytest.mark.parametrize(
    ("begun", "drop"),
    [
        (get(), b"\r\n"),
        (POST + b"Content-Length: 99999999\r\n\r\n", b"a"),
        (POST.replace(b"POST", b"GET") + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"", b"\r\n"),
    ],
    ids=["blank lines", "a body that was refused", "a body that nobody asked for", "blank lines alone"],
)
def test_a_connection_on_which_nobody_is_served_is_closed_whatever_drips(
    system: System, begun: bytes, drop: bytes
) -> None:
    with connect(system) as connection, _drips(connection, drop):
        began = time.monotonic()
        send(connection, begun)
        assert hung_up(connection)
        assert time.monotonic() - began <= HEAD_TIMEOUT_S + SLACK_S


def test_a_thousand_idle_connections_hold_up_nobody_and_are_closed(system: System) -> None:
    with ExitStack() as opened:
        idle = [opened.enter_context(connect(system)) for _ in range(IDLE)]
        for connection in idle[::2]:
            send(connection, b"GET /livez HTTP/1.1\r\n")
        began = time.perf_counter()
        assert system.client.get("/livez").status_code == 200
        assert time.perf_counter() - began < LIVE_S
        assert all(hung_up(connection) for connection in idle)


@contextmanager
def _drips(connection: socket.socket, drop: bytes) -> Iterator[None]:
    """Send ``drop`` again and again beside what happens, faster than any timeout."""
    over = threading.Event()

    def drip() -> None:
        while not over.wait(DRIP_S):
            send(connection, drop)

    thread = threading.Thread(target=drip)
    if drop:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if drop:
            thread.join()
