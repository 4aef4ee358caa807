"""Kind ``inputs``: parts of different kinds make one item, and an error in one is that item's alone."""

from __future__ import annotations

import base64
import io
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from PIL import Image

from inference.session import Session
from jobs.errors import (
    InvalidInputError,
    MalformedError,
    ModelError,
    PayloadTooLargeError,
    PenstockError,
    SetupError,
    UnsupportedMediaTypeError,
)
from jobs.models import Limits, ModelConfig, ModelRecord, StageConfig
from jobs.options import Registry
from jobs.payload import PARTS, Payload
from jobs.tensors import Tensors, pack_item
from preprocess.inputs import InputsOf
from preprocess.kinds import Kind, kind
from tests.unit.graphs import graph, place, record_of

PICTURE = {"kind": "image", "options": {"resize": [32, 32]}, "feeds": ["pixels"]}
NUMBERS = {"kind": "tensor", "feeds": ["x"]}
SIGNATURE = (("pixels", "float32", (None, 3, 32, 32)), ("x", "float32", (None, 2)))


def record(limits: Limits | None = None, **parts: Any) -> ModelRecord:
    """A record of the graph with a picture and numbers, and these parts."""
    config = ModelConfig(preprocess=StageConfig("inputs", {"inputs": parts}), limits=limits or Limits())
    return record_of(*SIGNATURE, config=config)


