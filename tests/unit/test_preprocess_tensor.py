"""Kind ``tensor`` at the door: strict numbers, exact places, bounded sizes."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import (
    InvalidInputError,
    MalformedError,
    PayloadTooLargeError,
    PenstockError,
    SetupError,
    UnsupportedMediaTypeError,
)
from jobs.models import Limits, ModelConfig, StageConfig
from jobs.payload import TENSORS, Payload
from jobs.tensors import DTYPES, Tensors
from preprocess.kinds import Kind, check, kind
from tests.unit.graphs import record_of

OCTETS = "application/octet-stream"


def one(dtype: str = "float32", *dims: int | None, limits: Limits | None = None) -> Kind:
    """The kind of a model with one input ``x`` of rows of ``dims``."""
    return kind(record_of(("x", dtype, (None, *dims)), config=ModelConfig(limits=limits or Limits())))


def two() -> Kind:
    """The kind of a model with inputs ``a`` (rows, 2) float32 and ``b`` (rows,) int64."""
    return kind(record_of(("a", "float32", (None, 2)), ("b", "int64", (None,))))


def tensors(asked: Kind, payload: Payload) -> Tensors:
    """What the stage makes of a payload."""
    (outcome,) = asked.run([payload])
    assert not isinstance(outcome, PenstockError)
    return outcome


def read(asked: Kind, value: Any) -> Tensors:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return tensors(asked, asked.from_json(raw))


def refusal(asked: Kind, value: Any) -> tuple[str | None, str]:
    """Pointer and text of the refusal of ``value``."""
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    with pytest.raises(InvalidInputError) as caught:
        asked.from_json(raw)
    return caught.value.pointer, caught.value.detail


# --- What is taken ---


def test_one_row_gets_the_row_axis() -> None:
    np.testing.assert_array_equal(read(one("float32", 3), [1, 2.5, -0.0])["x"], np.array([[1, 2.5, -0.0]], "f4"))


def test_rows_keep_their_axis() -> None:
    assert read(one("float32", 2), [[1, 2], [3, 4], [5, 6]])["x"].tolist() == [[1, 2], [3, 4], [5, 6]]


def test_a_row_of_rank_three_is_read_in_c_order() -> None:
    value = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(read(one("int32", 2, 3, 4), value.tolist())["x"], value[np.newaxis])


def test_open_dimensions_take_any_length() -> None:
    assert read(one("int64", None), [7, 8, 9, 10])["x"].shape == (1, 4)


@pytest.mark.parametrize(("value", "shape"), [(5, (1,)), ([5, 6], (2,))])
def test_a_row_may_be_a_single_number(value: Any, shape: tuple[int, ...]) -> None:
    assert read(one("int64"), value)["x"].shape == shape


def test_the_payload_is_canonical_whichever_way_it_was_written() -> None:
    asked = one("float32", 2)
    data = base64.b64encode(struct.pack("<2f", 1, 2)).decode()
    spellings = [
        [1, 2],
        [[1.0, 2e0]],
        {"x": [1, 2]},
        {"x": {"shape": [2], "data": [1, 2]}},
        {"x": {"shape": [1, 2], "dtype": "float32", "base64": data}},
    ]
    payloads = {asked.from_json(json.dumps(value).encode()).data for value in spellings}
    assert payloads == {asked.from_bytes(OCTETS, struct.pack("<2f", 1, 2)).data}


def test_raw_of_msgspec_and_blanks_before_the_value_are_read() -> None:
    asked = one("float32", 2)
    expected = Payload(TENSORS, asked.from_json(b"[1,2]").data)
    assert asked.from_json(msgspec.Raw(b"[1,2]")) == expected
    assert asked.from_json(b"\n [ 1 , 2 ] ") == expected


def test_many_inputs_are_taken_by_name() -> None:
    item = read(two(), {"b": [7, 8], "a": [[1, 2], [3, 4]]})
    assert {name: array.tolist() for name, array in item.items()} == {"a": [[1, 2], [3, 4]], "b": [7, 8]}


@pytest.mark.parametrize("name", [name for name in DTYPES if "int" in name])
def test_integers_reach_both_ends_exactly(name: str) -> None:
    bounds = np.iinfo(name)
    got = read(one(name, 2), [int(bounds.min), int(bounds.max)])["x"]
    assert (got.dtype.name, got.tolist()) == (name, [[int(bounds.min), int(bounds.max)]])


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=4, max_size=4))
def test_float32_numbers_survive_to_the_bit(values: list[float]) -> None:
    got = read(one("float32", 4), json.dumps(values).encode())["x"]
    assert got.tobytes() == np.array(values, "f4").tobytes()


@given(st.lists(st.floats(min_value=-65504, max_value=65504), min_size=3, max_size=3))
def test_floats_are_rounded_as_numpy_rounds(values: list[float]) -> None:
    for name in ("float16", "float32", "float64"):
        got = read(one(name, 3), json.dumps(values).encode())["x"]
        assert got.tobytes() == np.array([values], name).tobytes()


def test_an_integer_that_float64_cannot_hold_is_kept_exactly_in_int64() -> None:
    assert read(one("int64", 1), [2**53 + 1])["x"].tolist() == [[2**53 + 1]]


def test_bools_are_bools() -> None:
    assert read(one("bool", 2), [True, False])["x"].tolist() == [[True, False]]


# --- What is refused, and where ---


@pytest.mark.parametrize(
    ("value", "pointer"),
    [
        (b"[1, true, 3]", "/input/1"),
        (b'[1, "2", 3]', "/input/1"),
        (b"[1, null, 3]", "/input/1"),
        (b"[1, [2], 3]", "/input/1"),
        (b"[1, 2, {}]", "/input/2"),
        (b"[1, 1e999, 3]", "/input/1"),
        (b"[1, 1e39, 3]", "/input/1"),
        (b"[[1, 2, 3], [4, 5, -1e300]]", "/input/1/2"),
        (b"[[1, 2, 3], [4, 5]]", "/input/1"),
        (b"[[1, 2, 3], 4]", "/input/1"),
        (b"[1, 2]", "/input"),
        (b"[1, 2, 3, 4]", "/input"),
        (b"[]", "/input"),
        (b"[[]]", "/input/0"),
        (b"[[[1, 2, 3]]]", "/input"),
        (b"3", "/input"),
        (b'"abc"', "/input"),
        (b"null", "/input"),
    ],
)
def test_a_wrong_number_or_shape_is_pointed_at(value: bytes, pointer: str) -> None:
    assert refusal(one("float32", 3), value)[0] == pointer


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("uint8", 300),
        ("uint8", -1),
        ("int8", 128),
        ("uint64", 2**64),
        ("uint64", -1),
        ("int64", 2**63),
        ("int64", 10**4000),
        ("float16", 65520),
        ("float32", 3.5e38),
    ],
)
def test_what_the_dtype_cannot_hold_is_refused(dtype: str, value: float) -> None:
    pointer, detail = refusal(one(dtype, 2), f"[0, {value}]".encode())
    assert pointer == "/input/1"
    assert dtype in detail


@pytest.mark.parametrize("value", [b"[1.0]", b"[1.5]", b"[true]", b"[1e2]"])
def test_integers_are_written_as_integers(value: bytes) -> None:
    assert refusal(one("int32", 1), value)[0] == "/input/0"


def test_a_wrong_shape_says_what_would_be_right() -> None:
    _, detail = refusal(one("float32", 2, None), [[1, 2], [3, 4], [5, 6]])
    assert "expected float32 of shape [2, any] or [rows, 2, any] with 1 to 16 rows" in detail


def test_more_rows_than_allowed_are_refused() -> None:
    assert "got 3 rows" in refusal(one("float32", None, limits=Limits(rows_max=2)), [[1], [2], [3]])[1]


@pytest.mark.parametrize(
    "value", [b"[NaN]", b"[Infinity]", b"[1,]", b"[1", b"", b"[1] 2", b"\xff", b'{"x": [1}', b'{"\xff": 1}']
)
def test_what_is_not_json_is_malformed(value: bytes) -> None:
    with pytest.raises((MalformedError, InvalidInputError)):
        one("float32", 1).from_json(value)


@pytest.mark.parametrize("value", [b"[" * 100_000, b'{"x":' * 100_000, b'{"x":' + b"[" * 100_000])
def test_deep_nesting_is_refused_without_harm(value: bytes) -> None:
    with pytest.raises((MalformedError, InvalidInputError)):
        one("float32", 1).from_json(value)


@pytest.mark.parametrize(
    ("value", "pointer", "says"),
    [
        ({"a": [1, 2]}, "/input", "b missing"),
        ({"a": [1, 2], "b": 1, "c": 1}, "/input/c", "no such input"),
        ({"a": [1, 2], "b": 1, "x/~y": 1}, "/input/x~1~0y", "no such input"),
        (b'{"a": [1, 2], "b": 1, "b": 2}', "/input", "given twice"),
        (b'{"a": [1, 2], "\\u0061": [1, 2], "b": 1}', "/input", "given twice"),
        ({"a": [[1, 2], [3, 4]], "b": [1]}, "/input", "differ in rows"),
        ({"a": [[1, 2], [3, True]], "b": [1, 2]}, "/input/a/1/1", "expected a number"),
        ([1, 2], "/input", "object"),
    ],
)
def test_inputs_by_name_are_exactly_the_graphs_own(value: Any, pointer: str, says: str) -> None:
    got, detail = refusal(two(), value)
    assert got == pointer
    assert says in detail


def test_a_million_fields_are_refused_unread() -> None:
    fields = {f"k{number}": 1 for number in range(1_000_000)}
    pointer, detail = refusal(two(), fields)
    assert pointer == "/input"
    assert detail.startswith("more fields than there are inputs")


def test_a_shape_of_a_million_dimensions_is_refused_unread() -> None:
    pointer, detail = refusal(one("float32", 2), {"x": {"shape": [1] * 1_000_000, "data": [1, 2]}})
    assert pointer == "/input/x/shape"
    assert detail == "the shape is longer than that of any graph"


@pytest.mark.parametrize(
    ("value", "pointer"),
    [
        ({"shape": [2], "data": [1, 2, 3]}, "/input/x/data"),
        ({"shape": [3], "data": [1, 2, 3]}, "/input/x"),
        ({"shape": [2**31, 2**31], "data": [1]}, "/input/x"),
        ({"shape": [1] * 40, "data": [1]}, "/input/x"),
        ({"shape": [0, 2], "data": []}, "/input/x"),
        ({"shape": [-1, 2], "data": []}, "/input/x"),
        ({"shape": [2], "data": [1, True]}, "/input/x/data/1"),
        ({"shape": [2], "data": [1, 1e39]}, "/input/x/data/1"),
        ({"shape": [2], "dtype": "float64", "data": [1, 2]}, "/input/x/dtype"),
        ({"shape": [2], "base64": "!!!!"}, "/input/x/base64"),
        ({"shape": [2], "base64": "AAAA"}, "/input/x/base64"),
        ({"shape": [2]}, "/input/x"),
        ({"shape": [2], "data": [1, 2], "base64": ""}, "/input/x"),
        ({"shape": [2], "data": [1, 2], "strides": [4]}, "/input/x"),
    ],
)
def test_a_described_tensor_must_add_up(value: Any, pointer: str) -> None:
    assert refusal(one("float32", 2), {"x": value})[0] == pointer


def test_bytes_of_bools_are_zero_or_one() -> None:
    assert one("bool", 2).from_bytes(OCTETS, b"\0\1")
    with pytest.raises(InvalidInputError):
        one("bool", 2).from_bytes(OCTETS, b"\0\2")


# --- Sizes and media types ---


def test_too_many_numbers_are_refused_before_they_are_decoded() -> None:
    asked = one("float32", None, limits=Limits(input_bytes_max=16))
    with pytest.raises(PayloadTooLargeError):
        asked.from_json(b"[1, 2, 3, 4, this is not even json")


def test_a_list_of_exactly_the_limit_is_taken() -> None:
    assert read(one("float32", None, limits=Limits(input_bytes_max=16)), [1, 2, 3, 4])["x"].shape == (1, 4)


@pytest.mark.parametrize("size", [0, 1, 7, 9, 8 * 17])
def test_raw_bytes_are_whole_rows(size: int) -> None:
    with pytest.raises(InvalidInputError, match="expected 8"):
        one("float32", 2).from_bytes(OCTETS, b"\0" * size)


def test_raw_bytes_over_the_limit_are_too_large() -> None:
    with pytest.raises(PayloadTooLargeError):
        one("float32", 2, limits=Limits(input_bytes_max=8)).from_bytes(OCTETS, b"\0" * 16)


def test_raw_bytes_are_little_endian_rows_in_c_order() -> None:
    asked = one("int16", 2)
    assert tensors(asked, asked.from_bytes(OCTETS, b"\1\0\2\0\3\0\0\1"))["x"].tolist() == [[1, 2], [3, 256]]


def test_raw_bytes_need_one_input_of_fixed_dimensions() -> None:
    assert one("float32", 2).media_types == {OCTETS}
    for asked in (one("float32", None), two()):
        assert asked.media_types == frozenset()
        with pytest.raises(UnsupportedMediaTypeError):
            asked.from_bytes(OCTETS, b"\0" * 8)


# --- The stage, and what a model may say ---


def test_a_bad_payload_does_not_sink_its_companions() -> None:
    asked = one("float32", 2)
    good = asked.from_json(b"[1, 2]")
    outcomes = asked.run([good, Payload(TENSORS, b"junk"), Payload("image/png", b""), good])
    assert [isinstance(each, InvalidInputError) for each in outcomes] == [False, True, True, False]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (StageConfig("tensors"), "preprocess.kind: 'tensors' is not known"),
        (StageConfig("tensor", {"size": 1}), "known keys: none"),
    ],
)
def test_a_wrong_stage_is_a_setup_error(config: StageConfig, says: str) -> None:
    with pytest.raises(SetupError) as caught:
        check(config)
    assert says in str(caught.value)
