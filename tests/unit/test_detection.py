"""Kind ``detection``: boxes against slow loops written here, and no row's trouble in another's document."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from jobs.errors import ModelError, SetupError
from jobs.models import ModelConfig, StageConfig
from jobs.placement import PLACEMENT, Placement
from jobs.tensors import Tensors
from postprocess.kinds import Kind, check, kind
from postprocess.nms import suppress
from tests.unit.graphs import record_of

LABELS = ["ant", "bee", "cat"]
Box = tuple[float, float, float, float]


def made(
    shape: tuple[int | None, ...] = (None, 7, None),
    *,
    image: tuple[int | None, ...] = (None, 3, 64, 64),
    **options: Any,
) -> Kind:
    """A detection kind for an output of ``shape``, with three labels."""
    config = ModelConfig(postprocess=StageConfig("detection", {"labels": LABELS, **options}))
    return kind(record_of(("x", "float32", image), outputs=[("y", "float32", shape)], config=config))


def detections(item: Tensors, **options: Any) -> list[dict[str, Any]]:
    """Of the one row of ``item``."""
    (document,) = made(**options).run([item])
    assert not isinstance(document, Exception), document
    found: list[dict[str, Any]] = document["detections"]
    return found


def yolov8(*candidates: tuple[float, ...]) -> NDArray[np.float32]:
    """One row: cx, cy, w, h and three scores for each candidate."""
    return np.array(candidates, np.float32).T[np.newaxis]


# --- Suppression ---


def slow_iou(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = width * height if width > 0 and height > 0 else 0.0

    def area(box: Box) -> float:
        return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)

    union = area(one) + area(other) - common
    return common / union if union > 0 else 0.0


def slow_suppress(boxes: list[Box], groups: list[int], iou_max: float, kept_max: int) -> list[int]:
    kept: list[int] = []
    for index, box in enumerate(boxes):
        if len(kept) == kept_max:
            break
        rivals = [boxes[other] for other in kept if groups[other] == groups[index]]
        if all(slow_iou(rival, box) <= iou_max for rival in rivals):
            kept.append(index)
    return kept


coordinate = st.one_of(st.integers(-3, 9).map(float), st.sampled_from([0.0, 1e-3, 1e9, -1e30, 1e30]))
box = st.tuples(coordinate, coordinate, coordinate, coordinate)


@given(
    st.lists(st.tuples(box, st.integers(0, 2)), max_size=25),
    st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.45, 0.5, 1.0]),
    st.integers(1, 25),
)
def test_suppression_is_that_of_a_slow_loop(grouped: list[tuple[Box, int]], iou_max: float, kept_max: int) -> None:
    boxes, groups = [each for each, _ in grouped], [group for _, group in grouped]
    got = suppress(np.array(boxes, np.float64).reshape(-1, 4), np.array(groups), iou_max, kept_max)
    assert got == slow_suppress(boxes, groups, iou_max, kept_max)


def test_boxes_far_out_of_the_picture_do_not_reach_other_classes() -> None:
    huge = np.array([[0, 0, 1e30, 1e30], [0, 0, 1e30, 1e30]])
    assert suppress(huge, np.array([0, 1]), 0.5, 10) == [0, 1]
    assert suppress(huge, np.array([0, 0]), 0.5, 10) == [0]


# --- Whole rows, against loops ---


def slow_detections(output: NDArray[Any], form: str, score_min: float, **options: Any) -> list[dict[str, Any]]:
    """One row through loops: candidates, best class, order, suppression, clipping to 64 x 64."""
    found: list[tuple[float, int, Box]] = []
    for candidate in output.T if form == "yolov8" else output:
        if form == "boxes":
            corners, score, index = candidate[:4], float(candidate[4]), int(candidate[5])
            x1, y1, x2, y2 = map(float, corners)
        else:
            cx, cy, w, h = map(float, candidate[:4])
            scores = candidate[4:] if form == "yolov8" else [candidate[4] * each for each in candidate[5:]]
            index = max(range(3), key=lambda each: (scores[each], -each))
            score = float(scores[index])
            x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        if score >= score_min:
            found.append((score, index, (x1, y1, x2, y2)))
    found = sorted(found, key=lambda each: -each[0])
    if form != "boxes":
        found = found[: options.get("candidates_max", 3_000)]
        groups = [0 if options.get("class_agnostic") else index for _, index, _ in found]
        kept = slow_suppress([each for _, _, each in found], groups, 0.45, options.get("detections_max", 100))
        found = [found[each] for each in kept]
    found = found[: options.get("detections_max", 100)]
    clipped = [(score, index, [min(max(each, 0.0), 64.0) for each in corners]) for score, index, corners in found]
    return [
        {"label": LABELS[index], "score": score, "box": corners}
        for score, index, corners in clipped
        if corners[0] < corners[2] and corners[1] < corners[3]
    ]


def random_output(form: str, rows: int, seed: int) -> NDArray[np.float32]:
    """Crowded boxes in and around the picture, with many equal scores."""
    random = np.random.default_rng(seed)
    places = random.integers(-10, 75, (rows, 120, 2)) / 1.0
    sizes = random.integers(0, 40, (rows, 120, 2)) / 1.0
    classes = random.integers(0, 9, (rows, 120, 3)) / 8
    if form == "boxes":
        tail = np.stack([classes[..., 0], random.integers(0, 3, (rows, 120))], axis=2)
        return np.concatenate([places, places + sizes, tail], axis=2).astype(np.float32)
    objects = random.integers(0, 5, (rows, 120, 1)) / 4 if form == "yolov5" else np.zeros((rows, 120, 0))
    output = np.concatenate([places, sizes, objects, classes], axis=2).astype(np.float32)
    return output.transpose(0, 2, 1).copy() if form == "yolov8" else output


SHAPES = {"yolov8": (None, 7, None), "yolov5": (None, None, 8), "boxes": (None, None, 6)}


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("options", [{}, {"class_agnostic": True}, {"candidates_max": 20, "detections_max": 3}])
@pytest.mark.parametrize("seed", range(3))
def test_a_ragged_batch_of_rows_is_decoded_as_by_loops(form: str, options: dict[str, Any], seed: int) -> None:
    sizes = [1, 2, 1]
    outputs = [random_output(form, rows, seed * 10 + number) for number, rows in enumerate(sizes)]
    got = made(SHAPES[form], format=form, score_min=0.5, **options).run([{"y": each} for each in outputs])
    expected = [[{"detections": slow_detections(row, form, 0.5, **options)} for row in output] for output in outputs]
    assert got == [each if len(each) > 1 else each[0] for each in expected]
    assert sum(len(row["detections"]) for rows in expected for row in rows) >= 6


def test_half_precision_is_read_too() -> None:
    item = {"y": yolov8((8, 8, 8, 8, 0.5, 0, 0)).astype(np.float16)}
    assert detections(item) == [{"label": "ant", "score": 0.5, "box": [4, 4, 12, 12]}]


# --- Back to the picture ---


def test_boxes_come_back_in_pixels_of_each_rows_picture_and_clipped_to_it() -> None:
    output = yolov8((32, 32, 16, 16, 0.75, 0, 0), (0, 32, 32, 8, 0, 0.5, 0))
    letterboxed = Placement(100, 200, 0.25, 0.25, 8, 4).row()
    stretched = Placement(32, 128, 2, 0.5).row()
    item = {"y": np.concatenate([output, output]), PLACEMENT: np.concatenate([letterboxed, stretched])}
    ((first, second),) = made().run([item])
    assert first == {
        "detections": [
            {"label": "ant", "score": 0.75, "box": [80, 64, 144, 100]},
            {"label": "bee", "score": 0.5, "box": [0, 80, 48, 100]},
        ]
    }
    assert [each["box"] for each in second["detections"]] == [[48, 12, 80, 20], [0, 14, 32, 18]]


def test_a_box_in_the_padding_or_without_area_is_no_detection() -> None:
    placement = Placement(32, 64, 1, 1, 16, 0).row()
    output = yolov8((32, 4, 8, 8, 0.9, 0, 0), (32, 32, 0, 8, 0.8, 0, 0), (32, 32, 8, -8, 0.7, 0, 0))
    assert detections({"y": output, PLACEMENT: placement}) == []


def test_without_a_placement_boxes_are_clipped_to_the_models_input() -> None:
    item = {"y": yolov8((4, 60, 16, 16, 1, 0, 0))}
    assert detections(item)[0]["box"] == [0, 52, 12, 64]
    assert detections(item, input_size=[56, 10])[0]["box"] == [0, 52, 10, 56]
    assert detections(item, image=(None, 60, 10, 3))[0]["box"] == [0, 52, 10, 60]


# --- One bad row ---


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(7))
def test_a_number_that_is_not_finite_fails_its_item_alone(bad: float, place: int) -> None:
    good, sick = yolov8((8, 8, 8, 8, 0.5, 0, 0)), yolov8((8, 8, 8, 8, 0.5, 0, 0))
    sick[0, place, 0] = bad
    outcomes = made().run([{"y": good}, {"y": sick}, {"y": good}])
    assert [isinstance(each, ModelError) for each in outcomes] == [False, True, False]
    assert (
        outcomes[0] == outcomes[2] == {"detections": [{"label": "ant", "score": 0.5, "box": [4.0, 4.0, 12.0, 12.0]}]}
    )


@pytest.mark.parametrize("index", [3, -1, 0.5, 1e30])
def test_a_class_without_a_label_fails_its_item_alone(index: float) -> None:
    good = np.array([[[1, 2, 3, 4, 0.5, 2]]], np.float32)
    sick = np.array([[[1, 2, 3, 4, 0.5, index]]], np.float32)
    outcomes = made((None, None, 6), format="boxes").run([{"y": good}, {"y": sick}])
    assert outcomes[0]["detections"] == [{"label": "cat", "score": 0.5, "box": [1, 2, 3, 4]}]
    assert isinstance(outcomes[1], ModelError)


@pytest.mark.parametrize("shape", [(1, 8, 5), (1, 7), (1, 7, 2, 2)])
def test_an_output_of_another_shape_fails_its_item_alone(shape: tuple[int, ...]) -> None:
    good = {"y": yolov8((8, 8, 8, 8, 0.5, 0, 0))}
    outcomes = made((None, None, None)).run([{"y": np.ones(shape, np.float32)}, good])
    assert isinstance(outcomes[0], ModelError)
    assert len(outcomes[1]["detections"]) == 1


def test_a_coordinate_that_overflows_is_clipped() -> None:
    candidates = [[[1e308, 8, 1.7e308, 8, 0.5, 0, 0], [1e308, 8, 1.7e308, 8, 0.25, 0, 0]]]
    item = {"y": np.array(candidates).transpose(0, 2, 1), PLACEMENT: Placement(64, 64, 1, 1, 0, 9e307).row()}
    assert [each["box"] for each in detections(item)] == [[0, 4, 64, 12]] * 2


def test_a_score_that_overflows_fails_its_item_alone() -> None:
    good, sick = np.array([[[8, 8, 8, 8, 1, 0.5, 0, 0]]]), np.array([[[8, 8, 8, 8, 1e200, 1e200, 0, 0]]])
    outcomes = made((None, None, 8), format="yolov5").run([{"y": sick}, {"y": good}])
    assert isinstance(outcomes[0], ModelError)
    assert len(outcomes[1]["detections"]) == 1


# --- What a model may say ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "missing required field `labels`"),
        ({"labels": []}, "postprocess.options.labels"),
        ({"labels": ["a"], "format": "yolov1"}, "postprocess.options.format"),
        ({"labels": ["a"], "score_min": 1.5}, "postprocess.options.score_min"),
        ({"labels": ["a"], "iou_max": -0.1}, "postprocess.options.iou_max"),
        ({"labels": ["a"], "detections_max": 0}, "postprocess.options.detections_max"),
        ({"labels": ["a"], "input_size": [64]}, "postprocess.options.input_size"),
        ({"labels": ["a"], "nms": True}, "known keys: labels, output, format"),
    ],
)
def test_wrong_options_name_key_and_remedy(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError) as caught:
        check(StageConfig("detection", options))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "options", "says"),
    [
        ((None, 84, 8400), {}, "with 3 labels, axis 1 of y would be 7 in format yolov8, but it is 84"),
        ((None, 8400, 7), {"format": "yolov5"}, "axis 2 of y would be 8"),
        ((None, 300, 7), {"format": "boxes"}, "axis 2 of y would be 6"),
        ((None, 7), {}, "floats of three axes"),
        ((None, 7, 9), {"output": "z"}, "name one of y"),
        ((None, 7, 9), {"image": (None, 3, None, None)}, "give [height, width]"),
        ((None, 7, 9), {"image": (None, 64)}, "give [height, width]"),
    ],
)
def test_options_must_fit_the_graph(shape: tuple[int | None, ...], options: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError) as caught:
        made(shape, **options)
    assert says in str(caught.value)


def test_an_output_may_not_take_the_placements_name() -> None:
    config = ModelConfig(postprocess=StageConfig("detection", {"labels": LABELS}))
    record = record_of(
        ("x", "float32", (None, 3, 64, 64)), outputs=[(PLACEMENT, "float32", (None, 7, 9))], config=config
    )
    with pytest.raises(SetupError, match="another name"):
        kind(record)
