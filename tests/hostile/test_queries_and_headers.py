"""Queries and headers: options of raw bodies, preferences, media types, keys, request ids, and names of models."""

from __future__ import annotations

import re

import pytest

from tests.hostile.conftest import WAIT_S_MAX
from tests.hostile.rows import Ask, Row, as_json, ask, check, check_refusal, check_silence
from tests.hostile.rows import rows as table
from tests.system import System

OCTETS = {"Content-Type": "application/octet-stream"}
GOOD = bytes(256)
LONG = "a" * 5_000


def _query(name: str, query: str, pointer: str | None, status: int = 422, code: str = "invalid-input") -> Row:
    return Row(name, Ask(f"/predict/tensor-demo?{query}", GOOD, headers=OCTETS), status, code, pointer)


QUERIES = [
    _query("an unknown option", "colour=1", "/colour"),
    _query("an input in the query", "input=1", "/input"),
    _query("an unknown option of 5,000 characters", f"{LONG}=1", "/" + "a" * 199),
    _query("a lane that is none", "lane=fast", "/lane"),
    _query("a lane of 5,000 characters", f"lane={LONG}", "/lane"),
    _query("a lifetime below zero", "ttl_s=-1", "/ttl_s"),
    _query("a lifetime of NaN", "ttl_s=nan", "/ttl_s"),
    _query("a lifetime without end", "ttl_s=inf", "/ttl_s"),
    _query("a lifetime of 1e18", "ttl_s=1e18", "/ttl_s"),
    _query("a lifetime of words", "ttl_s=soon", "/ttl_s"),
    _query("an empty lifetime", "ttl_s=", "/ttl_s"),
    _query("a version of words", "version=latest", "/version"),
    _query("a version of 5,000 digits", f"version={'1' * 5_000}", "/version"),
    _query("an empty version", "version=", "/version"),
    _query("a version of zero", "version=0", None, 404, "model-not-found"),
    _query("a version below zero", "version=-1", None, 404, "model-not-found"),
    _query("a version of 2^63", f"version={2**63}", None, 404, "model-not-found"),
    _query("a version of 4,000 digits", f"version={'1' * 4_000}", None, 404, "model-not-found"),
    _query("an option without value", "version", None, 400, "malformed"),
    _query("nothing but separators", "&&&", None, 400, "malformed"),
    _query("2,000 options", "&".join(f"k{n}=1" for n in range(2_000)), None, 400, "malformed"),
    _query("a broken escape", "lane=%zz", "/lane"),
    _query("invalid UTF-8 in an escape", "lane=%ff%fe", "/lane"),
    _query("a NUL in an escape", "lane=bulk%00", "/lane"),
]
TYPES = [
    Row(name, Ask("/predict/tensor-demo", GOOD, headers={"Content-Type": value}), 415, "unsupported-media-type")
    for name, value in {
        "a form": "application/x-www-form-urlencoded",
        "parts": "multipart/form-data; boundary=x",
        "an empty media type": "",
        "half a media type": "application/",
        "two media types": "application/octet-stream, application/json",
        "a media type with a NUL escape": "application/octet-stream%00",
        "a media type of 5,000 characters": f"application/{LONG}",
        "a media type beyond ASCII": "application/j\u00e9son",
        "a pickle": "application/x-python-serialize",
    }.items()
]
NAMES = [
    Row(f"a model named {name[:24]!r}", Ask(f"/predict/{path}", GOOD, headers=OCTETS), 404, "model-not-found")
    for name, path in {
        "../x": "%2e%2e%5cx",
        "": "",
        "300 characters": "x" * 300,
        "5,000 characters": LONG,
        "NUL": "tensor-demo%00",
        "a homoglyph": "t%D0%B5nsor-demo",
        "another case": "Tensor-Demo",
        "a blank behind": "tensor-demo%20",
        "a line feed": "tensor-demo%0d%0aX-A:%20b",
        "invalid UTF-8": "%ff%fe",
        "a pattern": "*",
        "a version in it": "tensor-demo@1",
        "a key of the store": "penstock:models",
        "a template": "%7B%7B7*7%7D%7D",
    }.items()
] + [
    Row("a path out of the models", Ask("/predict/..%2f..%2fetc%2fpasswd", GOOD, headers=OCTETS), 404, "not-found"),
    Row("a model in a model", Ask("/predict/tensor-demo/1", GOOD, headers=OCTETS), 404, "not-found"),
]
NAMED = [
    Row(f"a body that names {name}", as_json("/predict", f'{{"model": {text}, "input": [0]}}'), status, code, pointer)
    for name, text, status, code, pointer in (
        ("no string", "1", 422, "invalid-input", "/model"),
        ("null", "null", 422, "invalid-input", "/model"),
        ("nothing", '""', 404, "model-not-found", None),
        ("300 characters", f'"{"x" * 300}"', 404, "model-not-found", None),
        ("100 kB", f'"{"x" * 100_000}"', 404, "model-not-found", None),
        ("a path", '"../../etc/passwd"', 404, "model-not-found", None),
        ("a NUL", '"tensor-demo\\u0000"', 404, "model-not-found", None),
        ("control characters", '"\\u001b[2J\\r\\n"', 404, "model-not-found", None),
    )
]


