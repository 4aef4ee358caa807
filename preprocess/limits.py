"""Bounds that every kind holds its inputs to."""

from __future__ import annotations

import base64
import binascii

from jobs.errors import InvalidInputError, PayloadTooLargeError


def check_size(size_bytes: int, bytes_max: int) -> None:
    """PayloadTooLargeError where a decoded input has more than ``bytes_max`` bytes."""
    if size_bytes > bytes_max:
        raise PayloadTooLargeError(f"the decoded input has {size_bytes} bytes; this model takes up to {bytes_max}")


def decode_base64(text: str, bytes_max: int, pointer: str) -> bytes:
    """Decode standard, padded base64.

    PayloadTooLargeError before anything is decoded, InvalidInputError at ``pointer`` where it is not base64.
    """
    check_size(len(text) // 4 * 3 - text.count("=", -2), bytes_max)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        detail = "not base64; expected the standard alphabet with padding and without line breaks"
        raise InvalidInputError(detail, pointer=pointer) from None
