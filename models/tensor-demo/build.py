"""Write ``1/model.onnx``: a two-layer perceptron with fixed weights, the same bytes on every run.

Input ``x`` float32 [rows, 64], output ``y`` float32 [rows, 10].
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SEED = 20_261_121
WIDTHS = (64, 128, 10)
OPSET = 17
IR_VERSION = 8


def build() -> onnx.ModelProto:
    """X → Gemm → Relu → Gemm → y."""
    random = np.random.default_rng(SEED)
    weights = []
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(WIDTHS)):
        matrix = random.normal(0.0, fan_in**-0.5, (fan_in, fan_out)).astype(np.float32)
        bias = random.normal(0.0, 0.1, fan_out).astype(np.float32)
        weights += [numpy_helper.from_array(matrix, f"w{layer}"), numpy_helper.from_array(bias, f"b{layer}")]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["sum0"]),
        helper.make_node("Relu", ["sum0"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "w1", "b1"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tensor-demo",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTHS[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", WIDTHS[-1]])],
        weights,
    )
    model = helper.make_model(
        graph,
        producer_name="penstock",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    path = Path(__file__).parent / "1" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(build().SerializeToString(deterministic=True))
    print(f"{path}: {path.stat().st_size} bytes")
