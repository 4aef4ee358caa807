"""A model that computes: each row is a matrix of its own, so that a row costs the same in any batch.

Input ``x`` float32 [rows, 64], output ``y`` float32 [rows, 10]. Its depth is chosen on the machine, so that a worker
with one core has a capacity of some 80 jobs a second anywhere.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from benchmarks.inputs import VALUES
from tests.unit.graphs import graph, place

NAME: Final = "heavy"
ROW_S: Final = 0.0115
"""What a row should cost."""
WIDTH: Final = 256
CLASSES: Final = 10
TRIAL_LAYERS: Final = 16
TRIALS: Final = 15
TRIAL_ROWS: Final = 2
CONFIG: Final = """
description = "A model that computes for 12 ms a row: for the demonstrations."

[cache]
ttl_s = 0
"""


def place_heavy(models: Path) -> int:
    """Put the model into a folder of models; how many layers it has."""
    layers = max(1, round(ROW_S / _layer_s()))
    place(models, build(layers), NAME)
    (models / NAME / "model.toml").write_text(CONFIG)
    return layers


def build(layers: int) -> onnx.ModelProto:
    """X → a matrix [64, 256] a row → ``layers`` times Tanh(matrix · W) → mean → y."""
    draw = np.random.default_rng(7)
    weights: dict[str, NDArray[Any]] = {
        "spread": draw.normal(0.0, 1.0, (1, WIDTH)).astype(np.float32),
        "w": draw.normal(0.0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32),
        "out": draw.normal(0.0, WIDTH**-0.5, (WIDTH, CLASSES)).astype(np.float32),
        "last": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["x", "last"], ["column"]),
        helper.make_node("MatMul", ["column", "spread"], ["m0"]),
    ]
    for layer in range(layers):
        nodes += [
            helper.make_node("MatMul", [f"m{layer}", "w"], [f"sum{layer}"]),
            helper.make_node("Tanh", [f"sum{layer}"], [f"m{layer + 1}"]),
        ]
    nodes += [
        helper.make_node("ReduceMean", [f"m{layers}"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "out"], ["y"]),
    ]
    return graph(nodes, {"x": ["rows", VALUES]}, {"y": ["rows", CLASSES]}, weights)


def _layer_s() -> float:
    """Seconds of a row in one layer, on one core."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(build(TRIAL_LAYERS).SerializeToString(), options)
    rows = np.ones((TRIAL_ROWS, VALUES), np.float32)
    taken = []
    for _ in range(TRIALS):
        started = time.perf_counter()
        session.run(None, {"x": rows})
        taken.append(time.perf_counter() - started)
    return float(np.median(taken)) / TRIAL_ROWS / TRIAL_LAYERS
