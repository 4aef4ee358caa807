"""A new version from an old one: smaller or faster, compared with it, and not left behind where it goes too far."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import helper

from inference.comparison import compare
from inference.optimize import Method, Tolerance, optimize
from inference.session import Session
from jobs.errors import SetupError
from jobs.tensors import Tensors
from tests.unit.graphs import doubling, graph, place

ROOT = Path(__file__).resolve().parents[2]
RANDOM = np.random.default_rng(7)
WEIGHTS = {
    "w1": RANDOM.standard_normal((16, 64)).astype(np.float32) / 4,
    "w2": RANDOM.standard_normal((64, 8)).astype(np.float32) / 8,
}
X = RANDOM.standard_normal((32, 16)).astype(np.float32)


def layers() -> onnx.ModelProto:
    """Build y = relu(x w1) w2, with a detour that an optimiser takes away."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["c"]),
        helper.make_node("MatMul", ["c", "w2"], ["y"]),
    ]
    return graph(nodes, {"x": ["n", 16]}, {"y": ["n", 8]}, WEIGHTS)


def by_hand() -> Any:
    return np.maximum(X @ WEIGHTS["w1"], 0) @ WEIGHTS["w2"]


@pytest.fixture
def version(tmp_path: Path) -> Path:
    folder = place(tmp_path, layers())
    (folder / "model.toml").write_text('description = "d"')
    return folder


def outputs(folder: Path) -> Any:
    return Session.open(folder / "model.onnx", threads=1).run({"x": X})["y"]


@pytest.mark.parametrize(("method", "apart"), [("fp16", 0.005), ("int8", 0.1), ("graph", 1e-5)])
def test_the_new_version_says_nearly_the_same(version: Path, method: Any, apart: float) -> None:
    target = version.with_name("2")
    found = optimize(version, target, method, [{"x": X}])
    got = outputs(target)
    np.testing.assert_allclose(got, by_hand(), atol=apart)
    assert found.difference_max == pytest.approx(np.abs(got - outputs(version)).max())
    assert found.difference_mean == pytest.approx(np.abs(got - outputs(version)).mean())
    assert found.rows == 32
    assert min(found.run_s_before, found.run_s_after) > 0
    assert (target / "model.toml").read_text() == 'description = "d"'
    assert sorted(each.name for each in version.parent.iterdir()) == ["1", "2"]


def test_each_method_does_what_it_is_for(version: Path) -> None:
    kept: dict[str, Any] = {}
    for number, method in enumerate(("fp16", "int8", "graph"), start=2):
        target = version.with_name(str(number))
        found = optimize(version, target, cast("Method", method), [{"x": X}])
        kept[method] = (onnx.load(target / "model.onnx").graph, found)
    assert {each.data_type for each in kept["fp16"][0].initializer} == {onnx.TensorProto.FLOAT16}
    assert [each.type.tensor_type.elem_type for each in kept["fp16"][0].input] == [onnx.TensorProto.FLOAT]
    assert "MatMulInteger" in {node.op_type for node in kept["int8"][0].node}
    assert "Identity" not in {node.op_type for node in kept["graph"][0].node}
    assert kept["fp16"][1].bytes_after < 0.8 * kept["fp16"][1].bytes_before


@pytest.mark.parametrize(
    "tolerance", [Tolerance(difference_max=1e-9, agreement_min=0), Tolerance(difference_max=9, agreement_min=1.01)]
)
def test_beyond_the_tolerance_nothing_is_left_and_the_figures_are_told(version: Path, tolerance: Tolerance) -> None:
    with pytest.raises(SetupError, match=r"int8: outputs differ by up to 0\.\d+ \(allowed: .* of 32 rows agree"):
        optimize(version, version.with_name("2"), "int8", [{"x": X}], tolerance)
    assert [each.name for each in version.parent.iterdir()] == ["1"]


