"""Warm-up: every size of batch that will be asked for is run before it is asked for, and a failure says which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from inference.session import Halt, Session
from inference.trial import trial
from jobs.errors import ModelError, OutOfMemoryError, SetupError
from jobs.models import InferenceConfig, ModelConfig
from jobs.tensors import Tensors
from tests.unit.graphs import doubling, graph, place


def warmed(
    monkeypatch: pytest.MonkeyPatch, model: Path, config: InferenceConfig, error: Exception | None = None
) -> list[tuple[int, ...]]:
    """The shapes of ``x`` that a warm-up runs; ``error`` meets the last of them."""
    shapes: list[tuple[int, ...]] = []
    inner = Session.run

    def run(session: Session, feeds: Tensors, halt: Halt | None = None) -> Tensors:
        shapes.append(feeds["x"].shape)
        if error and len(feeds["x"]) == config.batch_max:
            raise error
        return inner(session, feeds, halt)

    monkeypatch.setattr(Session, "run", run)
    Session.open(model / "model.onnx", threads=1).warm(config)
    return shapes


def slices() -> onnx.ModelProto:
    """Build y = the first four columns of x, which needs four."""
    weights = {key: np.array([value], np.int64) for key, value in {"starts": 0, "ends": 4, "axes": 1}.items()}
    nodes = [
        helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["part"]),
        helper.make_node("Reshape", ["part", "shape"], ["y"]),
    ]
    return graph(nodes, {"x": ["n", "m"]}, {"y": ["n", 4]}, weights | {"shape": np.array([-1, 4])})


@pytest.mark.parametrize(
    ("rows", "config", "expected"),
    [
        ("n", InferenceConfig(batch_max=8), [1, 8]),
        ("n", InferenceConfig(batch_max=1), [1]),
        ("n", InferenceConfig(batch_max=8, buckets=(2, 4, 8)), [2, 4, 8]),
        (5, InferenceConfig(batch_max=8), [5]),
        (5, InferenceConfig(batch_max=8, buckets=(2, 8)), [5]),
    ],
)
def test_every_bucket_is_run_or_one_row_and_the_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str | int, config: InferenceConfig, expected: list[int]
) -> None:
    shapes = warmed(monkeypatch, place(tmp_path, doubling(rows)), config)
    assert shapes == [(each, 3) for each in expected]


def test_open_dimensions_have_the_sizes_that_are_given_else_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = place(tmp_path, doubling(width="m"))
    assert warmed(monkeypatch, model, InferenceConfig(batch_max=2)) == [(1, 1), (2, 1)]
    monkeypatch.undo()
    config = InferenceConfig(batch_max=2, warm_shapes={"x": (7,)})
    assert warmed(monkeypatch, model, config) == [(1, 7), (2, 7)]


def test_a_graph_that_refuses_given_sizes_is_broken_and_a_guess_is_forgiven(tmp_path: Path) -> None:
    session = Session.open(place(tmp_path, slices()) / "model.onnx", threads=1)
    session.warm(InferenceConfig(batch_max=3))
    session.warm(InferenceConfig(batch_max=3, warm_shapes={"x": (9,)}))
    with pytest.raises(SetupError, match="a run of zeros at 1 rows failed: ONNX Runtime failed on this input"):
        session.warm(InferenceConfig(batch_max=3, warm_shapes={"x": (2,)}))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OutOfMemoryError("m"), "out of memory at 8 rows; lower inference.batch_max"),
        (ModelError("it broke"), "a run of zeros at 8 rows failed: it broke"),
    ],
)
def test_a_failure_names_the_rows_and_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    with pytest.raises(SetupError, match=says):
        warmed(monkeypatch, place(tmp_path, doubling()), InferenceConfig(batch_max=8), error)


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"z": (3,)}, "inference.warm_shapes: the graph has no input 'z'; it has x"),
        ({"x": (3, 3)}, "inference.warm_shapes.x: [3, 3] is not [3], the row axis left out"),
        ({"x": (4,)}, "inference.warm_shapes.x: [4] is not [3], the row axis left out"),
        ({"x": ()}, "inference.warm_shapes.x: [] is not [3], the row axis left out"),
    ],
)
def test_sizes_that_contradict_the_graph_break_the_version(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], says: str
) -> None:
    with pytest.raises(SetupError) as caught:
        Session.open(place(tmp_path, doubling()) / "model.onnx", threads=1).warm(InferenceConfig(warm_shapes=shapes))
    assert str(caught.value) == says


def test_the_trial_warms_up_with_the_same_options(tmp_path: Path) -> None:
    folder = place(tmp_path, slices())
    sizes: dict[str, tuple[int, ...]] = {"x": (2,)}
    config = ModelConfig(inference=InferenceConfig(batch_max=2, buckets=(2,), warm_shapes=sizes, required="cuda"))
    record = trial(folder, config, 60)
    reason = "a run of zeros at 2 rows failed: output y has shape [1, 4] for 2 rows; axis 0 must be rows"
    assert (record.state, record.reason) == ("broken", reason)
