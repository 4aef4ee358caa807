"""The little of HTTP that the hot routes need, against honest and hostile clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

import pytest

from api.arrivals import Arrivals
from api.http import Request, answer
from jobs.errors import (
    MalformedError,
    PayloadTooLargeError,
    PenstockError,
    RequestTimeoutError,
    UnsupportedMediaTypeError,
)

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TIMEOUT_S = 30.0


def _request(**headers: str) -> Request:
    named = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"path": "/predict/m", "headers": named, "query_string": b"a=1", "server": ("127.0.0.1", 80)})


class Client:
    """Sends parts of a body, then nothing more; counts how often it was asked."""

    def __init__(self, *parts: bytes, ends: str = "whole") -> None:
        self._messages: list[MutableMapping[str, Any]] = [
            {"type": "http.request", "body": part, "more_body": True} for part in parts
        ]
        if ends == "whole":
            self._messages[-1]["more_body"] = False
        elif ends == "gone":
            self._messages.append({"type": "http.disconnect"})
        self.asked = 0
        self.silent = asyncio.Event()
        """Set when it was asked for more than it sends."""

    async def receive(self) -> MutableMapping[str, Any]:
        self.asked += 1
        if not self._messages:
            self.silent.set()
            await asyncio.Event().wait()
        return self._messages.pop(0)


async def _arriving(client: Client, **headers: str) -> bytes:
    return await _request(**headers).body(client.receive, 10)


def _body(client: Client, **headers: str) -> bytes:
    return asyncio.run(_arriving(client, **headers))


def _refused(error: type[PenstockError], client: Client, **headers: str) -> int:
    with pytest.raises(error):
        _body(client, **headers)
    return client.asked


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "GZIP", ""])
def test_a_compressed_body_is_refused_before_it_is_read(coding: str) -> None:
    assert _refused(UnsupportedMediaTypeError, Client(b"x"), content_encoding=coding) == 0


def test_a_body_that_says_it_is_not_compressed_is_taken() -> None:
    assert _body(Client(b"x"), content_encoding="Identity") == b"x"


# --- Request ids ---


@pytest.mark.parametrize("given", ["a", "8e03978e-40d5.x_y:z", "x" * 64])
def test_a_request_id_that_came_with_the_request_is_kept(given: str) -> None:
    assert _request(x_request_id=given).request_id == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "x" * 10_000, "a\r\nb", "a\n", "\xe9", '"', "a\0"])
def test_a_request_id_that_could_do_harm_is_replaced(given: str) -> None:
    made = _request(x_request_id=given).request_id

    assert made != given
    assert _request(x_request_id=made).request_id == made


def test_made_up_request_ids_differ() -> None:
    assert len({_request().request_id for _ in range(1_000)}) == 1_000


# --- What headers say ---


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("application/json", "application/json"),
        ("Application/JSON; charset=utf-8", "application/json"),
        ("image/png;", "image/png"),
        ("\xff/\xff", "\xff/\xff"),
        ("", ""),
    ],
)
def test_the_media_type_is_lower_case_and_without_parameters(given: str, expected: str) -> None:
    assert _request(content_type=given).media_type == expected


def test_a_body_without_a_media_type_is_json() -> None:
    assert _request().media_type == "application/json"


def test_authorization_query_and_server_are_given_on_as_they_came() -> None:
    request = _request(authorization="Bearer psk")

    assert (request.authorization, request.query, request.server) == (b"Bearer psk", b"a=1", ("127.0.0.1", 80))
    assert _request().authorization is None


def test_an_idempotency_key_is_given_on_as_it_came_and_cache_control_in_lower_case() -> None:
    request = _request(idempotency_key='"Ab c"', cache_control="No-Cache")

    assert (request.idempotency_key, request.cache_control) == (b'"Ab c"', b"no-cache")
    assert (_request().idempotency_key, _request().cache_control) == (None, b"")


def test_a_header_in_several_lines_is_one() -> None:
    names = (b"idempotency-key", b"cache-control")
    headers = [(name, value) for value in (b"a", b"b") for name in names]
    request = Request({"path": "/predict/m", "headers": headers, "query_string": b""})

    assert (request.idempotency_key, request.cache_control) == (b"a, b", b"a, b")


@pytest.mark.parametrize("given", [TRACE, TRACE[:-2] + "00"])
def test_a_valid_trace_context_is_kept(given: str) -> None:
    assert _request(traceparent=given).traceparent == given


@pytest.mark.parametrize(
    "given",
    [
        "",
        TRACE.upper(),
        TRACE[:-1],
        TRACE + "-",
        "ff" + TRACE[2:],
        TRACE + "\n",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-4bf92f3577b34da6a3ce929d0e0e4736-{'0' * 16}-01",
        "\xe9" * 55,
    ],
)
def test_an_invalid_trace_context_is_passed_over(given: str) -> None:
    assert _request(traceparent=given).traceparent == ""


# --- Prefer: wait ---


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [
        ("wait=5", 5),
        ("respond-async, wait=5", 5),
        ("wait=5, respond-async", 5),
        ("respond-async;wait=5", 5),
        ('wait="5"', 5),
        ("wait = 5", 5),
        ("wait=0", 0),
        ("wait=60", 60),
        ("wait=61", 60),
        ("wait=999999999", 60),
    ],
)
def test_a_wait_is_read_from_prefer_and_bounded(prefer: str, wait_s: float) -> None:
    assert _request(prefer=prefer).wait_s(60.0) == wait_s


@pytest.mark.parametrize(
    "prefer",
    [
        "",
        "respond-async",
        "wait",
        "wait=",
        "wait=-1",
        "wait=1e9",
        "wait=nan",
        "wait=5s",
        "await=5",
        "wait=" + "9" * 5_000,
    ],
)
def test_a_preference_that_is_none_is_passed_over(prefer: str) -> None:
    assert _request(prefer=prefer).wait_s(60.0) == 0


# --- Bodies ---


def test_a_body_is_put_together_from_its_parts() -> None:
    assert _body(Client(b"0123", b"", b"456789")) == b"0123456789"
    assert _body(Client(b"")) == b""


def test_a_declared_length_above_the_bound_is_refused_before_anything_is_read() -> None:
    assert _refused(PayloadTooLargeError, Client(b"x"), content_length="11") == 0
    assert _refused(PayloadTooLargeError, Client(b"x"), content_length="9" * 5_000) == 0


def test_an_undeclared_body_is_refused_at_the_part_that_exceeds_the_bound() -> None:
    assert _refused(PayloadTooLargeError, Client(*[b"xxxx"] * 1_000)) == 3


def test_a_length_that_lies_does_not_help() -> None:
    assert _refused(PayloadTooLargeError, Client(b"x" * 11), content_length="5") == 1


@pytest.mark.parametrize("length", ["-1", "ten", "", "1e1", "\xb2"])
def test_a_length_that_is_none_leaves_the_bound_to_the_body(length: str) -> None:
    assert _body(Client(b"x" * 10), content_length=length) == b"x" * 10


def test_a_client_that_goes_away_leaves_no_half_body() -> None:
    _refused(MalformedError, Client(b"half", ends="gone"))
    _refused(MalformedError, Client(ends="gone"))


# --- Bodies that do not arrive ---


class Late:
    """A request whose body does not arrive, and a handle on it as the gateway has one."""

    def __init__(self) -> None:
        self.arrivals = Arrivals(TIMEOUT_S)
        self.client = Client(b"half", ends="silent")

    async def start(self) -> asyncio.Task[bytes]:
        task = asyncio.create_task(self.arrivals.bounded(_arriving(self.client)))
        await self.client.silent.wait()
        return task


def test_a_body_that_does_not_arrive_is_not_waited_for() -> None:
    async def main() -> None:
        late = Late()
        task = await late.start()

        late.arrivals.give_up(time.monotonic() + TIMEOUT_S + 1)

        with pytest.raises(RequestTimeoutError):
            await task
        assert not task.cancelled()

    asyncio.run(main())


def test_a_body_that_has_time_left_is_waited_for() -> None:
    async def main() -> None:
        late = Late()
        task = await late.start()
        late.arrivals.give_up(time.monotonic() + TIMEOUT_S - 1)
        await asyncio.sleep(0)

        assert not task.done()
        task.cancel()

    asyncio.run(main())


def test_a_request_that_is_cancelled_otherwise_is_not_called_late() -> None:
    async def main() -> None:
        task = await Late().start()
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_a_body_that_has_arrived_is_no_longer_watched() -> None:
    async def main() -> None:
        arrivals = Arrivals(TIMEOUT_S)
        assert await arrivals.bounded(_arriving(Client(b"whole"))) == b"whole"

        arrivals.give_up(time.monotonic() + 10 * TIMEOUT_S)
        await asyncio.sleep(0)

        assert arrivals._since == {}

    asyncio.run(main())


def test_an_answer_says_how_long_it_is() -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(answer(send, 202, [(b"a", b"b")], b"body"))

    assert sent == [
        {"type": "http.response.start", "status": 202, "headers": [(b"a", b"b"), (b"content-length", b"4")]},
        {"type": "http.response.body", "body": b"body"},
    ]
