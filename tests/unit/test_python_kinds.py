"""Kind ``python`` of both sides: what a user's function is handed, and what becomes of what it gives."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest

import postprocess.kinds
import preprocess.kinds
from jobs import steps
from jobs.commands import Taken
from jobs.errors import (
    InternalError,
    InvalidInputError,
    MalformedError,
    ModelError,
    PayloadTooLargeError,
    PenstockError,
    SetupError,
    UnsupportedMediaTypeError,
)
from jobs.models import Limits, ModelConfig, ModelRecord, StageConfig
from jobs.payload import JSON, Payload
from jobs.tensors import Tensors
from tasks import stages
from tests.unit.graphs import record_of

SPECS = (("x", "float32", (None, 2)), ("n", "int8", (None,)))
GOOD: Tensors = {"x": np.array([[1, 2]], np.float32), "n": np.array([3], np.int8)}


def record(**given: Any) -> ModelRecord:
    limits = given.pop("limits", Limits())
    config = ModelConfig(preprocess=StageConfig("python", given), postprocess=StageConfig("python"), limits=limits)
    return record_of(*SPECS, config=config)


def door(**given: Any) -> preprocess.kinds.Kind:
    """The kind as a gateway has it."""
    return preprocess.kinds.kind(record(**given))


@pytest.fixture
def steps_are(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Put a function of the test in the place of the user's."""

    def put(function: Any) -> None:
        monkeypatch.setattr(steps, "load", lambda *_: function)

    return put


StepsAre = Callable[[Any], None]


def made(payloads: list[Payload], **given: Any) -> list[Any]:
    """What the worker's kind makes of them, with the bisecting of the stage around it."""
    asked = preprocess.kinds.kind(record(**given), Path())
    taken = cast("Taken", SimpleNamespace(stage="preprocess", number="1"))
    return list(stages._results(asked.run, taken, list(payloads)))


def of_json(*values: Any) -> list[Payload]:
    return [Payload(JSON, json.dumps(value).encode()) for value in values]


# --- The door ---


@pytest.mark.parametrize("text", [b"[1, 2]", b' {"a": "\xc3\xa9"} ', b"null", b'"text"', b"1e5"])
def test_json_is_stored_as_it_came(text: bytes) -> None:
    assert door().from_json(text) == Payload(JSON, text)


@pytest.mark.parametrize("text", [b"", b"[1", b"[01]", b"[1] 2", b"nul", b'"\xff"', b"[" * 100_000 + b"]" * 100_000])
def test_what_is_not_json_is_refused_at_the_door(text: bytes) -> None:
    with pytest.raises(MalformedError):
        door().from_json(text)


@pytest.mark.parametrize(
    "text", [b"[" + b"[]," * 99 + b"[]]", b'{"a":' * 100 + b"1" + b"}" * 100, b"[" + b"1," * 99 + b"1]"]
)
def test_the_values_of_an_input_are_bounded(text: bytes) -> None:
    assert door(values_max=201).from_json(text)
    with pytest.raises(PayloadTooLargeError, match="this model takes up to 100"):
        door(values_max=100).from_json(text)


def test_the_bytes_of_an_input_are_bounded() -> None:
    asked = door(limits=Limits(input_bytes_max=4), media_types=["audio/midi"])
    assert asked.from_json(b"1234").data == asked.from_bytes("audio/midi", b"1234").data
    with pytest.raises(PayloadTooLargeError):
        asked.from_json(b"12345")
    with pytest.raises(PayloadTooLargeError):
        asked.from_bytes("audio/midi", b"12345")


def test_raw_bodies_of_the_named_media_types_are_taken() -> None:
    asked = door(media_types=["audio/midi"])
    assert asked.media_types == {"audio/midi"}
    assert asked.from_bytes("audio/midi", b"\xff") == Payload("audio/midi", b"\xff")
    with pytest.raises(UnsupportedMediaTypeError, match="application/json, audio/midi"):
        asked.from_bytes("audio/mpeg", b"")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"media_types": ["application/json"]}, "preprocess.options.media_types: application/json is always taken"),
        ({"media_types": ["Audio/MIDI"]}, "preprocess.options.media_types"),
        ({"media_types": ["audio/midi; q=1"]}, "preprocess.options.media_types"),
        ({"values_max": 0}, "preprocess.options.values_max"),
        ({"module": "x"}, "unknown field `module`; known keys: file, function, entry_point, parameters, media_types"),
    ],
)
def test_options_that_are_not_its_own_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SetupError) as caught:
        door(**given)
    assert words in str(caught.value)


