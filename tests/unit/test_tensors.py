"""The codec of arrays: what goes in comes out, and what does not add up is refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jobs.tensors import (
    DTYPES,
    Tensors,
    join,
    make_of,
    pack_buffers,
    pack_item,
    pack_items,
    rows_of,
    split,
    unpack_item,
    unpack_items,
)

ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: arrays.arrays(np.dtype(name), arrays.array_shapes(min_dims=1, max_dims=3, max_side=4))
)


def same(left: Tensors, right: Tensors) -> bool:
    """Names in order, dtypes, shapes and every bit."""
    return make_of(left) == make_of(right) and all(
        left[name].shape == right[name].shape and left[name].tobytes() == right[name].tobytes() for name in left
    )


@given(st.dictionaries(st.text(max_size=5), ARRAYS, min_size=1, max_size=3))
def test_an_item_comes_out_as_it_went_in(item: Tensors) -> None:
    assert same(unpack_item(pack_item(item)), item)


@given(st.lists(ARRAYS.map(lambda array: {"x": array}), max_size=6))
def test_items_come_out_in_order_whatever_their_makes(items: list[Tensors]) -> None:
    out = unpack_items(pack_items(items))
    assert len(out) == len(items)
    assert all(same(left, right) for left, right in zip(out, items, strict=True))


def test_an_array_in_fortran_order_keeps_its_values() -> None:
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(unpack_item(pack_item({"x": array}))["x"], array)


def test_a_zero_sized_dimension_survives() -> None:
    assert unpack_item(pack_item({"x": np.zeros((0, 3), np.int8)}))["x"].shape == (0, 3)


def test_buffers_pack_to_the_same_bytes_as_the_array() -> None:
    array = np.arange(6, dtype=np.uint16).reshape(2, 3)
    assert pack_buffers({"x": ("uint16", (2, 3), array.tobytes())}) == pack_item({"x": array})


def test_neighbours_of_one_make_are_packed_together() -> None:
    items = [{"x": np.full((1, 4), number, np.float32)} for number in range(10)]
    assert len(msgspec.msgpack.decode(pack_items(items))) == 1


@pytest.mark.parametrize("data", [b"", b"junk", b"\x80\x01", msgspec.msgpack.encode({"x": [1, 2]})])
def test_bytes_that_are_not_packed_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not"):
        unpack_item(data)
    with pytest.raises(ValueError, match="not"):
        unpack_items(data)


@pytest.mark.parametrize(
    "packed",
    [
        ("float32", (2,), b"\0" * 4),
        ("float32", (-1, -1), b"\0" * 4),
        ("object", (1,), b"\0" * 8),
        ("float32", (2**31, 2**31), b""),
    ],
)
def test_dtype_shape_and_bytes_that_disagree_are_refused(packed: tuple[str, tuple[int, ...], bytes]) -> None:
    with pytest.raises(ValueError, match="x"):
        unpack_item(msgspec.msgpack.encode({"x": packed}))


def test_split_undoes_join() -> None:
    items = [{"x": np.arange(rows * 2).reshape(rows, 2)} for rows in (1, 3, 2)]
    out = split(join(items), [rows_of(item) for item in items])
    assert all(same(left, right) for left, right in zip(out, items, strict=True))


def test_split_refuses_outputs_that_lost_a_row() -> None:
    with pytest.raises(ValueError, match="expected 3 rows"):
        split({"y": np.zeros((2, 1))}, [1, 2])
