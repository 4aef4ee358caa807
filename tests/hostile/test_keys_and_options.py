"""Idempotency keys, options of admission and cache, and more connections than are served."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.end_to_end.callers import REFRESH_S, add_callers
from tests.hostile.conftest import CONNECTIONS_MAX
from tests.hostile.rows import Ask, Row, Sent, as_json, ask, check, check_refusal, connect, hung_up, read, send
from tests.hostile.rows import rows as table
from tests.system import CACHED, System
from tests.waiting import wait_until

OCTETS = {"Content-Type": "application/octet-stream"}
GOOD = bytes(256)
FLOOD = 2_000
LONG = "k" * 5_000


def _keyed(value: str, content: bytes = GOOD) -> Ask:
    return Ask("/predict/tensor-demo", content, headers={**OCTETS, "Idempotency-Key": value})


def _raw(*lines: bytes) -> bytes:
    """A good request by hand, with these lines in its head."""
    head = b"POST /predict/tensor-demo HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    return head + b"".join(line + b"\r\n" for line in lines) + b"Content-Length: 256\r\n\r\n" + GOOD


def _no_key(name: str, sent: Sent) -> Row:
    return Row(name, sent, 422, "invalid-idempotency-key")


KEYS = [
    _no_key("an empty key", _keyed("")),
    _no_key("an empty key in quotation marks", _keyed('""')),
    _no_key("a key of 256 characters", _keyed("k" * 256)),
    _no_key("a key of 256 characters in quotation marks", _keyed(f'"{"k" * 256}"')),
    _no_key("a key of 5,000 characters", _keyed(LONG)),
    _no_key("a key beyond ASCII", _keyed("sch\u00f6n")),
    _no_key("a key beyond ASCII in quotation marks", _keyed('"\N{GRINNING FACE}"')),
    _no_key("a key of bytes that are no text", _raw(b"Idempotency-Key: \xff\xfe")),
    _no_key("a key with a blank", _keyed("a b")),
    _no_key("a key with a tab", _raw(b"Idempotency-Key: a\tb")),
    _no_key("two keys", _raw(b"Idempotency-Key: a", b"Idempotency-Key: b")),
    _no_key("a key twice", _raw(b"Idempotency-Key: a", b"Idempotency-Key: a")),
    _no_key("two keys in quotation marks", _raw(b'Idempotency-Key: "a"', b'idempotency-key: "b"')),
    _no_key("a list of keys", _keyed('"a", "b"')),
    _no_key("a key with parameters and a blank", _keyed('"a"; b=1')),
    Row("a key with a NUL", _raw(b"Idempotency-Key: a\0b"), 400, "malformed"),
    Row("a key with a control character", _raw(b"Idempotency-Key: a\x01b"), 400, "malformed"),
    Row("a key of 40 kB", _raw(b"Idempotency-Key: " + b"k" * 40_000), 431, "head-too-large"),
]


def _wrong(name: str, sent: Ask, pointer: str) -> Row:
    return Row(name, sent, 422, "invalid-input", pointer)


def _option(name: str, text: str, pointer: str) -> Row:
    zeros = json.dumps([0] * 64)
    return _wrong(name, as_json("/predict/tensor-demo", f'{{"input": {zeros}, {text}}}'), pointer)


OPTIONS = [
    _option(f"{option} of {kind}", f'"{option}": {text}', f"/{option}")
    for option, good in (("cache", "use"), ("admit", "always"), ("lane", "bulk"))
    for kind, text in {
        "a number": "1",
        "true": "true",
        "null": "null",
        "a list": f'["{good}"]',
        "an object": f'{{"{good}": 1}}',
        "no word": '""',
        "another word": '"maybe"',
        "capitals": f'"{good.upper()}"',
        "a blank behind": f'"{good} "',
        "a NUL": f'"{good}\\u0000"',
        "100 kB": f'"{"x" * 100_000}"',
    }.items()
] + [
    _wrong(f"{query[:24]} in the query", Ask(f"/predict/tensor-demo?{query}", GOOD, headers=OCTETS), at)
    for query, at in {
        "cache=": "/cache",
        "cache=USE": "/cache",
        "cache=1": "/cache",
        f"cache={LONG}": "/cache",
        "admit=": "/admit",
        "admit=true": "/admit",
        "admit=%00": "/admit",
        "cache.ttl_s=1": "/cache.ttl_s",
    }.items()
]


@table(*KEYS)
def test_what_is_no_key_is_refused_and_nothing_is_stored(system: System, row: Row) -> None:
    before = _keys(system), system.records()
    check(system, row)
    assert (_keys(system), system.records()) == before


@table(*OPTIONS)
def test_an_option_of_the_wrong_kind_is_pointed_at(system: System, row: Row) -> None:
    check(system, row)


def test_thousands_of_keys_with_refused_bodies_leave_nothing_in_the_store(system: System) -> None:
    before = _keys(system), system.records()
    stored = set(system.redis.scan_iter())
    held = system.redis.info("memory")["used_memory"]
    bad = (b"{", b'{"input": [1]}', b'{"input": 1, "colour": 2}')
    for number in range(FLOOD):
        headers = {"Content-Type": "application/json", "Idempotency-Key": f"{number:x}" * 20}
        answer = system.client.post("/predict/tensor-demo", content=bad[number % len(bad)], headers=headers)
        assert answer.status_code in {400, 422}
    assert (_keys(system), system.records()) == before
    assert set(system.redis.scan_iter()) <= stored  # what earlier jobs left may go meanwhile
    assert system.redis.info("memory")["used_memory"] - held < 1_000_000


def test_a_key_that_another_tenant_used_tells_nothing_of_him(system: System) -> None:
    owner, thief = add_callers(system, "owner", "thief")
    try:
        known = _submit(system, "shared-key", owner)
        stolen = _submit(system, "shared-key", thief)
        differs = system.client.post(
            "/predict/tensor-demo", json={"input": [1.0] * 64}, headers={"Idempotency-Key": "shared-key-2", **thief}
        )
        assert (known.status_code, stolen.status_code, differs.status_code) == (202, 202, 202)
        assert "idempotent-replayed" not in stolen.headers
        assert stolen.json()["task_id"] != known.json()["task_id"]
        foreign = Ask(f"/result/{known.json()['task_id']}", method="GET", headers=thief)
        check_refusal(ask(system, foreign), 404, "not-found")
    finally:
        system.forget_keys()
        wait_until(lambda: system.client.get("/models").status_code == 200, REFRESH_S, "anybody is served again")


@pytest.mark.parametrize(
    "control", ["no-cache=", "max-age=-1", "NO-STORE" * 500, ",;" * 2_000, "\u00e9", '"no-store'], ids=ascii
)
def test_a_cache_control_that_cannot_be_read_does_no_harm(system: System, control: str) -> None:
    answer = ask(system, Ask("/predict/tensor-demo", GOOD, headers={**OCTETS, "Cache-Control": control}))
    assert answer.status in {200, 202}


def test_a_result_that_is_asked_for_a_thousand_times_is_stored_once(system: System) -> None:
    row = [time.time_ns() % 1_000_003 / 1_000_003] * 64
    first = system.client.post("/predict/tensor-demo", json={"input": row}, headers=CACHED)
    assert system.ended(first.json()["task_id"])["status"] == "completed"
    records = system.records()
    for _ in range(1_000):
        assert system.client.post("/predict/tensor-demo", json={"input": row}, headers=CACHED).status_code == 200
    assert system.records() == records


def test_more_connections_than_are_served_are_refused_at_once_and_hold_up_nobody(system: System) -> None:
    assert system.client.get("/livez").status_code == 200
    with ExitStack() as opened:
        for _ in range(CONNECTIONS_MAX):
            opened.enter_context(connect(system))
        late = opened.enter_context(connect(system))
        answer = read(late)
        check_refusal(answer, 503, "too-many-connections")
        assert int(answer.headers["retry-after"]) >= 1
        assert hung_up(late)
        eager = opened.enter_context(connect(system))
        send(eager, _raw())
        check_refusal(read(eager), 503, "too-many-connections")
        assert system.client.get("/livez").status_code == 200  # on the connection that it has
    wait_until(lambda: _serves_a_new_one(system), REFRESH_S, "a new connection is served")


def _serves_a_new_one(system: System) -> bool:
    with connect(system) as connection:
        send(connection, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        return read(connection).status == 200


def _submit(system: System, key: str, caller: dict[str, Any]) -> httpx.Response:
    headers = {"Idempotency-Key": key, **caller}
    return system.client.post("/predict/tensor-demo", json={"input": [0.0] * 64}, headers=headers)


def _keys(system: System) -> int:
    return sum(1 for _ in system.redis.scan_iter(f"{system.namespace}:idempotency:*", 1_000))
