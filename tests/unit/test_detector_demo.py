"""The example detector: squares at known places, through all three stages, and boxes exactly there."""

from __future__ import annotations

import importlib.util
import io
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import pytest
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
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


@cache
def record() -> ModelRecord:
    (version,) = [each for each in scan(MODELS).versions if each.name == "detector-demo"]
    signature = Session.open(version.folder / "model.onnx", threads=1).signature
    return placed_record(version.folder, signature, version.config)


def picture(width: int, height: int, *squares: tuple[str, tuple[int, int, int, int]], paper: str = "black") -> bytes:
    """A PNG with coloured squares, each (x1, y1, x2, y2)."""
    image = Image.new("RGB", (width, height), paper)
    for colour, box in squares:
        image.paste(COLOURS[colour], box)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def documents(files: list[bytes]) -> list[Any]:
    """The files through all three stages, in one batch."""
    pre, post = preprocess.kinds.kind(record()), postprocess.kinds.kind(record())
    items = [sound(item) for item in pre.run([pre.from_bytes("image/png", file) for file in files])]
    return post.run([sound(item) for item in Engine(MODELS, 1).run(record(), items)])


def sound(outcome: Any) -> Any:
    assert not isinstance(outcome, PenstockError), outcome
    return outcome


def found(document: Any) -> list[tuple[str, list[float]]]:
    """Labels and boxes by place; every score is 1 to the last float32."""
    detections = document["detections"]
    assert [each["score"] for each in detections] == pytest.approx([1.0] * len(detections), abs=1e-6)
    return sorted((each["label"], each["box"]) for each in detections)


def test_squares_are_found_where_they_stand() -> None:
    squares = [
        ("red", (0, 0, 8, 8)),
        ("blue", (30, 12, 38, 20)),
        ("green", (56, 56, 64, 64)),
        ("red", (8, 40, 16, 48)),
    ]
    for paper in ("black", "white", "gray"):
        (document,) = documents([picture(64, 64, *squares, paper=paper)])
        assert found(document) == sorted((colour, [*map(float, box)]) for colour, box in squares)


@pytest.mark.parametrize(("width", "height"), [(128, 64), (64, 128), (640, 320), (192, 96), (16, 32), (28, 64)])
def test_boxes_are_those_of_the_picture_as_it_was_sent(width: int, height: int) -> None:
    side = max(width, height) // 8
    first, last = (0, 0, side, side), (width - side, height - side, width, height)
    (document,) = documents([picture(width, height, ("green", first), ("blue", last))])
    assert found(document) == [("blue", [*map(float, last)]), ("green", [*map(float, first)])]


def test_a_picture_with_no_more_than_a_line_has_no_square() -> None:
    assert found(documents([picture(256, 4, ("red", (0, 0, 4, 4)))])[0]) == []


def test_a_picture_turned_by_exif_has_its_boxes_upright() -> None:
    image = Image.new("RGB", (128, 64))
    image.paste(COLOURS["red"], (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the corner at the left goes to the right
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    assert found(documents([buffer.getvalue()])[0]) == [("red", [48, 0, 64, 16])]


def test_pictures_of_many_sizes_share_a_batch_and_each_keeps_its_own_boxes() -> None:
    sizes = [(64, 64, 1), (128, 64, 2), (64, 128, 2), (256, 256, 4), (64, 64, 1)]
    files = [picture(width, height, ("blue", (0, 0, 8 * factor, 8 * factor))) for width, height, factor in sizes]
    got = [found(document) for document in documents([*files, picture(64, 64)])]
    assert got == [*([("blue", [0, 0, 8.0 * factor, 8.0 * factor])] for *_, factor in sizes), []]


def test_the_graph_is_what_the_script_builds_small_and_old_enough_for_any_runtime() -> None:
    file = MODELS / "detector-demo" / "1" / "model.onnx"
    spec = importlib.util.spec_from_file_location("build_detector_demo", MODELS / "detector-demo" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.build().SerializeToString(deterministic=True) == file.read_bytes()
    model = onnx.load(file)
    assert file.stat().st_size <= 20_000
    assert model.ir_version <= 10
    assert max(each.version for each in model.opset_import) <= 21
