"""A file as it arrives: raw, or as base64 in JSON. Kinds that take files share this door."""

from __future__ import annotations

import msgspec

from jobs.errors import InvalidInputError, MalformedError
from preprocess.limits import decode_base64

POINTER = "/input/base64"
"""Where a file stands in JSON."""


class _Input(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    base64: str


_decode_input = msgspec.json.Decoder(_Input).decode


def file_of_json(raw: bytes | msgspec.Raw, bytes_max: int) -> bytes:
    """Decode the file in ``{"base64": "..."}``.

    InvalidInputError with a JSON pointer, PayloadTooLargeError, MalformedError where it is not JSON.
    """
    try:
        given = _decode_input(raw)
    except msgspec.ValidationError:
        raise InvalidInputError('expected {"base64": "..."} and nothing else', pointer="/input") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedError("the input is not valid JSON, or is nested too deeply") from None
    return decode_base64(given.base64, bytes_max, POINTER)
