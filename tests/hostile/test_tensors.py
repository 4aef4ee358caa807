"""Tensors: shapes that lie, numbers that the dtype cannot hold, inputs that are not the graph's."""

from __future__ import annotations

import json
import struct
from typing import Any

from tests.hostile.rows import Ask, Row, as_json, b64, check
from tests.hostile.rows import rows as table
from tests.system import System

ZEROS = [0.0] * 64


def _row(name: str, value: Any, pointer: str = "/input/x", model: str = "tensor-demo") -> Row:
    return Row(name, _asked(value, model), 422, "invalid-input", pointer)


def _asked(value: Any, model: str = "tensor-demo") -> Ask:
    text = value if isinstance(value, str) else json.dumps(value)
    return as_json(f"/predict/{model}", f'{{"input": {text}}}')


def _described(name: str, pointer: str = "/input/x", **tensor: Any) -> Row:
    return _row(name, {"x": tensor}, pointer)


def _raw(name: str, body: bytes, model: str = "tensor-demo", status: int = 422, code: str = "invalid-input") -> Row:
    return Row(
        name, Ask(f"/predict/{model}", body, headers={"Content-Type": "application/octet-stream"}), status, code
    )


SHAPES = [
    _described("more data than the shape", "/input/x/data", shape=[64], data=[0.0] * 65),
    _described("less data than the shape", "/input/x/data", shape=[64], data=[0.0] * 63),
    _described("no data", "/input/x/data", shape=[64], data=[]),
    _described("a dimension of zero", shape=[0, 64], data=[]),
    _described("a negative dimension", shape=[-1, 64], data=ZEROS),
    _described("two negative dimensions", shape=[-8, -8], data=ZEROS),
    _described("two dimensions of 2^31", shape=[2**31, 2**31], data=[0]),
    _described("rows of 2^31", shape=[2**31, 64], data=ZEROS),
    _described("a dimension of 2^64", shape=[2**64], data=ZEROS),
    _described("a dimension of 4,000 digits", "/input/x/shape", shape=[10**4_000], data=ZEROS),
    _described("a fractional dimension", shape=[64.5], data=ZEROS),
    _described("a dimension that is true", shape=[True, 64], data=ZEROS),
    _described("a dimension that is a string", shape=["64"], data=ZEROS),
    _described("40 dimensions", shape=[1] * 39 + [64], data=ZEROS),
    _described("a million dimensions", "/input/x/shape", shape=[1] * 1_000_000, data=ZEROS),
    _described("no dimensions", shape=[], data=[0]),
    _described("a shape that is a number", shape=64, data=ZEROS),
    _described("no shape", data=ZEROS),
    _described("another dtype", "/input/x/dtype", shape=[64], dtype="float64", data=ZEROS),
    _described("a dtype that is none", "/input/x/dtype", shape=[64], dtype="object", data=ZEROS),
    _described("a dtype of 100 kB", "/input/x/dtype", shape=[64], dtype="f" * 100_000, data=ZEROS),
    _described("an unknown key", shape=[64], data=ZEROS, strides=[4]),
    _described("data twice", shape=[64], data=ZEROS, base64=""),
    _described("nested data", "/input/x/data/0", shape=[64], data=[ZEROS]),
    _row("a ragged list", [ZEROS, ZEROS[:-1]], "/input/1"),
    _row("a list with a list in it", [*ZEROS[:-1], [0.0]], "/input/63"),
    _row("an empty list", [], "/input"),
    _row("empty rows", [[]], "/input/0"),
    _row("a number", 0, "/input"),
    _row("lists nested three deep", [[ZEROS]], "/input"),
    _row("17 rows of at most 16", [ZEROS] * 17, "/input"),
    _described("17 rows of at most 16, described", shape=[17, 64], data=ZEROS * 17),
]
CODED = [
    _described("base64 of too few bytes", "/input/x/base64", shape=[64], base64=b64(bytes(255))),
    _described("base64 of too many bytes", "/input/x/base64", shape=[64], base64=b64(bytes(257))),
    _described("base64 without padding", "/input/x/base64", shape=[64], base64=b64(bytes(256)).rstrip("=")),
    _described("base64 for URLs", "/input/x/base64", shape=[64], base64="-_" * 170 + "8="),
    _described("base64 with a line break", "/input/x/base64", shape=[64], base64=b64(bytes(256))[:-8] + "\nAAAAAA=="),
    _described("base64 beyond ASCII", "/input/x/base64", shape=[64], base64="\u00e9" * 344),
    _described("base64 that is a number", shape=[64], base64=1),
    _described(
        "base64 of NaN", "/input/x/base64", shape=[64], base64=b64(struct.pack("<64f", *[0.0] * 63, float("nan")))
    ),
    Row(
        "base64 of 12 MB",
        _asked({"x": {"shape": [64], "base64": b64(bytes(12_000_000))}}),
        413,
        "payload-too-large",
    ),
    _raw("a byte less than a row", bytes(255)),
    _raw("a byte more than a row", bytes(257)),
    _raw("no byte", b""),
    _raw("17 rows", bytes(17 * 256)),
    _raw("9 MB", bytes(9 * 1024 * 1024), status=413, code="payload-too-large"),
    _raw("NaN in bytes", struct.pack("<64f", *[float("nan")] * 64)),
    _raw("a dtype without bytes of its own", bytes(256), "pair", 415, "unsupported-media-type"),
]
NUMBERS = [
    _row("a float16 beyond its range", [0, 0, 0, 65_520], "/input/3", "halves"),
    _row("a float16 far beyond its range", [0, 0, 0, 1e300], "/input/3", "halves"),
    _row("a float32 beyond its range", [*ZEROS[:-1], 3.5e38], "/input/63"),
    _row("an int64 beyond its range", [0, 0, 0, 2**63], "/input/3", "whole"),
    _row("an int64 with a point", [0, 0, 0, 1.0], "/input/3", "whole"),
    _row("an int64 with an exponent", "[0, 0, 0, 1e2]", "/input/3", "whole"),
    _row("an int64 that is true", [0, 0, 0, True], "/input/3", "whole"),
]
NAMES = [
    _row("an unknown input", {"a": [1, 2], "b": [1, 2], "c": [1, 2]}, "/input/c", "pair"),
    _row("an unknown input of 100 kB", {"c" * 100_000: [1, 2]}, "/input/" + "c" * 64, "pair"),
    _row("a missing input", {"a": [1, 2]}, "/input", "pair"),
    _row("a doubled input", '{"a": [1, 2], "b": [1, 2], "b": [3, 4]}', "/input", "pair"),
    _row("an input doubled by an escape", '{"a": [1, 2], "\\u0061": [3, 4], "b": [1, 2]}', "/input", "pair"),
    _row("an input doubled a million times", "{" + '"a":1,' * 1_000_000 + '"b":1}', "/input", "pair"),
    _row("no names where they are needed", [1, 2], "/input", "pair"),
    _row("inputs that differ in rows", {"a": [[1, 2]], "b": [[1, 2], [3, 4]]}, "/input", "pair"),
    _row("a name with a NUL", {"a": [1, 2], "b\0": [1, 2]}, "/input/b\0", "pair"),
]


@table(*SHAPES)
def test_a_shape_that_does_not_add_up_is_pointed_at(system: System, row: Row) -> None:
    check(system, row)


@table(*CODED)
def test_bytes_that_are_no_rows_are_refused(system: System, row: Row) -> None:
    check(system, row)


@table(*NUMBERS)
def test_what_the_dtype_cannot_hold_is_pointed_at(system: System, row: Row) -> None:
    check(system, row)


@table(*NAMES)
def test_inputs_are_the_graphs_own_and_each_stands_once(system: System, row: Row) -> None:
    check(system, row)


def test_the_largest_float16_arrives(system: System) -> None:
    document = system.ended(system.submit("halves", [65_504, -65_504, 65_519, 6e-8]))
    assert document["result"]["y"] == [65_504.0, -65_504.0, 65_504.0, struct.unpack("<e", b"\x01\0")[0]]
