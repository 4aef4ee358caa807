"""JSON: what is not, what is too deep or too much, and numbers that must arrive exactly or not at all."""

from __future__ import annotations

import json
import math

import pytest

from tests.hostile.graphs import WIDTH
from tests.hostile.rows import Row, as_json, ask, check
from tests.hostile.rows import rows as table
from tests.system import System

DEMO = "/predict/tensor-demo"
ROW = json.dumps([0.0] * 64)
FIRST = ROW[: ROW.rindex("0.0")]
MILLION = 1_000_000


def with_number(text: str) -> str:
    """A good input but for its last number."""
    return f'{{"input": {FIRST}{text}]}}'


def _row(
    name: str, text: str | bytes, pointer: str | None = "/input", status: int = 422, code: str = "invalid-input"
) -> Row:
    return Row(name, as_json(DEMO, text), status, code, pointer)


def _malformed(name: str, text: str | bytes) -> Row:
    return _row(name, text, None, 400, "malformed")


def _large(name: str, text: str, pointer: str | None = "/input") -> Row:
    return _row(name, text, pointer, 413, "payload-too-large")


SYNTAX = [
    _malformed("nothing", b""),
    _malformed("blanks", b" \r\n\t"),
    _malformed("a truncated object", '{"input": [0, 0'),
    _malformed("a truncated string", '{"inp'),
    _malformed("two values", '{"input": [0]} {}'),
    _malformed("single quotes", "{'input': [0]}"),
    _malformed("a comment", '{"input": [0] /* none */}'),
    _malformed("a trailing comma", '{"input": [0],}'),
    _malformed("NaN", with_number("NaN")),
    _malformed("Infinity", with_number("Infinity")),
    _malformed("minus Infinity", with_number("-Infinity")),
    _malformed("a leading plus", with_number("+1")),
    _malformed("a leading zero", with_number("01")),
    _malformed("a hexadecimal number", with_number("0x10")),
    _malformed("a point without digits", with_number("1.")),
    _malformed("invalid UTF-8", b'{"lane": "\xff\xfe"}'),
    _malformed("invalid UTF-8 in the name of an input", b'{"input": {"\xff\xfe": 1}}'),
    _malformed("invalid UTF-8 in a dtype", b'{"input": {"x": {"shape": [64], "dtype": "\xff", "data": []}}}'),
    _malformed("invalid UTF-8 in base64", b'{"input": {"x": {"shape": [64], "base64": "\xff"}}}'),
    _malformed("invalid UTF-8 in a key", b'{"input": {"x": {"\xff": [64], "base64": ""}}}'),
    Row("invalid UTF-8 in a picture", as_json("/predict/digits", b'{"input": {"base64": "\xff"}}'), 400, "malformed"),
    Row("invalid UTF-8 in a picture's key", as_json("/predict/digits", b'{"input": {"\xff": ""}}'), 400, "malformed"),
    Row("invalid UTF-8 in a model's name", as_json("/predict", b'{"model": "\xff"}'), 400, "malformed"),
    _malformed("an overlong encoding", b'{"\xc0\xaf": 1}'),
    _malformed("a surrogate in UTF-8", b'{"\xed\xa0\x80": 1}'),
    _malformed("a lone surrogate", '{"lane": "\\ud800"}'),
    _malformed("a lone surrogate in a name", '{"\\udfff": 1}'),
    _malformed("UTF-16", f'{{"input": {ROW}}}'.encode("utf-16")),
    _malformed("UTF-32", f'{{"input": {ROW}}}'.encode("utf-32")),
    _malformed("a mark of byte order", b"\xef\xbb\xbf" + f'{{"input": {ROW}}}'.encode()),
    _malformed("a raw line feed in a string", '{"lane": "a\nb"}'),
    _malformed("objects nested 100,000 deep", '{"input":' * 100_000),
    _malformed("an input nested 100,000 deep", '{"input": ' + "[" * 100_000 + "]" * 100_000 + "}"),
]
FORMS = [
    _row("a list", "[1]", ""),
    _row("a string", '"input"', ""),
    _row("null", "null", ""),
    _row("an empty object", "{}"),
    _row("an unknown field", f'{{"input": {ROW}, "colour": 1}}', "/colour"),
    _row("an unknown field of another case", f'{{"Input": {ROW}}}', "/Input"),
    _row("a field that is a path", f'{{"input": {ROW}, "../a/~b": 1}}', "/..~1a~1~0b"),
    _row("a field of 100 kB", f'{{"{"k" * 100_000}": 1}}', "/" + "k" * 199),
    _row("a field named like a prototype", f'{{"input": {ROW}, "__proto__": {{}}}}', "/__proto__"),
    _row("a million fields", "{" + ",".join(f'"k{n}":1' for n in range(MILLION)) + "}", "/k0"),
    _row("a version nested 100,000 deep", '{"version": ' + "[" * 100_000 + "]" * 100_000 + "}", "/version"),
    _row("lists nested 100,000 deep", "[" * 100_000, ""),
    _row("an input of invalid UTF-8", b'{"input": "\xff\xfe"}'),
    _row("a number of invalid UTF-8", b'{"input": [' + b"0," * 63 + b'"\xff"]}', "/input/63"),
    _row("true for a number", with_number("true"), "/input/63"),
    _row("a string for a number", with_number('"1"'), "/input/63"),
    _row("null for a number", with_number("null"), "/input/63"),
    _row("1e999", with_number("1e999"), "/input/63"),
    _row("minus 1e999", with_number("-1e999"), "/input/63"),
    _row("an integer of 5,000 digits", with_number("1" * 5_000), "/input/63"),
    _row("a fraction of 5,000 digits, too large", with_number("9" * 40 + "." + "1" * 5_000), "/input/63"),
    _row("a million small fields in the input", '{"input": {' + ",".join(f'"k{n}":1' for n in range(MILLION)) + "}}"),
    _row("a version that is a string", f'{{"input": {ROW}, "version": "1"}}', "/version"),
    _row("a version that is true", f'{{"input": {ROW}, "version": true}}', "/version"),
    _row("a version that is a fraction", f'{{"input": {ROW}, "version": 1.5}}', "/version"),
    _row("a version of 5,000 digits", f'{{"input": {ROW}, "version": {"1" * 5_000}}}', "/version"),
    _row("a lane of 100 kB", f'{{"input": {ROW}, "lane": "{"z" * 100_000}"}}', "/lane"),
    _row("a lane that is none", f'{{"input": {ROW}, "lane": "bulk\\u0000"}}', "/lane"),
    _row("a lifetime below zero", f'{{"input": {ROW}, "ttl_s": -1}}', "/ttl_s"),
    _row("a lifetime of zero", f'{{"input": {ROW}, "ttl_s": 0}}', "/ttl_s"),
    _row("a lifetime of 1e18", f'{{"input": {ROW}, "ttl_s": 1e18}}', "/ttl_s"),
    _row("a lifetime of 10^18", f'{{"input": {ROW}, "ttl_s": {10**18}}}', "/ttl_s"),
    _row("a lifetime of 1e999", f'{{"input": {ROW}, "ttl_s": 1e999}}', "/ttl_s"),
    _row("a lifetime that is true", f'{{"input": {ROW}, "ttl_s": true}}', "/ttl_s"),
    _malformed("a lifetime that is NaN", f'{{"input": {ROW}, "ttl_s": NaN}}'),
]
VERSIONS = [
    _row(f"version {number}", f'{{"input": {ROW}, "version": {number}}}', None, 404, "model-not-found")
    for number in (0, -1, 2, 2**63, -(2**63), 10**4_000)
]
LARGE = [
    _large("20 MB of numbers", '{"input": [' + "0.123456789," * 1_700_000 + "0]}", None),
    _large("15 MB of numbers", '{"input": [' + "0.5," * 3_900_000 + "0]}"),
    _large("15 MB of empty lists", '{"input": [' + "[]," * 5_000_000 + "[]]}"),
    _row("600,000 numbers", '{"input": [' + "0.5," * 600_000 + "0]}"),
]


