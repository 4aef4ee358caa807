"""Pictures brought to a model's size: every way keeps its promise, and says where the pixels went."""

from __future__ import annotations

import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from jobs.errors import PenstockError, SetupError
from jobs.models import ModelConfig, StageConfig
from jobs.placement import PLACEMENT, Placement
from jobs.tensors import Tensors
from preprocess.kinds import Kind, check, kind
from tests.unit.graphs import record_of


def made(*, detection: bool = True, name: str = "x", **options: Any) -> Kind:
    """An image kind in front of a detector, or of a classifier."""
    post = StageConfig("detection" if detection else "classification", {"labels": ["a"]})
    config = ModelConfig(preprocess=StageConfig("image", {"layout": "NHWC", **options}), postprocess=post)
    return kind(record_of((name, "uint8", (None, None, None, None)), config=config))


def item(picture: NDArray[np.uint8], **options: Any) -> Tensors:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    asked = made(**options)
    (outcome,) = asked.run([asked.from_bytes("image/png", buffer.getvalue())])
    assert not isinstance(outcome, PenstockError), outcome
    return outcome


def fitted(picture: NDArray[np.uint8], size: tuple[int, int], fit: str, **options: Any) -> tuple[Any, Placement]:
    """The pixels that the model sees, and the placement."""
    got = item(picture, resize=list(size), fit=fit, **options)
    return got["x"][0], Placement(*got[PLACEMENT][0].tolist())


def chequered(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), np.uint8)


def test_a_letterbox_keeps_the_aspect_and_pads_both_sides() -> None:
    picture = chequered(4, 8)
    pixels, placement = fitted(picture, (8, 8), "letterbox")
    np.testing.assert_array_equal(pixels[2:6], picture)
    assert set(pixels[[0, 1, 6, 7]].ravel().tolist()) == {114}
    assert placement == Placement(4, 8, 1, 1, 2, 0)


def test_a_letterbox_of_a_tall_picture_pads_left_and_right_with_a_value_of_choice() -> None:
    picture = chequered(16, 8)
    pixels, placement = fitted(picture, (8, 8), "letterbox", pad_value=0, filter="box")
    halves = picture.reshape(8, 2, 4, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(pixels[:, 2:6], halves, atol=1)
    assert not pixels[:, [0, 1, 6, 7]].any()
    assert placement == Placement(16, 8, 0.5, 0.5, 0, 2)


def test_a_letterbox_of_grey_is_padded_too() -> None:
    pixels, _ = fitted(chequered(2, 4), (4, 4), "letterbox", mode="L")
    assert pixels.shape == (4, 4, 1)
    assert set(pixels[[0, 3]].ravel().tolist()) == {114}


def test_a_crop_keeps_the_middle() -> None:
    picture = chequered(4, 10)
    pixels, placement = fitted(picture, (4, 4), "crop")
    np.testing.assert_array_equal(pixels, picture[:, 3:7])
    assert placement == Placement(4, 10, 1, 1, 0, -3)


def test_a_crop_scales_the_short_side() -> None:
    picture = chequered(16, 8)
    pixels, placement = fitted(picture, (4, 4), "crop", filter="box")
    np.testing.assert_allclose(pixels, picture[4:12].reshape(4, 2, 4, 2, 3).mean(axis=(1, 3)), atol=1)
    assert placement == Placement(16, 8, 0.5, 0.5, -2, 0)


def test_a_stretch_fills_the_size() -> None:
    picture = chequered(2, 8)
    pixels, placement = fitted(picture, (4, 4), "stretch", filter="box")
    np.testing.assert_allclose(pixels[::2], picture.reshape(2, 4, 2, 3).mean(axis=2), atol=1)
    assert placement == Placement(2, 8, 2, 0.5, 0, 0)


sides = st.integers(1, 300)


@given(sides, sides, st.integers(1, 64), st.integers(1, 64), st.sampled_from(["stretch", "letterbox", "crop"]))
def test_corners_of_the_picture_lie_where_the_placement_says(
    height: int, width: int, to_height: int, to_width: int, fit: str
) -> None:
    pixels, placed = fitted(np.full((height, width, 3), 255, np.uint8), (to_height, to_width), fit, pad_value=0)
    assert pixels.shape == (to_height, to_width, 3)
    assert (placed.height, placed.width) == (height, width)
    top, bottom = placed.offset_y, height * placed.scale_y + placed.offset_y
    left, right = placed.offset_x, width * placed.scale_x + placed.offset_x
    seen = np.zeros((to_height, to_width), bool)
    seen[max(round(top), 0) : round(bottom), max(round(left), 0) : round(right)] = True
    np.testing.assert_array_equal(pixels[..., 0] == 255, seen)
    if fit == "letterbox":
        assert max(abs(top - (to_height - bottom)), abs(left - (to_width - right))) <= 1 + 1e-9
        assert to_height - (bottom - top) < 1 or to_width - (right - left) < 1
    if fit == "crop":
        assert max(top, left, to_height - bottom, to_width - right) <= 1e-9


def test_a_picture_of_one_line_costs_no_more_than_the_size_asked_for() -> None:
    line = np.zeros((1, 60_000, 3), np.uint8)
    tracemalloc.start()
    for fit in ("stretch", "letterbox", "crop"):
        pixels, _ = fitted(line, (64, 64), fit)
        assert pixels.shape == (64, 64, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000


def test_the_turned_picture_is_the_one_that_is_placed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(chequered(4, 8)).save(buffer, "PNG", exif=exif)
    asked = made(resize=[8, 8], fit="letterbox")
    (got,) = asked.run([asked.from_bytes("image/png", buffer.getvalue())])
    assert isinstance(got, dict)
    assert got[PLACEMENT].tolist() == [[8, 4, 1, 1, 0, 2]]


def test_without_resize_the_picture_lies_as_it_is() -> None:
    assert item(chequered(3, 5))[PLACEMENT].tolist() == [[3, 5, 1, 1, 0, 0]]


def test_only_detection_is_told_the_placement() -> None:
    assert item(chequered(3, 5), detection=False).keys() == {"x"}


@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_a_fit_without_a_size_is_a_setup_error(fit: str) -> None:
    with pytest.raises(SetupError, match=r"preprocess\.options\.fit: .* give resize"):
        made(fit=fit)


def test_an_input_may_not_take_the_placements_name() -> None:
    assert made(detection=False, name=PLACEMENT)
    with pytest.raises(SetupError, match="another name"):
        made(name=PLACEMENT)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fit": "cover"}, "preprocess.options.fit"),
        ({"pad_value": 256}, "preprocess.options.pad_value: Expected `int` <= 255"),
        ({"pad_value": -1}, "preprocess.options.pad_value"),
    ],
)
def test_wrong_options_name_key_and_remedy(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SetupError) as caught:
        check(StageConfig("image", options))
    assert says in str(caught.value)
