"""Tensors as bytes: how arrays lie in payloads and between stages.

``Tensors`` maps input or output names to arrays; axis 0 is the row axis. The codec keeps dtype, shape and
C order, holds nothing but msgpack, and refuses what does not add up.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

Tensors: TypeAlias = dict[str, NDArray[Any]]

ASIDE = "_"
"""How the name of a tensor begins that no graph takes: it goes past inference, row by row, to the stage behind it."""

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name)
    for name in (
        *("float16", "float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
}

_PASSED = "input:"

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""Names by dtype: ``dtype.name`` computes its answer anew and costs more than the packing."""

Buffer: TypeAlias = tuple[str, tuple[int, ...], bytes]
"""An array before it is one: dtype name, shape, bytes in C order, little-endian."""


class _Packed(msgspec.Struct, array_like=True, frozen=True):
    """One array: its dtype by name, its shape, and its bytes in C order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


class _Group(msgspec.Struct, array_like=True, frozen=True):
    """Neighbouring items of one make: their arrays joined along axis 0, and the rows of each item."""

    rows: list[int]
    joined: dict[str, _Packed]


_encode = msgspec.msgpack.Encoder().encode
_decode_item = msgspec.msgpack.Decoder(dict[str, _Packed]).decode
_decode_groups = msgspec.msgpack.Decoder(list[_Group]).decode


def pack_item(item: Tensors) -> bytes:
    """One item's arrays as bytes; the canonical form of a tensor input."""
    return _encode(_pack(item))


def pack_buffers(item: Mapping[str, Buffer]) -> bytes:
    """What ``pack_item`` gives, from bytes that agree with dtype and shape; for the gateway's hot path."""
    return _encode({name: _Packed(*buffer) for name, buffer in item.items()})


def unpack_item(data: bytes) -> Tensors:
    """The arrays that ``pack_item`` packed, read-only; ValueError where the bytes do not add up."""
    try:
        return _unpack(_decode_item(data))
    except msgspec.DecodeError as error:
        raise ValueError("not a packed item") from error


def pack_items(items: Sequence[Tensors]) -> bytes:
    """Many items as bytes; neighbours of one make (names, dtypes, shapes but for axis 0) are joined.

    Each item has at least one array, and all its arrays the same number of rows.
    """
    return _encode([_join(list(group)) for _, group in itertools.groupby(items, key=make_of)])


def unpack_items(data: bytes) -> list[Tensors]:
    """The items that ``pack_items`` packed, as read-only views; ValueError where the bytes do not add up."""
    try:
        groups = _decode_groups(data)
    except msgspec.DecodeError as error:
        raise ValueError("not packed items") from error
    return [item for group in groups for item in split(_unpack(group.joined), group.rows)]


def make_of(item: Tensors) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """What two items must share to be joined along axis 0: names, dtypes, shapes without axis 0."""
    return tuple((name, _NAMES[array.dtype], array.shape[1:]) for name, array in item.items())


def passed(name: str) -> str:
    """What an input of the graph is called beside its outputs, where postprocessing reads it too."""
    return _PASSED + name


def rows_of(item: Tensors) -> int:
    """How many rows an item has: the length of axis 0 of its first array."""
    return len(next(iter(item.values())))


def join(items: Sequence[Tensors]) -> Tensors:
    """Items of one make as one, rows in order."""
    if len(items) == 1:
        return items[0]
    return {name: np.concatenate([item[name] for item in items]) for name in items[0]}


def split(joined: Tensors, rows: Sequence[int]) -> list[Tensors]:
    """Views of ``joined`` with the given numbers of rows, in order; ValueError where they do not add up."""
    total = sum(rows)
    for name, array in joined.items():
        if array.ndim == 0 or array.shape[0] != total:
            raise ValueError(f"{name} has shape {array.shape}, expected {total} rows")
    ends = list(itertools.accumulate(rows))
    return [
        {name: array[end - count : end] for name, array in joined.items()}
        for end, count in zip(ends, rows, strict=True)
    ]


def _join(items: Sequence[Tensors]) -> _Group:
    return _Group([rows_of(item) for item in items], _pack(join(items)))


def _pack(item: Tensors) -> dict[str, _Packed]:
    return {name: _Packed(_NAMES[array.dtype], array.shape, array.tobytes()) for name, array in item.items()}


def _unpack(packed: dict[str, _Packed]) -> Tensors:
    return {name: _array(name, each) for name, each in packed.items()}


def _array(name: str, packed: _Packed) -> NDArray[Any]:
    dtype = DTYPES.get(packed.dtype)
    if dtype is None:
        raise ValueError(f"{name} has the unknown dtype {packed.dtype!r}")
    if min(packed.shape, default=0) < 0 or math.prod(packed.shape) * dtype.itemsize != len(packed.data):
        raise ValueError(f"{name}: shape and number of bytes disagree")
    return np.frombuffer(packed.data, dtype).reshape(packed.shape)
