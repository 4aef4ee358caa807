"""The example model: its samples, its size, and the figures of its card."""

from __future__ import annotations

import importlib.util
import io
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

import postprocess.kinds
import preprocess.kinds
from inference.engine import Engine
from inference.repository import scan
from inference.session import Session
from jobs.errors import PenstockError
from jobs.models import ModelRecord
from tests.unit.graphs import placed_record

MODELS = Path(__file__).parents[2] / "models"
DIGITS = MODELS / "digits"
SAMPLES = sorted((DIGITS / "samples").glob("*.png"))


@cache
def train() -> ModuleType:
    """The training script, as a module."""
    spec = importlib.util.spec_from_file_location("train_digits", DIGITS / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def record() -> ModelRecord:
    (version,) = [each for each in scan(MODELS).versions if each.name == "digits"]
    signature = Session.open(version.folder / "model.onnx", threads=1).signature
    return placed_record(version.folder, signature, version.config)


def documents(files: list[bytes]) -> list[Any]:
    """The files through all three stages."""
    pre, post = preprocess.kinds.kind(record()), postprocess.kinds.kind(record())
    items = [item for item in pre.run([pre.from_bytes("image/png", file) for file in files]) if not_error(item)]
    outputs = [item for item in Engine(MODELS, 1).run(record(), items) if not_error(item)]  # type: ignore[arg-type]
    return post.run(outputs)  # type: ignore[arg-type]


def not_error(outcome: object) -> bool:
    assert not isinstance(outcome, PenstockError), outcome
    return True


def test_every_sample_gets_its_label() -> None:
    got = [document["label"] for document in documents([file.read_bytes() for file in SAMPLES])]
    assert got == [file.stem[-1] for file in SAMPLES]


def test_the_samples_are_a_dozen_with_every_digit() -> None:
    names = [re.fullmatch(r"(\d\d)-label-(\d)", file.stem) for file in SAMPLES]
    assert [name and name[1] for name in names] == [f"{number:02}" for number in range(12)]
    assert {name and name[2] for name in names} == set("0123456789")


def test_the_samples_are_held_out_images_and_come_back_exactly() -> None:
    pre = preprocess.kinds.kind(record())
    _, images, _, _ = train().held_out()
    expected = {row.tobytes() for row in train().rows(images)}
    for file in SAMPLES:
        (item,) = pre.run([pre.from_bytes("image/png", file.read_bytes())])
        assert not isinstance(item, PenstockError)
        sixteenths: NDArray[Any] = np.round(item["image"] * 16) / 16
        np.testing.assert_allclose(item["image"], sixteenths, atol=1e-6)
        assert sixteenths.astype(np.float32).tobytes() in expected


def test_the_held_out_accuracy_is_the_cards() -> None:
    card = re.search(r"\*\*([\d.]+) %\*\* \((\d+) of (\d+)\)", (DIGITS / "README.md").read_text())
    assert card is not None
    _, images, _, labels = train().held_out()
    session = Session.open(DIGITS / "1" / "model.onnx", threads=1)
    right = int((session.run({"image": train().rows(images)})["logits"].argmax(axis=1) == labels).sum())
    assert (right, len(labels)) == (int(card[2]), int(card[3]))
    assert float(card[1]) == pytest.approx(100 * right / len(labels), abs=0.005)
    assert right / len(labels) >= 0.97


def test_the_graph_is_small_and_old_enough_for_any_runtime() -> None:
    file = DIGITS / "1" / "model.onnx"
    model = onnx.load(file)
    assert file.stat().st_size <= 300_000
    assert model.ir_version <= 10
    assert max(each.version for each in model.opset_import) <= 21


def test_a_drawing_in_colour_of_another_size_is_read_too() -> None:
    drawing = Image.open(DIGITS / "samples" / "00-label-0.png").convert("RGB").resize((200, 300))
    (document,) = documents([_png(drawing)])
    assert document["label"] == "0"
    assert [set(each) for each in document["top"]] == [{"label", "score"}] * 3


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
