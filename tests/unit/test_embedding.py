"""Kind ``embedding``: vectors by item; the reference is a loop over tokens in Python's own numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import ModelError, SetupError
from jobs.models import ModelConfig, StageConfig
from jobs.tensors import Tensors, passed
from postprocess.kinds import Kind, check, kind
from tests.unit.graphs import record_of

MASK = "attention_mask"
WIDTH = 3

Spec = tuple[str, str, tuple[int | None, ...]]
HIDDEN: Spec = ("y", "float32", (None, None, WIDTH))
ROWS: Spec = ("y", "float32", (None, WIDTH))


def made(*outputs: Spec, inputs: tuple[Spec, ...] = ((MASK, "int64", (None, None)),), **options: Any) -> Kind:
    config = ModelConfig(postprocess=StageConfig("embedding", options))
    return kind(record_of(*inputs, outputs=outputs or (HIDDEN,), config=config))


def of_rows(*outputs: Spec, **options: Any) -> Kind:
    """A kind that takes the output as it is."""
    return made(*(outputs or (ROWS,)), pooling="none", **options)


def hidden(values: Any, mask: Any, name: str = MASK) -> Tensors:
    """What the inference stage leaves: the output, and the mask beside it."""
    return {"y": np.array(values, np.float32), passed(name): np.array(mask, np.int64)}


def only(asked: Kind, item: Tensors) -> Any:
    (document,) = asked.run([item])
    return document


def mean_of(values: list[list[float]], mask: list[int]) -> list[float]:
    """The mean of the vectors whose mask is 1."""
    kept = [vector for vector, attended in zip(values, mask, strict=True) if attended]
    return [math.fsum(column) / len(kept) for column in zip(*kept, strict=True)] if kept else [0.0] * WIDTH


def of_length_one(vector: list[float]) -> list[float]:
    length = math.hypot(*vector)
    return [value / length for value in vector] if length else vector


@st.composite
def items(draw: st.DrawFn) -> tuple[list[list[list[float]]], list[list[int]]]:
    """Rows x tokens x numbers, and the mask of each token."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    number = st.floats(-100, 100, width=32)
    vectors = st.lists(st.lists(number, min_size=WIDTH, max_size=WIDTH), min_size=length, max_size=length)
    masks = st.lists(st.integers(0, 1), min_size=length, max_size=length)
    return draw(st.lists(vectors, min_size=rows, max_size=rows)), draw(st.lists(masks, min_size=rows, max_size=rows))


@settings(max_examples=40, deadline=None)
@given(given_items=st.lists(items(), max_size=5))
def test_the_mean_is_over_the_tokens_that_the_mask_names(
    given_items: list[tuple[list[list[list[float]]], list[list[int]]]],
) -> None:
    documents = made(normalize=False).run([hidden(*each) for each in given_items])
    for document, (values, mask) in zip(documents, given_items, strict=True):
        rows = document if len(values) > 1 else [document]
        assert len(rows) == len(values)
        for row, tokens, attended in zip(rows, values, mask, strict=True):
            assert row["embedding"] == pytest.approx(mean_of(tokens, attended), rel=1e-5, abs=1e-4)


@pytest.mark.parametrize(
    "vector",
    [[3, 4, 0], [1e-3, -2, 7], [1e30, -1e30, 1e29], [1e-30, 2e-30, 0], [3e38, 3e38, 3e38], [1e-45, 0, 0], [0, 0, 0]],
)
def test_vectors_get_length_one_and_zeros_stay_zeros(vector: list[float]) -> None:
    document = only(of_rows(), {"y": np.array([vector], np.float32)})
    assert document["embedding"] == pytest.approx(of_length_one(vector), rel=1e-6)


def test_a_mean_of_large_numbers_does_not_overflow() -> None:
    document = only(made(normalize=False), hidden([[[3e38] * 3] * 64], [[1] * 64]))
    assert document["embedding"] == pytest.approx([3e38] * 3, rel=1e-5)


def test_a_row_of_no_token_is_zeros() -> None:
    assert only(made(), hidden([[[1, 2, 3]]], [[0]])) == {"embedding": [0, 0, 0]}


def test_cls_is_the_first_token_and_needs_no_mask() -> None:
    asked = made(inputs=(("x", "float32", (None, 1)),), pooling="cls", normalize=False)
    assert asked.passes == frozenset()
    assert only(asked, {"y": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}) == {"embedding": [0, 1, 2]}


def test_the_mean_asks_for_the_mask_by_the_name_that_it_has() -> None:
    asked = made(inputs=(("mask", "int64", (None, None)),), attention_mask="mask", normalize=False)
    assert asked.passes == {"mask"}
    assert only(asked, hidden([[[1, 2, 3], [3, 4, 5]]], [[1, 1]], "mask")) == {"embedding": [2, 3, 4]}


def test_several_rows_give_a_list() -> None:
    document = only(of_rows(normalize=False), {"y": np.array([[1, 2, 3], [4, 5, 6]], np.float32)})
    assert document == [{"embedding": [1, 2, 3]}, {"embedding": [4, 5, 6]}]


def test_a_cut_comes_before_the_length() -> None:
    document = only(of_rows(dimensions=2), {"y": np.array([[3, 4, 99]], np.float32)})
    assert document["embedding"] == pytest.approx([0.6, 0.8])


def test_of_several_outputs_the_usual_one_is_read_or_the_one_that_is_named() -> None:
    outputs: tuple[Spec, ...] = (("last_hidden_state", "float32", (None, None, 3)), ("pooler_output", *ROWS[1:]))
    item = {
        "last_hidden_state": np.array([[[1, 2, 3]]], np.float32),
        "pooler_output": np.array([[4, 5, 6]], np.float32),
        passed(MASK): np.array([[1]]),
    }
    assert only(made(*outputs, normalize=False), item) == {"embedding": [1, 2, 3]}
    assert only(of_rows(*outputs, output="pooler_output", normalize=False), item) == {"embedding": [4, 5, 6]}


@pytest.mark.parametrize("dtype", ["float16", "float64", "int8", "int64"])
def test_numbers_of_any_dtype_are_pooled(dtype: str) -> None:
    asked = made(("y", dtype, (None, None, WIDTH)), normalize=False)
    item = {"y": np.full((1, 300, WIDTH), 100, dtype), passed(MASK): np.ones((1, 300), np.int64)}
    assert only(asked, item)["embedding"] == pytest.approx([100] * 3, rel=1e-6)


@pytest.mark.parametrize("options", [{}, {"pooling": "cls"}, {"normalize": False}])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_json_cannot_carry_fails_its_item_alone(bad: float, options: dict[str, Any]) -> None:
    good = hidden([[[1, 2, 3]]], [[1]])
    sick = hidden([[[1, 2, 3]], [[1, bad, 3]]], [[1], [1]])
    outcomes = made(**options).run([good, sick, good])
    assert [isinstance(each, ModelError) for each in outcomes] == [False, True, False]


def test_vectors_that_do_not_go_with_the_tokens_fail_alone() -> None:
    good, short = hidden([[[1, 2, 3]] * 4], [[1] * 4]), hidden([[[1, 2, 3]] * 2], [[1] * 4])
    first, second = made().run([good, short])
    assert isinstance(first, dict)
    assert isinstance(second, ModelError)
    assert "2 vectors a row for 4 tokens" in second.detail


def test_vectors_shorter_than_their_cut_fail_alone() -> None:
    asked = of_rows(("y", "float32", (None, None)), dimensions=3)
    first, second = asked.run([{"y": np.ones((1, 3), np.float32)}, {"y": np.ones((1, 2), np.float32)}])
    assert isinstance(first, dict)
    assert isinstance(second, ModelError)
    assert "vectors of 2 numbers, not of 3" in second.detail


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pool": "mean"}, "known keys: output, pooling, normalize, dimensions, attention_mask"),
        ({"pooling": "max"}, "postprocess.options.pooling"),
        ({"dimensions": 0}, "postprocess.options.dimensions"),
        ({"normalize": 2}, "postprocess.options.normalize: Expected `bool`, got `int`"),
    ],
)
def test_wrong_options_name_key_and_remedy(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError) as caught:
        check(StageConfig("embedding", options))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "options", "says"),
    [
        (
            [ROWS],
            {},
            "postprocess.options.pooling: mean needs numbers of 3 axes (rows, tokens, numbers); y is float32 of 2",
        ),
        ([HIDDEN], {"pooling": "none"}, "none needs numbers of 2 axes (rows, numbers); y is float32 of 3"),
        ([("y", "bool", (None, None, 3))], {}, "y is bool of 3"),
        ([HIDDEN], {"output": "z"}, "postprocess.options.output: 'z' is not one output; name one of y"),
        ([HIDDEN, ("z", *ROWS[1:])], {}, "postprocess.options.output: '' is not one output; name one of y, z"),
        ([HIDDEN], {"dimensions": 4}, "postprocess.options.dimensions: 4, but y has 3"),
        ([HIDDEN], {"attention_mask": "m"}, "postprocess.options.attention_mask: the graph has no input m"),
        (
            [HIDDEN, (passed(MASK), *ROWS[1:])],
            {"output": "y"},
            "the graph's output input:attention_mask has the name",
        ),
    ],
)
def test_options_must_fit_the_graph(outputs: list[Spec], options: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError) as caught:
        made(*outputs, **options)
    assert says in str(caught.value)
