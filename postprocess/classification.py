"""Kind ``classification``: one output of scores over classes as ``{"label", "score", "top": [...]}``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from jobs.errors import SetupError
from jobs.models import ModelRecord, TensorSpec
from jobs.tensors import Tensors
from postprocess.rows import by_make, finite, named_output, not_finite


class ClassificationOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``labels`` in the order of the output's last axis; no ``output`` is needed where the graph has one."""

    labels: Annotated[list[str], msgspec.Meta(min_length=1)]
    top_k: Annotated[int, msgspec.Meta(ge=1)] = 5
    output: str = ""
    activation: Literal["softmax", "none"] = "none"


class ClassificationKind:
    """See ``postprocess.kinds.Kind``."""

    Options = ClassificationOptions
    passes = frozenset[str]()

    def __init__(self, record: ModelRecord, options: ClassificationOptions, _folder: Path | None = None) -> None:
        spec = named_output(record.signature.outputs, options.output)
        _check(spec, options)
        self._name = spec.name
        self._labels = options.labels
        self._softmax = options.activation == "softmax"
        self._top_k = min(options.top_k, len(options.labels))

    def run(self, outputs: Sequence[Tensors]) -> list[Any]:
        """Rank the classes: a document for one row, a list for more; ModelError for NaN or infinity."""
        scores = [{self._name: item[self._name]} for item in outputs]
        return [_document(rows) for rows in by_make(scores, self._of_rows)]

    def _of_rows(self, joined: Tensors) -> list[Any]:
        """For each row its document, or None where a score is not finite."""
        ok = finite(joined)
        scores = self._activated(joined[self._name])
        order = np.argsort(-scores, axis=1, kind="stable")[:, : self._top_k]
        best = np.take_along_axis(scores, order, axis=1).tolist()
        rows = zip(order.tolist(), best, ok, strict=True)
        return [self._row(indices, values) if fine else None for indices, values, fine in rows]

    def _activated(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Scores as float64: softmax over the last axis, or as they are."""
        scores = scores.astype(np.float64)
        if not self._softmax:
            return scores
        with np.errstate(invalid="ignore"):  # rows that are not finite are dropped by the caller
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def _row(self, indices: list[int], scores: list[float]) -> dict[str, Any]:
        top = [{"label": self._labels[index], "score": score} for index, score in zip(indices, scores, strict=True)]
        return {**top[0], "top": top}


def _check(spec: TensorSpec, options: ClassificationOptions) -> None:
    """SetupError where the output is not rows x labels."""
    if len(spec.shape) != 2 or spec.dtype == "bool":  # noqa: PLR2004 - rows and classes
        raise SetupError(f"postprocess.options.output: {spec.name} must be numbers of two axes, rows and classes")
    if spec.shape[1] != len(options.labels):
        raise SetupError(
            f"postprocess.options.labels: {len(options.labels)} labels, but {spec.name} has "
            f"{spec.shape[1] or 'an open number of'} classes; give one a class"
        )


def _document(rows: list[Any]) -> Any:
    if None in rows:
        return not_finite()
    return rows[0] if len(rows) == 1 else rows