def test_a_gateway_never_loads_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "load", lambda *_: pytest.fail("it was loaded"))
    asked = door()
    with pytest.raises(RuntimeError, match="a gateway runs no steps"):
        asked.run(of_json(1))
    with pytest.raises(RuntimeError, match="a gateway runs no steps"):
        postprocess.kinds.kind(record()).run([GOOD])


# --- Preprocess ---


def test_a_step_from_a_file_gets_values_bytes_and_parameters(tmp_path: Path) -> None:
    folder = tmp_path / "toy" / "1"
    folder.mkdir(parents=True)
    (folder.parent / "steps.py").write_text(
        "import numpy as np\n"
        "def preprocess(inputs, parameters):\n"
        "    sizes = [len(each) * parameters['factor'] for each in inputs]\n"
        "    types = [1 if isinstance(each, bytes) else 2 for each in inputs]\n"
        "    return [{'x': np.array([[a, b]], 'f4'), 'n': np.array([b], 'i1')} for a, b in zip(sizes, types)]\n"
    )
    given = record(media_types=["audio/midi"], parameters={"factor": 10})
    items = preprocess.kinds.kind(given, folder).run([Payload("audio/midi", b"\xff"), *of_json({"a": 1, "b": 2})])
    assert [item["x"].tolist() for item in items if isinstance(item, dict)] == [[[10, 1]], [[20, 2]]]


def test_inputs_that_cannot_be_read_never_reach_the_step(steps_are: StepsAre) -> None:
    seen: list[Any] = []

    def step(inputs: list[Any], _: Any) -> list[Any]:
        seen.extend(inputs)
        return [GOOD] * len(inputs)

    steps_are(step)
    broken = [Payload(JSON, b"["), Payload(JSON, b'"\xff"'), Payload(JSON, b"[" * 100_000), Payload("a/b", b"")]
    items = made([*of_json(1), *broken, *of_json(2)])
    assert seen == [1, 2]
    assert [isinstance(item, InvalidInputError) for item in items] == [False, True, True, True, True, False]


def _picky(inputs: list[Any], _: Any) -> list[Any]:
    if "raise" in inputs:
        raise ValueError("no such year")
    if "die" in inputs:
        raise KeyError("secret")
    return [ValueError("no such month") if each == "give" else GOOD for each in inputs]


@pytest.mark.parametrize(
    ("bad", "kind", "detail"),
    [
        ("raise", InvalidInputError, "no such year"),
        ("give", InvalidInputError, "no such month"),
        ("die", InternalError, "The stage preprocess failed."),
    ],
)
@pytest.mark.parametrize("place", range(3))
def test_an_item_that_the_step_refuses_leaves_its_companions_alone(
    steps_are: StepsAre, bad: str, kind: type, detail: str, place: int
) -> None:
    steps_are(_picky)
    items = made(of_json(*[bad if index == place else index for index in range(3)]))
    error = items.pop(place)
    assert (type(error), error.detail) == (kind, detail)
    assert all(isinstance(item, dict) for item in items)


def _with(**arrays: Any) -> Any:
    return {**GOOD, **arrays}


