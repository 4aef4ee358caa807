"""Format and size of an image from its first bytes, read without a decoder.

The door asks this and nothing more, so that neither an image bomb nor a decoder's fault reaches the gateway.
The format is what the bytes say, never what a name or a media type says.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""SOF0 to SOF15; between them lie DHT, JPG and DAC (ITU T.81, table B.1)."""
_SEGMENTS_MAX = 1_000
"""JPEG segments looked at before the frame header; a 5 MB colour profile takes 80."""


class Header(NamedTuple):
    """Media type, and width and height in pixels as the file gives them (before EXIF orientation)."""

    media_type: str
    width: int
    height: int


def read_header(data: bytes) -> Header | None:
    """Read the header of a PNG, JPEG, GIF, BMP or WebP; None where it is another format or broken."""
    for magic, media_type, read in _FORMATS:
        if data.startswith(magic):
            try:
                width, height = read(data)
            except (struct.error, IndexError, ValueError):
                return None
            return Header(media_type, width, height)
    return None


def _png(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise ValueError("IHDR is not the first chunk")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _bmp(data: bytes) -> tuple[int, int]:
    os2 = struct.unpack_from("<I", data, 14)[0] == 12  # noqa: PLR2004 - size of the OS/2 header, its only mark
    width, height = struct.unpack_from("<HH" if os2 else "<ii", data, 18)
    return width, abs(height)


def _webp(data: bytes) -> tuple[int, int]:
    """RFC 9649: an extended, a lossless or a lossy file."""
    chunk = data[8:16]
    if chunk == b"WEBPVP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"WEBPVP8L" and data[20] == 0x2F:  # noqa: PLR2004 - the signature byte
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"WEBPVP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("not a WebP image")


def _jpeg(data: bytes) -> tuple[int, int]:
    """Walk the segments to the frame header."""
    at = 2
    for _ in range(_SEGMENTS_MAX):
        mark, kind, length = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF:  # noqa: PLR2004 - every marker starts with it
            break
        if kind in _FRAME_HEADERS:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 1 if kind == 0xFF else 2 + length  # noqa: PLR2004 - a fill byte before a marker
    raise ValueError("no frame header")


_FORMATS: tuple[tuple[bytes, str, Callable[[bytes], tuple[int, int]]], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png", _png),
    (b"\xff\xd8\xff", "image/jpeg", _jpeg),
    (b"GIF87a", "image/gif", _gif),
    (b"GIF89a", "image/gif", _gif),
    (b"BM", "image/bmp", _bmp),
    (b"RIFF", "image/webp", _webp),
)
