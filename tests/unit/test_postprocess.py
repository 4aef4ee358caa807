"""Outputs to documents, by item, whatever stands beside them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax  # type: ignore[import-untyped]  # no stubs installed

from jobs.errors import ModelError, SetupError
from jobs.models import ModelConfig, StageConfig
from postprocess.kinds import Kind, check, kind
from tests.unit.graphs import record_of

LABELS = ["ant", "bee", "cat"]


def made(name: str = "tensor", width: int | None = 3, dtype: str = "float32", **options: Any) -> Kind:
    config = ModelConfig(postprocess=StageConfig(name, options))
    return kind(record_of(("x", "float32", (None, 1)), outputs=[("y", dtype, (None, width))], config=config))


def ranked(scores: list[list[float]], **options: Any) -> Any:
    (document,) = made("classification", labels=LABELS, **options).run([{"y": np.array(scores, np.float32)}])
    return document


def test_one_row_is_given_without_the_row_axis_and_more_with_it() -> None:
    one, two = np.array([[1, 2.5, 3]], np.float32), np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    assert made().run([{"y": one}, {"y": two}]) == [{"y": [1, 2.5, 3]}, {"y": [[1, 2, 3], [4, 5, 6]]}]


def test_every_output_keeps_its_name_dtype_and_rank() -> None:
    item = {"a": np.array([[[1], [2]]], np.int64), "b": np.array([True]), "c": np.array([0.5], np.float16)}
    (document,) = made().run([item])
    assert json.dumps(document) == '{"a": [[1], [2]], "b": true, "c": 0.5}'


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=8))
def test_items_of_any_makes_come_back_in_order(shapes: list[tuple[int, int]]) -> None:
    items = [{"y": np.full(shape, number, np.float64)} for number, shape in enumerate(shapes)]
    expected = [item["y"].tolist() if len(item["y"]) > 1 else item["y"][0].tolist() for item in items]
    assert made().run(items) == [{"y": each} for each in expected]


@pytest.mark.parametrize("name", ["tensor", "classification"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_json_cannot_carry_fails_its_item_alone(name: str, bad: float) -> None:
    options: dict[str, Any] = {"labels": LABELS, "activation": "softmax"} if name == "classification" else {}
    good, sick = np.ones((1, 3), np.float32), np.array([[1, 2, 3], [1, bad, 3]], np.float32)
    outcomes = made(name, **options).run([{"y": good}, {"y": sick}, {"y": good}])
    assert [isinstance(each, ModelError) for each in outcomes] == [False, True, False]


def test_the_best_label_stands_on_top() -> None:
    assert ranked([[0.25, 0.5, 0.125]], top_k=2) == {
        "label": "bee",
        "score": 0.5,
        "top": [{"label": "bee", "score": 0.5}, {"label": "ant", "score": 0.25}],
    }


def test_of_equal_scores_the_first_label_wins() -> None:
    assert [each["label"] for each in ranked([[1, 1, 1]])["top"]] == LABELS


def test_several_rows_give_a_list() -> None:
    assert [each["label"] for each in ranked([[1, 0, 0], [0, 0, 1]])] == ["ant", "cat"]


def test_softmax_is_scipys_and_survives_large_logits() -> None:
    logits = [[1e4, 1e4 - 1, -1e4], [-3, 0.5, 2]]
    for document, expected in zip(
        ranked(logits, activation="softmax"), softmax(np.array(logits), axis=1), strict=True
    ):
        got = {each["label"]: each["score"] for each in document["top"]}
        assert [got[label] for label in LABELS] == pytest.approx(expected, abs=1e-12)


def test_integer_scores_are_ranked_too() -> None:
    (document,) = made("classification", dtype="uint8", labels=LABELS).run([{"y": np.array([[0, 9, 255]], np.uint8)}])
    assert document["label"] == "cat"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (StageConfig("classify"), "postprocess.kind: 'classify' is not known"),
        (StageConfig("tensor", {"top_k": 3}), "known keys: none"),
        (StageConfig("classification", {}), "missing required field `labels`"),
        (StageConfig("classification", {"labels": []}), "postprocess.options.labels"),
        (StageConfig("classification", {"labels": [1]}), "postprocess.options.labels[0]: Expected `str`"),
        (StageConfig("classification", {"labels": ["a"], "top_k": 0}), "postprocess.options.top_k"),
        (StageConfig("classification", {"labels": ["a"], "activation": "sigmoid"}), "postprocess.options.activation"),
    ],
)
def test_wrong_options_name_key_and_remedy(config: StageConfig, says: str) -> None:
    with pytest.raises(SetupError) as caught:
        check(config)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("width", "options", "says"),
    [
        (4, {"labels": LABELS}, "3 labels, but y has 4 classes"),
        (None, {"labels": LABELS}, "an open number of classes"),
        (3, {"labels": LABELS, "output": "z"}, "name one of y"),
    ],
)
def test_options_must_fit_the_graph(width: int | None, options: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError) as caught:
        made("classification", width, **options)
    assert says in str(caught.value)