@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        (None, ModelError, "a dict with an array for each input of the graph: x, n"),
        ({"x": GOOD["x"]}, ModelError, "x, n"),
        (_with(y=GOOD["x"]), ModelError, "x, n"),
        (_with(x=[[1, 2]]), ModelError, "no array for x"),
        (_with(x=np.zeros((1, 3), "f4")), ModelError, "x of shape [1, 3]; the graph takes [rows, 2]"),
        (_with(x=np.zeros((1, 1, 2), "f4")), ModelError, "x of shape [1, 1, 2]"),
        (_with(x=np.zeros((), "f4")), ModelError, "x of shape []"),
        (_with(x=np.zeros((2, 2), "f4")), ModelError, "differ in rows (x 2, n 1)"),
        (_with(x=np.array([["a", "b"]])), ModelError, "x as str"),
        (_with(x=np.array([[None, 1]])), ModelError, "x as object"),
        (_with(x=np.zeros((1, 2), "c8")), ModelError, "x as complex64; the graph takes float32"),
        (_with(n=np.array([1.0])), ModelError, "n as float64; the graph takes int8"),
        (_with(n=np.array([128])), ModelError, "numbers for n that int8 cannot hold"),
        (_with(x=np.array([[1e300, 0]])), ModelError, "numbers for x that float32 cannot hold"),
        ({"x": np.zeros((0, 2), "f4"), "n": np.zeros(0, "i1")}, InvalidInputError, "0 rows; this model takes 1 to"),
        ({"x": np.zeros((17, 2), "f4"), "n": np.zeros(17, "i1")}, InvalidInputError, "17 rows"),
    ],
)  # fmt: skip
def test_arrays_that_are_not_the_graphs_are_refused(
    steps_are: StepsAre, result: Any, kind: type[PenstockError], words: str
) -> None:
    steps_are(lambda inputs, _: [result if each == "bad" else GOOD for each in inputs])
    first, second = made(of_json("bad", "good"))
    assert isinstance(first, kind)
    assert words in first.detail
    assert isinstance(second, dict)


@pytest.mark.parametrize(
    ("arrays", "x", "n"),
    [
        (GOOD, [[1, 2]], [3]),
        ({"x": np.array([1, 2]), "n": np.array(3)}, [[1, 2]], [3]),
        ({"x": np.array([[1, 2]], ">f8"), "n": np.array([-128])}, [[1, 2]], [-128]),
        ({"x": np.array([[True, False]]), "n": np.array([127], np.uint8)}, [[1, 0]], [127]),
        ({"x": np.arange(8, dtype=np.int16).reshape(2, 4)[:, ::2], "n": np.array([1, 2])}, [[0, 2], [4, 6]], [1, 2]),
    ],
)  # fmt: skip
def test_arrays_are_cast_to_the_graphs_dtypes_where_nothing_is_lost(
    steps_are: StepsAre, arrays: Any, x: Any, n: Any
) -> None:
    steps_are(lambda *_: [arrays])
    (item,) = made(of_json(0))
    assert {name: (array.dtype.str, array.tolist()) for name, array in item.items()} == {
        "x": ("<f4", x),
        "n": ("|i1", n),
    }


def test_infinity_is_a_number_of_its_own(steps_are: StepsAre) -> None:
    steps_are(lambda *_: [_with(x=np.array([[math.inf, math.nan]]))])
    (item,) = made(of_json(0))
    np.testing.assert_array_equal(item["x"], [[math.inf, math.nan]])


@pytest.mark.parametrize("results", [None, [], [GOOD, GOOD], GOOD, iter([GOOD])])
def test_as_many_results_as_inputs_are_expected(steps_are: StepsAre, results: Any) -> None:
    steps_are(lambda *_: results)
    (outcome,) = made(of_json(0))
    assert isinstance(outcome, ModelError)
    assert "a list with one result for each input" in outcome.detail


def test_a_step_may_be_a_part_of_inputs(steps_are: StepsAre) -> None:
    def step(inputs: list[Any], parameters: dict[str, Any]) -> list[Any]:
        return [{"n": np.array([each * parameters["factor"]])} for each in inputs]

    steps_are(step)
    parts = {
        "x": {"kind": "tensor"},
        "count": {"kind": "python", "feeds": ["n"], "options": {"parameters": {"factor": 2}}},
    }
    config = ModelConfig(preprocess=StageConfig("inputs", {"inputs": parts}))
    asked = preprocess.kinds.kind(record_of(*SPECS, config=config), Path())
    (item,) = asked.run([asked.from_json(b'{"x": [1, 2], "count": 4}')])
    assert isinstance(item, dict)
    assert {name: array.tolist() for name, array in item.items()} == {"x": [[1, 2]], "n": [8]}


# --- The documentation's example ---


