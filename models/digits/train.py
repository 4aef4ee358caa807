"""Train the example model: handwritten digits of 8 x 8 pixels, from scikit-learn's bundled data.

Writes ``1/model.onnx``, ``samples/*.png`` and prints the accuracy on the held-out fifth. Everything is seeded:
the same library versions give the same figures. Run from the repository's root: ``python models/digits/train.py``.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

Array = NDArray[Any]

HERE = Path(__file__).parent
SEED = 20_261_121
HIDDEN = 128
EPOCHS = 60
SAMPLES = 12
INK_MAX = 16
"""The data's darkest value; 0 is paper."""
SHIFTS = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
"""Corners of the copies cut from each training image with a margin of one pixel: in place, and moved by one."""
ENLARGED = 8
"""Sample files show each pixel as a square of this side."""


def held_out() -> tuple[Array, Array, Array, Array]:
    """Training and held-out images (n, 8, 8), 0..16, and their labels: stratified, a fifth held out."""
    data = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        data.images, data.target, test_size=0.2, stratify=data.target, random_state=SEED
    )
    return train_x, test_x, train_y, test_y


def fit(images: Array, labels: Array) -> MLPClassifier:
    """Fit a perceptron with one hidden layer to the images and their shifted copies."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    copies = np.concatenate([padded[:, top : top + 8, left : left + 8] for top, left in SHIFTS])
    network = MLPClassifier((HIDDEN,), alpha=1e-3, max_iter=EPOCHS, tol=0.0, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is chosen, not found
        return network.fit(rows(copies), np.tile(labels, len(SHIFTS)))


def rows(images: Array) -> Array:
    """Images as the model takes them: float32, (n, 64), 0..1."""
    return (images.reshape(len(images), -1) / INK_MAX).astype(np.float32)


def export(network: MLPClassifier) -> onnx.ModelProto:
    """Build the graph image (rows, 64) -> logits (rows, 10)."""
    hidden, output = network.coefs_
    weights = {"w1": hidden, "b1": network.intercepts_[0], "w2": output, "b2": network.intercepts_[1]}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["image", "w1", "b1"], ["sums"]),
            helper.make_node("Relu", ["sums"], ["hidden"]),
            helper.make_node("Gemm", ["hidden", "w2", "b2"], ["logits"]),
        ],
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def picture(image: Array) -> Image.Image:
    """Draw dark ink on white paper, 64 x 64; ``model.toml`` turns it back into the very same numbers."""
    pixels = (255 - 15 * image).astype(np.uint8)
    return Image.fromarray(pixels.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1))


def write_samples(images: Array, labels: Array, folder: Path) -> None:
    """Write the first held-out images, each digit at least once, as ``NN-label-D.png``."""
    firsts = [int(np.flatnonzero(labels == digit)[0]) for digit in range(10)]
    others = [index for index in range(len(labels)) if index not in firsts]
    folder.mkdir(exist_ok=True)
    for number, index in enumerate([*firsts, *others[: SAMPLES - len(firsts)]]):
        picture(images[index]).save(folder / f"{number:02}-label-{labels[index]}.png", optimize=True)


def main() -> None:
    """Train, export, write samples, print the figures of the model card."""
    train_x, test_x, train_y, test_y = held_out()
    network = fit(train_x, train_y)
    (HERE / "1").mkdir(exist_ok=True)
    onnx.save(export(network), HERE / "1" / "model.onnx")
    write_samples(test_x, test_y, HERE / "samples")
    right = int((network.predict(rows(test_x)) == test_y).sum())
    print(f"trained on {len(train_y)} images; held out: {right} of {len(test_y)} right, {right / len(test_y):.2%}")


if __name__ == "__main__":
    main()