@table(*QUERIES, *TYPES)
def test_a_wrong_query_or_media_type_is_refused(system: System, row: Row) -> None:
    check(system, row)


@table(*NAMES, *NAMED)
def test_a_name_that_is_no_models_is_not_found(system: System, row: Row) -> None:
    check(system, row)


@pytest.mark.parametrize(
    "prefer",
    [
        "wait=1e9",
        "wait=-1",
        "wait=NaN",
        "wait=99999999999999999999",
        "wait=0x10",
        "wait",
        "wait=" + "9" * 5_000,
        "x=" + LONG,
        'wait="',
        ",;" * 2_000,
    ],
    ids=lambda text: text[:24],
)
def test_a_preference_that_cannot_be_read_is_as_good_as_none(system: System, prefer: str) -> None:
    task_id = system.submit("tensor-demo")
    assert system.ended(task_id)["status"] == "completed"
    answer = ask(system, Ask(f"/result/{task_id}", method="GET", headers={"Prefer": prefer}))
    assert answer.status == 200
    assert "preference-applied" not in answer.headers


@pytest.mark.parametrize("prefer", ["wait=999999999", "wait = 100", "respond-async, wait=61"])
def test_a_wait_is_bounded_by_the_gateway(system: System, prefer: str) -> None:
    task_id = system.submit("tensor-demo")
    assert system.ended(task_id)["status"] == "completed"
    answer = ask(system, Ask(f"/result/{task_id}", method="GET", headers={"Prefer": prefer}))
    assert answer.headers["preference-applied"] == f"wait={WAIT_S_MAX}"


@pytest.mark.parametrize(
    "given",
    ["x" * 10_000, "a b", "{}", "\u00e9", "%0d%0aX-A:b", '"}\\u000a{"at":"1"', "../../etc/passwd", "a\tb", ""],
    ids=lambda text: ascii(text[:24]),
)
@pytest.mark.parametrize("path", ["/result/nothing", "/nowhere", "/predict/nothing"])
def test_a_request_id_that_could_do_harm_is_replaced(system: System, given: str, path: str) -> None:
    method = "POST" if path.startswith("/predict") else "GET"
    answer = ask(system, Ask(path, method=method, headers={"X-Request-Id": given}))
    assert re.fullmatch(r"[0-9a-f]{10}-[0-9a-f]+", answer.headers["x-request-id"])
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert 400 <= answer.status < 500
    check_silence(answer)


@pytest.mark.parametrize(
    "authorization",
    ["Bearer " + "x" * 5_000, "Bearer", "Bearer \u00e9", "Basic Og==", "Bearer a b c", "bearer\tx", ", ,"],
    ids=lambda text: ascii(text[:24]),
)
def test_a_wrong_key_changes_nothing_where_none_is_asked_for(system: System, authorization: str) -> None:
    for path in ("/models", "/livez"):
        assert ask(system, Ask(path, method="GET", headers={"Authorization": authorization})).status == 200


@pytest.mark.parametrize("trace", ["00-" + "0" * 32 + "-" + "1" * 16 + "-01", "x" * 5_000, "00-\u00e9", "%0d%0a"])
def test_a_wrong_trace_context_is_dropped(system: System, trace: str) -> None:
    headers = OCTETS | {"traceparent": trace, "tracestate": "x" * 5_000}
    answer = ask(system, Ask("/predict/tensor-demo", GOOD, headers=headers))
    assert answer.status == 202
    assert system.ended(answer.json()["task_id"])["status"] == "completed"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("TRACE", "/livez"),
        ("PUT", "/predict"),
        ("PATCH", "/models"),
        ("DELETE", "/models/digits"),
        ("POST", "/livez"),
    ],
)
def test_a_method_that_a_route_does_not_take_is_named(system: System, method: str, path: str) -> None:
    answer = ask(system, Ask(path, method=method))
    check_refusal(answer, 405, "method-not-allowed")
    assert answer.headers["allow"]
