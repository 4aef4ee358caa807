"""One row of hostile input: what is sent, and how it is refused; and the form that every refusal has."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import httpx
import pytest

from tests.servers import LOOPBACK
from tests.system import END_S, System

BODY_BYTES_MAX = 4_096
ECHO_BYTES_MAX = 260
"""The longest piece of what was sent that may stand in an answer: a pointer or a path, cut at 200, and its key."""
LEAKS = {
    "an address in memory": rb"0x[0-9a-f]{6,}",
    "a path": rb"/(?:home|tmp|work|usr|root|var)/|site-packages|\.py\b",
    "a stack": rb"Traceback|File \\?\"",
    "an address of the network": rb"127\.0\.0\.1|localhost|redis://|redis\+socket",
    "a library": rb"msgspec|kombu|celery|httptools|pillow|PIL\.|onnxruntime|pydantic|starlette",
}


class Ask(NamedTuple):
    """A request in good framing."""

    path: str
    content: bytes | Iterable[bytes] = b""
    method: str = "POST"
    headers: Mapping[str, str] = MappingProxyType({})


Sent: TypeAlias = bytes | Ask | Callable[[], bytes | Ask]
"""Bytes on the wire, a request, or what makes one where it is large."""


class Row(NamedTuple):
    """``code`` is that of the problem; where the status is 202, of the job that ends as failed."""

    name: str
    sent: Sent
    status: int
    code: str
    pointer: str | None = None


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def rows(*table: Row) -> pytest.MarkDecorator:
    """Parametrise a test with a table, each row by its name."""
    return pytest.mark.parametrize("row", table, ids=[row.name.replace(" ", "-") for row in table])


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def as_json(path: str, text: str | bytes, **headers: str) -> Ask:
    """A POST of JSON, as it stands."""
    content = text if isinstance(text, bytes) else text.encode()
    return Ask(path, content, headers={"Content-Type": "application/json", **headers})


def ask(system: System, sent: bytes | Ask) -> Answer:
    """Send it, and read the first answer."""
    if isinstance(sent, bytes):
        with connect(system) as connection:
            send(connection, sent)
            return read(connection)
    headers = [(name.encode(), value.encode()) for name, value in sent.headers.items()]
    url = httpx.URL(system.url + sent.path)
    answer = system.client.request(sent.method, url, content=sent.content, headers=headers)
    return Answer(answer.status_code, dict(answer.headers), answer.content)


def connect(system: System) -> socket.socket:
    """A connection to the gateway, on which waits are bounded."""
    return socket.create_connection((LOOPBACK, system.port), END_S)


def send(connection: socket.socket, data: bytes) -> None:
    """Send as much as the gateway takes: it may have answered, and hung up."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)


def read(connection: socket.socket) -> Answer:
    """The next answer on a connection."""
    with http.client.HTTPResponse(connection) as answer:
        answer.begin()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, headers, answer.read())


def hung_up(connection: socket.socket) -> bool:
    """Whether the gateway closes a connection that it has answered, within the socket's timeout."""
    try:
        while connection.recv(65_536):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def check(system: System, row: Row) -> None:
    """Send a row, and hold what comes back to the one form of refusals."""
    sent = row.sent() if callable(row.sent) else row.sent
    answer = ask(system, sent)
    if row.status == 202:
        _check_failed(system, answer, row)
    else:
        check_refusal(answer, row.status, row.code, row.pointer)
    check_silence(answer, sent)


def check_refusal(answer: Answer, status: int, code: str, pointer: str | None = None) -> None:
    """A refusal: problem+json, short, with a request id, in its own words."""
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json", answer
    said = answer.json()
    assert (said["type"], said["status"]) == (f"/problems/{code}", status), said
    assert said["title"]
    assert said["detail"]
    assert said["request_id"] == answer.headers["x-request-id"]
    assert [each["pointer"] for each in said.get("errors", [])] == ([] if pointer is None else [pointer]), said


def check_silence(answer: Answer, sent: bytes | Ask = b"") -> None:
    """An answer is short, tells nothing of our insides, and does not repeat what it was sent."""
    assert len(answer.body) < BODY_BYTES_MAX
    for what, pattern in LEAKS.items():
        assert not re.search(pattern, answer.body, re.IGNORECASE), f"{what} in {answer.body!r}"
    given = _sent_bytes(sent)
    pieces = (answer.body[at : at + ECHO_BYTES_MAX] for at in range(len(answer.body) - ECHO_BYTES_MAX))
    assert not any(piece in given for piece in pieces), f"an echo in {answer.body!r}"


def _sent_bytes(sent: bytes | Ask) -> bytes:
    """The beginning of what was sent; an echo is found there or nowhere."""
    if isinstance(sent, bytes):
        return sent[:65_536]
    body = sent.content[:65_536] if isinstance(sent.content, bytes) else b""
    return b"\n".join((sent.path.encode(), body, *(value.encode() for value in sent.headers.values())))


def _check_failed(system: System, answer: Answer, row: Row) -> None:
    """It passed the door; the job ends as failed, at its first attempt, with the code of the row."""
    assert answer.status == 202, answer
    document = system.ended(answer.json()["task_id"])
    assert document["status"] == "failed", document
    assert document["error"]["code"] == row.code, document
    assert document["attempt"] == 1
    check_silence(Answer(200, {}, json.dumps(document).encode()), row.sent if isinstance(row.sent, Ask) else b"")
