"""Small ONNX graphs, built where a test needs one, and records as a trial load would give them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from inference.repository import digest
from jobs.models import ModelConfig, ModelRecord, Signature, TensorSpec

Dims = Sequence[str | int]


def record_of(
    *inputs: tuple[str, str, tuple[int | None, ...]],
    outputs: Sequence[tuple[str, str, tuple[int | None, ...]]] = (("y", "float32", (None, 10)),),
    config: ModelConfig | None = None,
) -> ModelRecord:
    """A ready record with a signature of (name, dtype, shape) triples, and no file behind it."""
    signature = Signature(tuple(TensorSpec(*each) for each in inputs), tuple(TensorSpec(*each) for each in outputs))
    return ModelRecord("toy", 1, "ready", config or ModelConfig(), "0" * 64, signature)


def graph(
    nodes: Sequence[Any],
    inputs: dict[str, Dims],
    outputs: dict[str, Dims],
    weights: dict[str, NDArray[Any]] | None = None,
    dtype: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A checked model of ``nodes`` whose inputs and outputs all have one ``dtype``."""
    made = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, dtype, list(dims)) for name, dims in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, list(dims)) for name, dims in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def doubling(rows: str | int = "rows", width: str | int = 3) -> onnx.ModelProto:
    """Build y = 2 x."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return graph([node], {"x": [rows, width]}, {"y": [rows, width]})


def picky(size: int = 4) -> onnx.ModelProto:
    """Build y = table[x], which fails where any number of a call is not an index into the table of ``size`` rows."""
    node = helper.make_node("Gather", ["table", "x"], ["y"])
    table = np.arange(size, dtype=np.int64) * 10
    return graph([node], {"x": ["rows", 1]}, {"y": ["rows", 1]}, {"table": table}, TensorProto.INT64)


def spinning(width: int = 4) -> onnx.ModelProto:
    """Build y = x, after as many idle turns as the largest number of the first column says."""
    number = helper.make_tensor_value_info
    turn = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["held", "zero"], ["next"])]
    body = helper.make_graph(
        turn,
        "turn",
        [
            number("i", TensorProto.INT64, []),
            number("go", TensorProto.BOOL, []),
            number("held", TensorProto.FLOAT, None),
        ],
        [number("on", TensorProto.BOOL, []), number("next", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Gather", ["x", "first"], ["column"], axis=1),
        helper.make_node("ReduceMax", ["column"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body),
    ]
    weights: dict[str, NDArray[Any]] = {"zero": np.zeros((), np.float32), "first": np.zeros((), np.int64)}
    return graph(nodes, {"x": ["rows", width]}, {"y": ["rows", width]}, weights)


def chain(nodes: int, width: int = 3) -> onnx.ModelProto:
    """Build y = tanh(tanh(... x)): nodes that no optimiser can join."""
    names = ["x", *(f"h{number}" for number in range(1, nodes)), "y"]
    made = [helper.make_node("Tanh", [before], [after]) for before, after in itertools.pairwise(names)]
    return graph(made, {"x": ["rows", width]}, {"y": ["rows", width]})


def place(models: Path, model: onnx.ModelProto, name: str = "toy", version: int = 1) -> Path:
    """Write ``model`` where the repository looks for it; gives the version's folder."""
    folder = models / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "model.onnx")
    return folder


def placed_record(folder: Path, signature: Signature, config: ModelConfig | None = None) -> ModelRecord:
    """The record of the version in ``folder``, without the cost of a trial load."""
    name, version = folder.parent.name, int(folder.name)
    return ModelRecord(name, version, "ready", config or ModelConfig(), digest(folder), signature)
