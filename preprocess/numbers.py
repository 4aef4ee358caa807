"""One input of a graph, read from JSON numbers or from bytes, strictly.

Floats are rounded to the nearest value of the dtype; integers are exact. What the dtype cannot hold (1e300 in
float32, 300 in uint8), booleans and strings for numbers, ragged lists and wrong shapes are refused with a
JSON pointer. The size is bounded before anything is decoded: a list has no more numbers than commas + 1.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
from collections.abc import Sequence
from types import GenericAlias
from typing import Annotated, Any, NoReturn

import msgspec
import numpy as np

from jobs.errors import InvalidInputError, MalformedError, PayloadTooLargeError
from jobs.models import Limits, TensorSpec
from jobs.tensors import DTYPES, Buffer
from preprocess.limits import check_size, decode_base64

Dims = tuple[int | None, ...]

_lead = re.compile(rb"[ \t\r\n\[]*").match
_place = re.compile(r"`\$((?:\[\d+\])+)`$").search
_words = re.compile(r"Expected `(\w+)`, got `(\w+)`").match
_EXPECTED = {"float": "a number", "int": "an integer", "bool": "true or false", "array": "a list"}


class _Described(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor with its shape spelled out; exactly one of ``data`` and ``base64``."""

    shape: msgspec.Raw
    dtype: str = ""
    data: msgspec.Raw = msgspec.Raw()
    base64: str | None = None


_SHAPE_BYTES_MAX = 1_000
"""Length of a shape's text: more than any graph needs is refused unread."""

_decode_described = msgspec.json.Decoder(_Described).decode
_decode_shape = msgspec.json.Decoder(list[Annotated[int, msgspec.Meta(ge=1)]]).decode


def is_object(text: bytes) -> bool:
    """Whether the JSON value is an object."""
    return text.startswith(b"{") or text.lstrip(b" \t\r\n").startswith(b"{")


class _PlainRow:
    """The gateway's hot path: one row without the row axis, of fixed dimensions, and nothing wrong with it.

    The decoder itself checks the lengths. What is not so is read again, slowly, by whom can say what is wrong.
    """

    _CHARACTERS_MAX = 32
    """For each number, so that decoding is bounded by the shape; no float needs more than 24."""

    def __init__(self, dims: Sequence[int], leaf: Any, code: str) -> None:
        self.shape = (1, *dims)
        count = math.prod(dims)
        self.text_max = count * self._CHARACTERS_MAX
        self._levels = len(dims) - 1
        self._pack = struct.Struct(f"<{count}{code}").pack
        form = leaf
        for dim in reversed(dims):
            form = Annotated[GenericAlias(list, form), msgspec.Meta(min_length=dim, max_length=dim)]
        self._decode = msgspec.json.Decoder(form).decode

    def pack(self, text: bytes) -> bytes | None:
        """The row's bytes, None where ``text`` is anything else."""
        try:
            values = self._decode(text)
            for _ in range(self._levels):
                values = itertools.chain.from_iterable(values)
            return self._pack(*values)
        except (msgspec.DecodeError, struct.error, OverflowError):
            return None


