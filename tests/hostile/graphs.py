"""Models that show what arrives: each gives back what it is given, exactly."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto, helper

from tests.unit.graphs import graph, place

WIDTH = 4
_IMAGES = '[preprocess]\nkind = "image"\n[preprocess.options]\nlayout = "NHWC"\npixels_max = 1_000_000\n'


def place_echoes(models: Path) -> None:
    """``pixels`` (pictures, RGB), ``halves``, ``exact`` and ``whole`` (float16, float64, int64), ``pair`` (a + b)."""
    same = helper.make_node("Identity", ["x"], ["y"])
    pixels = graph([same], {"x": ["rows", "h", "w", 3]}, {"y": ["rows", "h", "w", 3]})
    place(models, pixels, "pixels")
    (models / "pixels" / "model.toml").write_text(_IMAGES)
    for name, dtype in (("halves", TensorProto.FLOAT16), ("exact", TensorProto.DOUBLE), ("whole", TensorProto.INT64)):
        place(models, graph([same], {"x": ["rows", WIDTH]}, {"y": ["rows", WIDTH]}, dtype=dtype), name)
    add = helper.make_node("Add", ["a", "b"], ["y"])
    place(models, graph([add], {"a": ["rows", 2], "b": ["rows", 2]}, {"y": ["rows", 2]}), "pair")