def test_the_step_in_the_documentation_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text().split("## A step of your own")[1]
    source, toml = re.findall(r"```(?:python|toml)\n(.*?)```", page, flags=re.DOTALL)
    folder = tmp_path / "toy" / "1"
    folder.mkdir(parents=True)
    (folder / "steps.py").write_text(source)
    config = msgspec.convert(tomllib.loads(toml), ModelConfig)
    given = record_of(("x", "float32", (None, 2)), outputs=[("y", "float32", (None, 1))], config=config)
    asked = preprocess.kinds.kind(given, folder)

    (item,) = asked.run([asked.from_json(b'{"height": 2, "width": 3}')])
    assert isinstance(item, dict)
    area = {"y": item["x"].prod(axis=1, keepdims=True)}
    assert postprocess.kinds.kind(given, folder).run([area]) == [{"area": 6.0, "unit": "m2"}]


# --- Postprocess ---


def documents(count: int = 1) -> list[Any]:
    """What the worker's kind makes of so many items, with the bisecting of the stage around it."""
    asked = postprocess.kinds.kind(record(), Path())
    taken = cast("Taken", SimpleNamespace(stage="postprocess", number="1"))
    items = [{"y": np.full((1, 1), index, np.float32)} for index in range(count)]
    return list(stages._results(asked.run, taken, items))


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"label": "cat", "score": 0.5}, {"label": "cat", "score": 0.5}),
        ({"score": np.float32(0.5), "at": np.int64(3), "yes": np.True_}, {"score": 0.5, "at": 3, "yes": True}),
        ([np.arange(3), np.ones((1, 2), np.float32)], [[0, 1, 2], [[1, 1]]]),
        ({1: None, "when": dt.date(2026, 1, 2)}, {"1": None, "when": "2026-01-02"}),
        (None, None),
        ("text", "text"),
    ],
)  # fmt: skip
def test_documents_are_what_json_carries_and_numpys_numbers(
    steps_are: StepsAre, document: Any, expected: Any
) -> None:
    steps_are(lambda *_: [document])
    (result,) = documents()
    assert json.loads(json.dumps(result)) == expected


def _ring() -> Any:
    ring: list[Any] = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (math.nan, "NaN or infinity"),
        ({"deep": [[-math.inf]]}, "NaN or infinity"),
        ({"array": np.array([1, np.nan])}, "NaN or infinity"),
        ({"scalar": np.float64(np.inf)}, "NaN or infinity"),
        (object(), "JSON cannot carry"),
        ({"x": "\ud800"}, "JSON cannot carry"),
        ({None: 1}, "JSON cannot carry"),
        (_ring(), "JSON cannot carry"),
        (1 + 2j, "JSON cannot carry"),
        (np.array([1 + 2j]), "JSON cannot carry"),
    ],
)
def test_a_document_that_json_cannot_carry_is_an_error_of_its_item(
    steps_are: StepsAre, document: Any, words: str
) -> None:
    steps_are(lambda outputs, _: [document if each["y"][0, 0] == 1 else "good" for each in outputs])
    first, second, third = documents(3)
    assert (first, third) == ("good", "good")
    assert isinstance(second, ModelError)
    assert words in second.detail


@pytest.mark.parametrize(
    ("error", "kind", "detail"),
    [(ValueError("no text found"), ModelError, "no text found"), (KeyError("secret"), InternalError, "failed.")],
)
@pytest.mark.parametrize("how", ["raise", "give"])
def test_an_error_of_one_document_leaves_the_others_alone(
    steps_are: StepsAre, error: Exception, kind: type, detail: str, how: str
) -> None:
    def step(outputs: list[Any], _: Any) -> list[Any]:
        bad = [each["y"][0, 0] == 1 for each in outputs]
        if any(bad) and how == "raise":
            raise error
        return [error if each else "good" for each in bad]

    steps_are(step)
    first, second, third = documents(3)
    assert (first, third) == ("good", "good")
    assert isinstance(second, PenstockError)
    assert type(second) is kind
    assert second.detail.endswith(detail)


@pytest.mark.parametrize("results", [None, [], [1, 2], "x", {}])
def test_as_many_documents_as_items_are_expected(steps_are: StepsAre, results: Any) -> None:
    steps_are(lambda *_: results)
    (outcome,) = documents()
    assert isinstance(outcome, ModelError)
    assert "a list with one document for each item" in outcome.detail
