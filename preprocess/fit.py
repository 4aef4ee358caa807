"""A picture brought to the size that a model takes, and where its pixels lie then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from PIL import Image

from jobs.placement import Placement

Fit = Literal["stretch", "letterbox", "crop"]
Size = tuple[int, int]
"""Height and width."""


def fitted(
    image: Image.Image, size: Size, fit: Fit, resample: Image.Resampling, pad_value: int
) -> tuple[Image.Image, Placement]:
    """The picture at ``size``.

    ``stretch`` ignores its aspect; ``letterbox`` keeps it and fills what is left on both sides with ``pad_value``;
    ``crop`` keeps it and cuts what sticks out on both sides. Memory is that of ``size``, whatever the aspect.
    """
    return _FITS[fit](image, size, resample, pad_value)


def _stretch(
    image: Image.Image, size: Size, resample: Image.Resampling, _pad_value: int
) -> tuple[Image.Image, Placement]:
    height, width = size
    placement = Placement(image.height, image.width, height / image.height, width / image.width)
    return image.resize((width, height), resample), placement


def _letterbox(
    image: Image.Image, size: Size, resample: Image.Resampling, pad_value: int
) -> tuple[Image.Image, Placement]:
    height, width = size
    ratio = min(height / image.height, width / image.width)
    inner_height = min(height, max(1, round(image.height * ratio)))
    inner_width = min(width, max(1, round(image.width * ratio)))
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    canvas = Image.new(image.mode, (width, height), (pad_value,) * len(image.mode))
    canvas.paste(image.resize((inner_width, inner_height), resample), (left, top))
    scale_y, scale_x = inner_height / image.height, inner_width / image.width
    return canvas, Placement(image.height, image.width, scale_y, scale_x, top, left)


def _crop(
    image: Image.Image, size: Size, resample: Image.Resampling, _pad_value: int
) -> tuple[Image.Image, Placement]:
    height, width = size
    ratio = max(height / image.height, width / image.width)
    shown_height, shown_width = min(image.height, height / ratio), min(image.width, width / ratio)
    top, left = (image.height - shown_height) / 2, (image.width - shown_width) / 2
    box = (left, top, left + shown_width, top + shown_height)
    placement = Placement(image.height, image.width, ratio, ratio, -top * ratio, -left * ratio)
    return image.resize((width, height), resample, box), placement


_FITS: dict[Fit, Callable[[Image.Image, Size, Image.Resampling, int], tuple[Image.Image, Placement]]] = {
    "stretch": _stretch,
    "letterbox": _letterbox,
    "crop": _crop,
}