def both(limits: Limits | None = None) -> Kind:
    return kind(record(limits, picture=PICTURE, numbers=NUMBERS))


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (40, 20)) -> dict[str, str]:
    """A picture of one colour, as JSON takes it: its size does not change its mean."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return {"base64": base64.b64encode(buffer.getvalue()).decode()}


def read(asked: Kind, value: Any) -> Payload:
    return asked.from_json(value if isinstance(value, bytes) else json.dumps(value).encode())


def payload_of(**parts: tuple[str, bytes]) -> Payload:
    """A stored input, packed by hand."""
    return Payload(PARTS, msgspec.msgpack.encode(parts))


PART = {"picture": picture((10, 20, 60))}
GOOD = {**PART, "numbers": [1, 2]}
PNG = base64.b64decode(PART["picture"]["base64"])


def test_a_picture_and_numbers_reach_the_inputs_that_they_feed(tmp_path: Path) -> None:
    """Y = (mean of the pixels, x): the graph tells which part arrived where."""
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3]),
        helper.make_node("Flatten", ["mean"], ["column"]),
        helper.make_node("Concat", ["column", "x"], ["y"], axis=1),
    ]
    model = graph(nodes, {"pixels": ["rows", 3, 32, 32], "x": ["rows", 2]}, {"y": ["rows", 3]})
    session = Session.open(place(tmp_path, model) / "model.onnx", threads=1)
    asked = both()

    payloads = [
        read(asked, {"picture": picture((10, 20, 60)), "numbers": [1, 2]}),
        read(asked, {"numbers": [[3, 4]], "picture": picture((0, 0, 9), (5, 90))}),
    ]
    items = asked.run(payloads)

    outputs = [session.run(item)["y"].tolist() for item in items if isinstance(item, dict)]
    assert outputs == [[[30, 1, 2]], [[3, 3, 4]]]


def test_equal_inputs_have_equal_payloads_however_they_and_the_parts_are_ordered() -> None:
    turned = kind(record(numbers=NUMBERS, picture=PICTURE))
    spaced = b' { "numbers" : [ 1.0 , 2e0 ] , "picture" : ' + json.dumps(PART["picture"]).encode() + b" } "
    payloads = {
        (each.media_type, each.data) for each in (read(both(), GOOD), read(turned, GOOD), read(both(), spaced))
    }
    assert len(payloads) == 1
    assert {media_type for media_type, _ in payloads} == {PARTS}


def test_a_part_feeds_the_input_of_its_name_where_it_names_none() -> None:
    asked = kind(record(pixels={"kind": "image", "options": {"resize": [32, 32]}}, x={}))
    (item,) = asked.run([read(asked, {"pixels": PART["picture"], "x": [5, 6]})])
    assert isinstance(item, dict)
    assert item["x"].tolist() == [[5, 6]]


def test_a_part_may_feed_several_inputs() -> None:
    config = ModelConfig(preprocess=StageConfig("inputs", {"inputs": {"all": {"feeds": ["a", "b"]}}}))
    asked = kind(record_of(("a", "float32", (None, 1)), ("b", "int64", (None,)), config=config))
    (item,) = asked.run([read(asked, {"all": {"a": [[1], [2]], "b": [3, 4]}})])
    assert isinstance(item, dict)
    assert {name: array.tolist() for name, array in item.items()} == {"a": [[1], [2]], "b": [3, 4]}


def test_the_parts_in_the_documentation_are_understood() -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text().split("**inputs**")[1]
    config = msgspec.convert(tomllib.loads(page.split("```toml")[1].split("```")[0]), ModelConfig)
    assert kind(record_of(*SIGNATURE, config=config)).from_json(json.dumps(GOOD).encode()) == STORED


# --- The door ---


@pytest.mark.parametrize(
    ("value", "pointer", "words"),
    [
        ([1, 2], "/input", "an object with one value for each part"),
        ("text", "/input", "an object with one value for each part"),
        ({"numbers": [1, 2]}, "/input", "picture missing; the parts of an input: numbers, picture"),
        ({}, "/input", "numbers, picture missing"),
        ({**GOOD, "a/b~": 1}, "/input/a~1b~0", "no such part"),
        ({**GOOD, "x`y": 1}, "/input/x`y", "no such part"),
        ({**GOOD, "n" * 500: 1}, "/input/" + "n" * 64, "no such part"),
        ({**GOOD, "numbers": [1, "2"]}, "/input/numbers/1", "expected a number"),
        ({**GOOD, "numbers": [1, 2, 3]}, "/input/numbers", "shape"),
        ({**GOOD, "numbers": {"y": [1, 2]}}, "/input/numbers/y", "no such input"),
        ({**GOOD, "picture": {"base64": "?"}}, "/input/picture/base64", "not base64"),
        ({**GOOD, "picture": {"base64": "aGk="}}, "/input/picture/base64", "not an image"),
        ({**GOOD, "picture": 5}, "/input/picture", "base64"),
        (b'{"numbers": [1, 2], "numbers": [1, 2], "picture": 1}', "/input", "given twice"),
        (b'{"numbers": [1, 2], "num\\u0062ers": [3, 4], "picture": 1}', "/input", "given twice"),
    ],
)
def test_a_wrong_input_is_refused_where_it_is_wrong(value: Any, pointer: str, words: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read(both(), value)
    assert (caught.value.pointer, words in caught.value.detail) == (pointer, True), caught.value.detail


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"numbers": [01]}', b'{"numbers" [1]}', b'{"numbers":' + b"[" * 100_000]
)
def test_what_is_not_json_is_malformed(text: bytes) -> None:
    with pytest.raises(MalformedError):
        read(both(), text)


def test_a_name_of_a_part_is_escaped_in_a_pointer() -> None:
    with pytest.raises(InvalidInputError) as caught:
        read(kind(record(None, **{"picture": PICTURE, "a/b": NUMBERS})), {**PART, "a/b": [1, "2"]})
    assert caught.value.pointer == "/input/a~1b/1"


def test_the_limit_of_bytes_bounds_the_sum_of_the_parts() -> None:
    sizes = [len(PNG), len(pack_item({"x": np.zeros((1, 2), "f4")}))]
    most = sum(sizes)
    assert read(both(Limits(input_bytes_max=most)), GOOD)
    with pytest.raises(PayloadTooLargeError, match=f"{most} bytes; this model takes up to {most - 1}"):
        read(both(Limits(input_bytes_max=most - 1)), GOOD)


def test_raw_bodies_are_not_taken() -> None:
    assert both().media_types == frozenset()
    with pytest.raises(UnsupportedMediaTypeError, match="application/json"):
        both().from_bytes("image/png", b"")


# --- The stage ---


@pytest.mark.parametrize("bad", range(3))
def test_a_part_that_fails_sinks_its_item_alone(bad: int) -> None:
    asked = both()
    payloads = [read(asked, {**GOOD, "numbers": [n, n]}) for n in range(3)]
    torn = PNG[:60]
    numbers = pack_item({"x": np.zeros((1, 2), np.float32)})
    payloads[bad] = payload_of(picture=("image/png", torn), numbers=("application/vnd.penstock.tensors", numbers))

    items = asked.run(payloads)

    error = items[bad]
    assert isinstance(error, InvalidInputError)
    assert error.detail.startswith("picture: the image is damaged")
    assert error.pointer == "/input/picture"
    assert [item["x"].tolist() for item in items if isinstance(item, dict)] == [
        [[n, n]] for n in range(3) if n != bad
    ]


def test_parts_of_unequal_rows_are_refused_and_not_repeated_to_fit() -> None:
    asked = both()
    items = asked.run([read(asked, {**GOOD, "numbers": rows}) for rows in ([[1, 2], [3, 4]], [[1, 2]])])
    assert isinstance(items[0], InvalidInputError)
    assert "(numbers 2, picture 1)" in items[0].detail
    assert isinstance(items[1], dict)


STORED = read(both(), GOOD)


@pytest.mark.parametrize(
    "payload",
    [
        Payload(PARTS, b""),
        Payload(PARTS, b"\xc1"),
        Payload(PARTS, STORED.data[:-1]),
        Payload(PARTS, STORED.data + b"\0"),
        Payload(PARTS, b"\x91" * 100_000),
        Payload(PARTS, b"\xdf\xff\xff\xff\xff"),
        Payload("image/png", STORED.data),
        payload_of(numbers=("a", b"")),
        payload_of(numbers=("a", b""), picture=("b", b""), more=("c", b"")),
        payload_of(numbers=("a", b""), picture=("b", b"")),
        payload_of(numbers=("application/vnd.penstock.tensors", b"junk"), picture=("image/png", b"")),
    ],
)
def test_a_stored_input_that_cannot_be_read_is_an_error_of_its_own(payload: Payload) -> None:
    first, second = both().run([payload, STORED])
    assert isinstance(first, InvalidInputError)
    assert isinstance(second, dict)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"other": np.zeros((1, 2), np.float32)},
        {"x": np.zeros((1, 2), np.float32), "pixels": np.zeros((1, 2), np.float32)},
        {"x": np.zeros((), np.float32)},
    ],
)
def test_stored_tensors_of_other_inputs_are_refused(arrays: Tensors) -> None:
    packed = ("application/vnd.penstock.tensors", pack_item(arrays))
    first, second = both().run([payload_of(numbers=packed, picture=("image/png", PNG)), STORED])
    assert isinstance(first, InvalidInputError)
    assert isinstance(second, dict)


@given(st.data())
def test_no_change_of_a_stored_input_reaches_its_companion(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(STORED.data) - 1))
    torn = STORED.data[:at] + data.draw(st.binary(max_size=3)) + STORED.data[at + data.draw(st.integers(0, 3)) :]
    first, second = both().run([Payload(PARTS, torn), STORED])
    assert isinstance(first, PenstockError) or {"pixels", "x"} == first.keys()
    assert isinstance(second, dict)


class Counting:
    """A kind that notes what it was made and run with; the input 0 is an error that its items share."""

    class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """None."""

    made: list[tuple[list[str], Path | None]]
    runs: list[int]
    SHARED = ModelError("zero")

    def __init__(self, own: ModelRecord, _: Options, folder: Path | None) -> None:
        self._names = [spec.name for spec in own.signature.inputs]
        self.made.append((self._names, folder))

    def from_json(self, raw: bytes | msgspec.Raw) -> Payload:
        return Payload("n", bytes(raw))

    def run(self, payloads: Sequence[Payload]) -> list[Any]:
        self.runs.append(len(payloads))
        return [self._one(int(each.data)) for each in payloads]

    def _one(self, value: int) -> Any:
        return dict.fromkeys(self._names, np.full((1, 1), value)) if value else self.SHARED


@pytest.fixture
def counting() -> type[Counting]:
    return type("Fresh", (Counting,), {"made": [], "runs": []})


def _counted(counting: type[Counting], folder: Path | None = None) -> Kind:
    parts = {"a": {"kind": "counting", "feeds": ["x"]}, "b": {"kind": "counting", "feeds": ["pixels"]}}
    made: Kind = InputsOf(Registry("preprocess", counting=counting))(record(), InputsOf.Options(inputs=parts), folder)
    return made


def test_each_part_runs_once_for_all_items_and_not_for_those_that_failed_before(counting: type[Counting]) -> None:
    asked = _counted(counting)
    items = asked.run([read(asked, {"a": a, "b": 7}) for a in (1, 0, 3, 0)] + [Payload(PARTS, b"")])
    assert counting.runs == [4, 2]
    assert [type(item).__name__ for item in items] == [
        "dict",
        "ModelError",
        "dict",
        "ModelError",
        "InvalidInputError",
    ]


def test_an_error_that_several_items_share_names_the_part_once(counting: type[Counting]) -> None:
    asked = _counted(counting)
    items = asked.run([read(asked, {"a": 0, "b": 7})] * 2)
    assert [item.detail for item in items if isinstance(item, PenstockError)] == ["a: zero"] * 2
    assert counting.SHARED.detail == "zero"


def test_a_part_knows_its_own_inputs_and_the_versions_folder(counting: type[Counting], tmp_path: Path) -> None:
    _counted(counting, tmp_path)
    assert counting.made == [(["x"], tmp_path), (["pixels"], tmp_path)]


# --- What an operator may write ---


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, "preprocess.options.inputs"),
        ({"picture": PICTURE}, "preprocess.options.inputs: no part feeds the graph's input x;"),
        ({"picture": PICTURE, "n": {}}, "options.inputs.n.feeds: missing, and the graph has no input n; name some"),
        ({"picture": PICTURE, "n": {"feeds": ["z"]}}, "inputs.n.feeds: the graph has no input z; it has pixels, x"),
        ({"picture": PICTURE, "n": NUMBERS, "x": {}}, "inputs.n.feeds: x is fed 2 times; feed each input once"),
        ({"picture": PICTURE, "n": {"feeds": ["x", "x"]}}, "inputs.n.feeds: x is fed 2 times"),
        ({"picture": PICTURE, 'q"': NUMBERS}, "is not a part's name; use 1 to 64 of"),
        ({"picture": PICTURE, "": NUMBERS}, "is not a part's name"),
        ({"picture": PICTURE, "n": {**NUMBERS, "kind": "inputs"}}, "inputs.n.kind: 'inputs' is not known; use one"),
        ({"picture": PICTURE, "n": {**NUMBERS, "extra": 1}}, "inputs.n: Object contains unknown field `extra`;"),
        ({"picture": PICTURE, "n": {"feeds": "x"}}, "inputs.n.feeds: Expected `array`, got `str`"),
        ({"picture": PICTURE, "n": 3}, "preprocess.options.inputs"),
        (
            {"n": NUMBERS, "picture": {**PICTURE, "options": {"resize": [32, 32], "layout": "flat"}}},
            "preprocess.options.inputs.picture.options.layout: flat has 2 axes",
        ),
        (
            {"n": NUMBERS, "picture": {**PICTURE, "options": {"size": 3}}},
            "preprocess.options.inputs.picture.options: Object contains unknown field `size`; known keys: mode",
        ),
        ({"n": {"kind": "image", "feeds": ["pixels", "x"]}}, "inputs.n.kind: image needs a graph with one"),
    ],
)  # fmt: skip
def test_parts_that_cannot_work_are_named_with_their_key_and_a_remedy(parts: Any, words: str) -> None:
    with pytest.raises(SetupError) as caught:
        kind(record(**parts))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
