"""What the models answer when ONNX Runtime is called directly: the other side of every comparison."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from tests.system import ROOT

WIDTH = 64


@functools.cache
def _session(model: str) -> Any:
    return onnxruntime.InferenceSession(ROOT / "models" / model / "1" / "model.onnx")


def inputs(count: int, seed: int) -> NDArray[np.float32]:
    """Distinct inputs for tensor-demo, a row each."""
    return np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)


def outputs(rows: NDArray[np.float32], model: str = "tensor-demo") -> NDArray[np.float32]:
    """What the graph itself gives for these rows."""
    session = _session(model)
    answer: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: rows})[0]
    return answer
