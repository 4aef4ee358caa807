"""Arrays that somebody else made, held to the graph's signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.errors import InvalidInputError, ModelError
from jobs.models import TensorSpec
from jobs.tensors import DTYPES, Tensors


def fitted(given: object, specs: Sequence[TensorSpec], rows_max: int) -> Tensors:
    """Arrays by name as the graph takes them: dtypes cast where no number is lost in kind or range.

    An array may come without the row axis (one row). ModelError where names, dtypes or shapes are not the graph's;
    InvalidInputError where the rows are too many, or none: those depend on the input.
    """
    if not isinstance(given, dict) or given.keys() != {spec.name for spec in specs}:
        names = ", ".join(spec.name for spec in specs)
        raise ModelError(f"the step preprocess must give a dict with an array for each input of the graph: {names}")
    item = {spec.name: _fitted(given[spec.name], spec) for spec in specs}
    rows = {name: len(array) for name, array in item.items()}
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise ModelError(f"the step preprocess gave arrays that differ in rows ({counts})")
    count = next(iter(rows.values()))
    if not 1 <= count <= rows_max:
        raise InvalidInputError(f"the input makes {count} rows; this model takes 1 to {rows_max}")
    return item


def _fitted(array: object, spec: TensorSpec) -> NDArray[Any]:
    if not isinstance(array, np.ndarray):
        raise ModelError(f"the step preprocess gave no array for {spec.name}")
    if array.ndim == len(spec.shape) - 1:
        array = array[np.newaxis]
    row = zip(spec.shape[1:], array.shape[1:], strict=False)
    if array.ndim != len(spec.shape) or any(dim not in (None, got) for dim, got in row):
        dims = ", ".join("any" if dim is None else str(dim) for dim in spec.shape[1:])
        raise ModelError(
            f"the step preprocess gave {spec.name} of shape {list(array.shape)}; the graph takes [rows, {dims}]"
        )
    return _cast(np.asarray(array), spec)


def _cast(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    dtype = DTYPES[spec.dtype]
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "biuf" or not np.can_cast(array.dtype, dtype, "same_kind"):
        raise ModelError(
            f"the step preprocess gave {spec.name} as {array.dtype.name[:32]}; the graph takes {spec.dtype}"
        )
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        lost = cast != array if dtype.kind in "iu" else np.isfinite(cast) != np.isfinite(array)
    if lost.any():
        raise ModelError(f"the step preprocess gave numbers for {spec.name} that {spec.dtype} cannot hold")
    return cast