def test_a_version_that_exists_is_not_written_over(version: Path) -> None:
    with pytest.raises(SetupError, match="there is such a version"):
        optimize(version, version, "graph", [{"x": X}])
    np.testing.assert_allclose(outputs(version), by_hand(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["fp16", "int8", "graph"])
def test_weights_beside_the_graph_are_taken_along(version: Path, method: Any) -> None:
    path = version / "model.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    target = version.with_name("2")
    optimize(version, target, method, [{"x": X}])
    np.testing.assert_allclose(outputs(target), by_hand(), atol=0.1)
    assert (target / "weights.bin").exists() == (method == "graph")
    assert (version / "weights.bin").exists()


def test_a_graph_that_cannot_be_read_is_one_line(version: Path) -> None:
    (version / "model.onnx").write_bytes(b"\x80\x04junk")
    methods: tuple[Method, ...] = ("fp16", "int8", "graph")
    for method in methods:
        with pytest.raises(SetupError, match=f"{method}: the graph cannot be converted"):
            optimize(version, version.with_name("2"), method, [{"x": X}])
    assert [each.name for each in version.parent.iterdir()] == ["1"]


def test_without_the_package_onnx_it_is_said_what_to_install(version: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SetupError, match=r"install penstock\[optimize\]"):
        optimize(version, version.with_name("2"), "fp16", [{"x": X}])


def test_the_converters_leave_the_import_path_as_it_was(version: Path) -> None:
    before = list(sys.path)
    optimize(version, version.with_name("2"), "fp16", [{"x": X}])
    optimize(version, version.with_name("3"), "int8", [{"x": X}])
    assert sys.path == before


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ([], "there are no sample inputs to compare on"),
        ([{"x": X[:, :3]}], "the old version cannot run a sample: ONNX Runtime failed on this input"),
    ],
)
def test_samples_that_are_missing_or_wrong_are_named(version: Path, samples: list[Tensors], says: str) -> None:
    with pytest.raises(SetupError, match=says):
        optimize(version, version.with_name("2"), "graph", samples)
    assert [each.name for each in version.parent.iterdir()] == ["1"]


# --- Comparison ---


def scaled(tmp_path: Path, number: int, factors: list[float]) -> Path:
    """Build y = x * factors, as a version."""
    node = helper.make_node("Mul", ["x", "w"], ["y"])
    weights = {"w": np.array(factors, np.float32)}
    return place(tmp_path, graph([node], {"x": ["n", 2]}, {"y": ["n", 2]}, weights), version=number) / "model.onnx"


def test_differences_and_agreement_are_those_of_the_outputs(tmp_path: Path) -> None:
    old, new = scaled(tmp_path, 1, [1, 1]), scaled(tmp_path, 2, [1, 3])
    samples: list[Tensors] = [{"x": np.array([[2, 1]], np.float32)}, {"x": np.array([[4, 1], [1, 2]], np.float32)}]
    found = compare(old, new, samples, runs=1)
    assert found.difference_max == 4
    assert found.difference_mean == pytest.approx((0 + 2 + 0 + 2 + 0 + 4) / 6)
    assert found.agreement == pytest.approx(2 / 3)  # [2, 1] against [2, 3] is where they part
    assert found.bytes_before == old.stat().st_size


@pytest.mark.parametrize(("factor", "other", "apart"), [(1, math.nan, math.inf), (math.nan, math.nan, 0)])
def test_what_is_not_a_number_is_infinitely_far_from_a_number(
    tmp_path: Path, factor: float, other: float, apart: float
) -> None:
    old, new = scaled(tmp_path, 1, [factor, 1]), scaled(tmp_path, 2, [other, 1])
    assert compare(old, new, [{"x": np.ones((1, 2), np.float32)}], runs=1).difference_max == apart


def test_outputs_of_other_shapes_cannot_be_compared(tmp_path: Path) -> None:
    old = place(tmp_path, doubling()) / "model.onnx"
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)
    weights = {"axes": np.array([1], np.int64)}
    new = place(tmp_path, graph([node], {"x": ["n", 3]}, {"y": ["n", 1]}, weights), version=2) / "model.onnx"
    with pytest.raises(
        SetupError, match=r"new version's outputs are \{'y': \[2, 1\]\}, the old one's \{'y': \[2, 3\]"
    ):
        compare(old, new, [{"x": np.ones((2, 3), np.float32)}], runs=1)
