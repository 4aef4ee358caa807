"""Write ``1/model.onnx``: a detector of coloured squares whose answers are known; the same bytes on every run.

Input ``image`` uint8 [rows, 3, 64, 64], output ``boxes`` float32 [rows, 4 + 3, 841] as YOLOv8 gives it: centre x,
centre y, width, height, then a score for red, green and blue.

A window of 8 x 8 pixels moves over the picture in steps of 2. Its score for a colour is how much more of that colour
than of the mean of the two others it holds: 1 where a square fills it, 0.75 one step beside, 0 on anything grey.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 64
WINDOW = 8
STEP = 2
COLOURS = 3
STEPS = (SIDE - WINDOW) // STEP + 1
ANCHORS = STEPS**2
OPSET = 17
IR_VERSION = 8


def build() -> onnx.ModelProto:
    """Image → Conv (contrast of colours) → Relu → scores, under the constant boxes of the windows."""
    contrast = np.full((COLOURS, COLOURS), -0.5) + 1.5 * np.eye(COLOURS)
    weights = np.tile(contrast[:, :, np.newaxis, np.newaxis], (1, 1, WINDOW, WINDOW)) / (255 * WINDOW**2)
    constants = {
        "contrast": weights.astype(np.float32),
        "flat": np.array([0, COLOURS, ANCHORS], np.int64),
        "places": _places(),
        "all": np.array([4, ANCHORS], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["pixels", "contrast"], ["colours"], strides=[STEP, STEP]),
        helper.make_node("Relu", ["colours"], ["bright"]),
        helper.make_node("Reshape", ["bright", "flat"], ["scores"]),
        helper.make_node("Shape", ["image"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["rows", "all"], ["shape"], axis=0),
        helper.make_node("Expand", ["places", "shape"], ["windows"]),
        helper.make_node("Concat", ["windows", "scores"], ["boxes"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "detector-demo",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["rows", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["rows", 4 + COLOURS, ANCHORS])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="penstock",
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _places() -> NDArray[np.float32]:
    """Centre and size of every window, [4, ANCHORS], row by row."""
    starts = STEP * np.arange(STEPS) + WINDOW / 2
    centre_y, centre_x = np.meshgrid(starts, starts, indexing="ij")
    size = np.full(ANCHORS, WINDOW)
    return np.stack([centre_x.ravel(), centre_y.ravel(), size, size]).astype(np.float32)


if __name__ == "__main__":
    path = Path(__file__).parent / "1" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(build().SerializeToString(deterministic=True))
    print(f"{path}: {path.stat().st_size} bytes")
