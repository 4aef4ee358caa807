"""An image file as pixels: decoded by Pillow, turned upright, without transparency, in one colour mode.

All that a decoder may raise becomes an InvalidInputError in our words: Pillow's texts hold addresses.
"""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.errors import InvalidInputError, OutOfMemoryError

Mode = Literal["L", "RGB"]

Image.MAX_IMAGE_PIXELS = None
"""Pillow's own limit warns first and refuses at twice the size; each model's is checked in its place."""

_PILLOW_NAMES = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/gif": "GIF",
    "image/bmp": "BMP",
    "image/webp": "WEBP",
}

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF tag Orientation."""


def decode(media_type: str, data: bytes, mode: Mode, pixels_max: int) -> Image.Image:
    """Decode the first frame, upright, as 8-bit ``L`` or ``RGB``; transparency is laid on white.

    InvalidInputError where the file is broken or has more than ``pixels_max`` pixels.
    """
    try:
        with Image.open(io.BytesIO(data), formats=[_PILLOW_NAMES[media_type]]) as image:
            check_pixels(image.width, image.height, pixels_max)
            image.load()
            return _coloured(_upright(image), mode)
    except InvalidInputError:
        raise
    except MemoryError:
        raise OutOfMemoryError("the image does not fit into the worker's memory") from None
    except Exception:  # noqa: BLE001 - decoders raise whatever they like on hostile files
        raise InvalidInputError("the image is damaged or incomplete; send the whole file") from None


def check_pixels(width: int, height: int, pixels_max: int) -> None:
    """InvalidInputError where an image has no pixel or too many."""
    if width < 1 or height < 1:
        raise InvalidInputError(f"the image is {width} x {height}; expected at least one pixel")
    if width * height > pixels_max:
        raise InvalidInputError(
            f"the image is {width} x {height}; this model takes images of up to {pixels_max} pixels"
        )


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Read the EXIF orientation; 1 (upright) where the EXIF block is missing or broken, as viewers do."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - a broken EXIF block does not spoil the pixels
        return 1


def _coloured(image: Image.Image, mode: Mode) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_eight_bit(image))
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        opaque.alpha_composite(image.convert("RGBA"))
        image = opaque
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")  # CMYK and palettes first, so that grey comes from the shown colours
    return image.convert(mode)


def _eight_bit(image: Image.Image) -> NDArray[Any]:
    """16-bit grey as 8-bit: the high byte, as Pillow itself does with 16-bit colour."""
    return (np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8)