class NumbersInput:
    """Reads one input; ``row_bytes`` is the size of a row, 0 where a dimension besides axis 0 is open."""

    def __init__(self, spec: TensorSpec, limits: Limits) -> None:
        dtype = DTYPES[spec.dtype]
        self._dtype, self._itemsize = spec.dtype, dtype.itemsize
        self._row: Dims = spec.shape[1:]
        self._rows_max, self._bytes_max = limits.rows_max, limits.input_bytes_max
        fixed = [dim for dim in self._row if dim is not None]
        self.row_bytes = math.prod(fixed) * dtype.itemsize if len(fixed) == len(self._row) else 0
        self._leaf = {"f": float, "b": bool}.get(dtype.kind, int)
        self._format = dtype.char if dtype.kind == "f" else _FORMATS[spec.dtype]
        self._decode = {depth: _decoder(self._leaf, depth) for depth in (len(self._row), len(self._row) + 1)}
        self._flat = _decoder(self._leaf, 1)
        self._plain = _PlainRow(fixed, self._leaf, self._format) if self.row_bytes and fixed else None

    def from_json(self, text: bytes, pointer: str) -> Buffer:
        """Read a nested list or a described tensor."""
        if self._plain is not None and len(text) <= self._plain.text_max and self.row_bytes <= self._bytes_max:
            data = self._plain.pack(text)
            if data is not None:
                return self._dtype, self._plain.shape, data
        return self._from_any(text, pointer)

    def _from_any(self, text: bytes, pointer: str) -> Buffer:
        lead = _lead(text)
        depth = lead.group().count(b"[") if lead else 0
        if depth == 0 and is_object(text):
            return self._from_described(text, pointer)
        decode = self._decode.get(depth)
        if decode is None:
            self._refuse(f"got lists nested {depth} deep" if depth else "got no list", pointer)
        self._check_count(text, pointer)
        nested = self._read(decode, text, pointer)
        shape, flat = self._flatten(nested, depth, pointer)
        return self._dtype, self._with_rows(shape, pointer), self._pack(flat, shape, pointer)

    def from_bytes(self, body: bytes) -> Buffer:
        """One or more rows, little-endian, C order; needs ``row_bytes``."""
        check_size(len(body), self._bytes_max)
        rows, rest = divmod(len(body), self.row_bytes)
        if rest or not 1 <= rows <= self._rows_max:
            raise InvalidInputError(
                f"the body has {len(body)} bytes; expected {self.row_bytes} ({self._dtype}) for each of "
                f"1 to {self._rows_max} rows"
            )
        return self._of_bytes(body, (rows, *self._row), None)

    def _from_described(self, text: bytes, pointer: str) -> Buffer:
        given, dims = self._described(text, pointer)
        shape = self._with_rows(self._fitting(dims, pointer), pointer)
        size = math.prod(shape) * self._itemsize
        check_size(size, self._bytes_max)
        if given.base64 is not None:
            data = decode_base64(given.base64, self._bytes_max, f"{pointer}/base64")
            if len(data) != size:
                raise InvalidInputError(f"{len(data)} bytes, expected {size}", pointer=f"{pointer}/base64")
            return self._of_bytes(data, shape, f"{pointer}/base64")
        return (
            self._dtype,
            shape,
            self._of_list(bytes(given.data), math.prod(shape), f"{pointer}/data"),
        )

    def _described(self, text: bytes, pointer: str) -> tuple[_Described, list[int]]:
        form = 'expected {"shape": [...], "data": [...]} or {"shape": [...], "base64": "..."}'
        try:
            given = _decode_described(text)
            if len(bytes(given.shape)) > _SHAPE_BYTES_MAX:
                raise InvalidInputError("the shape is longer than that of any graph", pointer=f"{pointer}/shape")
            dims = _decode_shape(given.shape)
        except msgspec.ValidationError:
            raise InvalidInputError(f"not a tensor; {form}", pointer=pointer) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise _malformed() from None
        if given.dtype not in ("", self._dtype):
            raise InvalidInputError(f"wrong dtype, expected {self._dtype}", pointer=f"{pointer}/dtype")
        if bool(bytes(given.data)) == (given.base64 is not None):
            raise InvalidInputError(f"exactly one of data and base64 is needed; {form}", pointer=pointer)
        return given, dims

    def _fitting(self, shape: list[int], pointer: str) -> tuple[int, ...]:
        """``shape`` with or without the row axis, if it fits the graph."""
        row = shape[1:] if len(shape) == len(self._row) + 1 else shape
        fits = len(row) == len(self._row) and all(dim in (None, got) for dim, got in zip(self._row, row, strict=True))
        if not fits:
            self._refuse(
                f"got shape {shape if len(shape) <= len(self._row) + 1 else f'of {len(shape)} axes'}", pointer
            )
        return tuple(shape)

    def _of_bytes(self, data: bytes, shape: Any, pointer: str | None) -> Buffer:
        if self._leaf is bool and data.strip(b"\0\1"):
            raise InvalidInputError("a byte of a bool tensor is neither 0 nor 1", pointer=pointer)
        if self._leaf is float and np.isnan(np.frombuffer(data, DTYPES[self._dtype])).any():
            raise InvalidInputError("a value is NaN", pointer=pointer)
        return self._dtype, shape, data

    def _of_list(self, text: bytes, count: int, pointer: str) -> bytes:
        self._check_count(text, pointer)
        flat = self._read(self._flat, text, pointer)
        if len(flat) != count:
            raise InvalidInputError(f"{len(flat)} values, expected {count} for this shape", pointer=pointer)
        return self._pack(flat, (count,), pointer)

    def _check_count(self, text: bytes, pointer: str) -> None:
        """Refuse, before decoding, what has more numbers than the limits allow."""
        count = text.count(b",") + 1
        if count * self._itemsize > self._bytes_max:
            raise PayloadTooLargeError(
                f"the input has about {count} numbers of {self._itemsize} bytes; "
                f"this model takes up to {self._bytes_max} bytes",
                pointer=pointer,
            )
        if 0 < self.row_bytes * self._rows_max < count * self._itemsize:
            self._refuse(f"got about {count} numbers", pointer)

    def _read(self, decode: Any, text: bytes, pointer: str) -> Any:
        try:
            return decode(text)
        except msgspec.ValidationError as error:
            place = _place(str(error))
            pointer += place[1].replace("[", "/").replace("]", "") if place else ""
            raise InvalidInputError(self._expectation(str(error)), pointer=pointer) from None
        except msgspec.DecodeError:
            raise _malformed() from None

    def _expectation(self, text: str) -> str:
        """Our words for what the decoder found."""
        words = _words(text)
        if words is None:
            return f"the number is out of the range of {self._dtype}"
        return f"expected {_EXPECTED.get(words[1], words[1])} ({self._dtype}), got {words[2]}"

    def _flatten(self, nested: Any, depth: int, pointer: str) -> tuple[tuple[int, ...], list[Any]]:
        """Shape and leaves of ``nested``, whose lists are as long as the graph, or their sibling, says."""
        dims = self._row if depth == len(self._row) else (None, *self._row)
        shape: tuple[int, ...] = ()
        level: list[Any] = [nested]
        for dim in dims:
            size = dim or len(level[0])
            for index, each in enumerate(level):
                if len(each) != size or not each:
                    detail = f"got {len(each)} values here, expected {size or 'at least 1'}"
                    self._refuse(detail, pointer + _indices(index, shape))
            shape += (size,)
            level = level[0] if len(level) == 1 else list(itertools.chain.from_iterable(level))
        return shape, level

    def _with_rows(self, shape: tuple[int, ...], pointer: str) -> tuple[int, ...]:
        if len(shape) == len(self._row):
            return (1, *shape)
        if shape[0] > self._rows_max:
            self._refuse(f"got {shape[0]} rows", pointer)
        return shape

    def _pack(self, flat: Sequence[Any], shape: tuple[int, ...], pointer: str) -> bytes:
        try:
            return struct.pack(f"<{len(flat)}{self._format}", *flat)
        except (struct.error, OverflowError):
            index = next(index for index, value in enumerate(flat) if not self._holds(value))
            raise InvalidInputError(
                f"the number is out of the range of {self._dtype}", pointer=pointer + _indices(index, shape)
            ) from None

    def _holds(self, value: float) -> bool:
        try:
            struct.pack(f"<{self._format}", value)
        except (struct.error, OverflowError):
            return False
        return True

    def _refuse(self, got: str, pointer: str) -> NoReturn:
        row = ", ".join("any" if dim is None else str(dim) for dim in self._row)
        many = f"[rows, {row}]" if row else "[rows]"
        one = f"[{row}] or " if row else "a single value or "
        raise InvalidInputError(
            f"{got}; expected {self._dtype} of shape {one}{many} with 1 to {self._rows_max} rows",
            pointer=pointer,
        )


_FORMATS = {
    "bool": "?",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
}
"""Codes of ``struct`` in its standard sizes; those of floats are NumPy's own."""


def _decoder(leaf: Any, depth: int) -> Any:
    form: Any = leaf
    for _ in range(depth):
        form = GenericAlias(list, form)
    return msgspec.json.Decoder(form).decode


def _indices(index: int, shape: tuple[int, ...]) -> str:
    """Write the JSON pointer of the flat ``index`` into an array of ``shape``."""
    parts: list[str] = []
    for size in reversed(shape):
        index, part = divmod(index, size)
        parts.append(f"/{part}")
    return "".join(reversed(parts))


def _malformed() -> MalformedError:
    return MalformedError("the input is not valid JSON, or is nested too deeply")