@table(*SYNTAX)
def test_what_is_not_json_is_malformed(system: System, row: Row) -> None:
    check(system, row)


@table(*FORMS, *VERSIONS)
def test_what_does_not_have_the_form_is_pointed_at(system: System, row: Row) -> None:
    check(system, row)


@table(*LARGE)
def test_too_many_numbers_are_refused(system: System, row: Row) -> None:
    check(system, row)


@pytest.mark.parametrize(
    "text",
    [
        "-0.0",
        "5e-324",
        "2.2250738585072011e-308",
        "1.7976931348623157e308",
        "0.1",
        "9007199254740993.0",
        "1e-400",
        "0." + "1" * 5_000,
    ],
    ids=lambda text: text[:24],
)
def test_a_float_arrives_as_ieee_754_reads_it(system: System, text: str) -> None:
    got = _echo(system, "exact", text)
    assert (got, math.copysign(1, got)) == (float(text), math.copysign(1, float(text)))


@pytest.mark.parametrize("text", [str(2**53 + 1), str(2**63 - 1), str(-(2**63)), "-0"])
def test_an_integer_arrives_exactly(system: System, text: str) -> None:
    assert _echo(system, "whole", text) == int(text)


def _echo(system: System, model: str, text: str) -> float:
    """What a model that gives back its input makes of a number."""
    asked = as_json(f"/predict/{model}", f'{{"input": [{", ".join(["0"] * (WIDTH - 1))}, {text}]}}')
    answer = ask(system, asked)
    assert answer.status == 202, answer
    number: float = system.ended(answer.json()["task_id"])["result"]["y"][-1]
    return number
