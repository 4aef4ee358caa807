"""Picture files for hostile hands: whole ones, and ones that lie."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

NOISE = np.random.default_rng(7).integers(0, 256, (32, 48, 3), np.uint8)
RAMP = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10


def file(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The picture as a file of a format."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A grey PNG that claims a size and holds these chunks."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG whose frame header claims a size."""
    data = bytearray(file(Image.fromarray(NOISE), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_frame(width: int, height: int) -> bytes:
    """A GIF of 4 x 4 whose frame claims more."""
    data = bytearray(file(Image.new("P", (4, 4)), "GIF"))
    at = data.index(b",\0\0\0\0")
    data[at + 5 : at + 9] = struct.pack("<HH", width, height)
    return bytes(data)


def sixteen_bit_colour(samples: np.ndarray[Any, np.dtype[np.uint16]]) -> bytes:
    """A PNG of 16 bits a sample, which Pillow does not write."""
    height, width, _ = samples.shape
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """``image`` as a camera that stood so would store it: EXIF's orientation undoes the turn (Exif 2.32, tag 274)."""
    stored_by = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return image.transpose(stored_by[orientation])


def exif_of(orientation: int) -> Image.Exif:
    """An EXIF block that says how the camera stood."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif
