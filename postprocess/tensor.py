"""Kind ``tensor``: every output as a nested list, ``{output name: list}``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from jobs.models import ModelRecord
from jobs.tensors import Tensors
from postprocess.rows import by_make, finite, not_finite


class TensorKind:
    """See ``postprocess.kinds.Kind``."""

    passes = frozenset[str]()

    class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """None so far."""

    def __init__(self, _record: ModelRecord, _options: Options, _folder: Path | None = None) -> None:
        pass

    def run(self, outputs: Sequence[Tensors]) -> list[Any]:
        """``{name: list}``, without the row axis for one row; ModelError for NaN or infinity."""
        return [_document(item, rows) for item, rows in zip(outputs, by_make(outputs, _of_rows), strict=True)]


def _of_rows(joined: Tensors) -> list[Any]:
    """For each row a tuple with the list of each output, or None where a number is not finite."""
    rows = zip(*(array.tolist() for array in joined.values()), strict=True)
    return [row if ok else None for row, ok in zip(rows, finite(joined), strict=True)]


def _document(item: Tensors, rows: list[Any]) -> Any:
    if None in rows:
        return not_finite()
    columns = rows[0] if len(rows) == 1 else map(list, zip(*rows, strict=True))
    return dict(zip(item, columns, strict=True))
