"""Kind ``embedding``: ``{"embedding": [...]}``, one vector a row, pooled over tokens where the graph gives each one.

The mean is taken over the tokens that the attention mask names. That is an input of the graph; the inference stage
hands it on (``passes``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from jobs.errors import ModelError, PenstockError, SetupError
from jobs.models import ModelRecord, Signature, TensorSpec
from jobs.tensors import Tensors, passed
from postprocess.rows import by_make, finite, not_finite

Array = NDArray[Any]

_USUAL = "last_hidden_state"
_AXES = {"mean": 3, "cls": 3, "none": 2}
_MASK_AXES = 2


class EmbeddingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From an output to vectors, in this order: pool, cut to the first ``dimensions``, make their length 1.

    No ``output`` is needed where the graph has one, or ``last_hidden_state``. ``attention_mask`` is what the graph
    calls that input.
    """

    output: str = ""
    pooling: Literal["mean", "cls", "none"] = "mean"
    normalize: bool = True
    dimensions: Annotated[int, msgspec.Meta(ge=1)] | None = None
    attention_mask: str = "attention_mask"


class EmbeddingKind:
    """See ``postprocess.kinds.Kind``."""

    Options = EmbeddingOptions

    def __init__(self, record: ModelRecord, options: EmbeddingOptions, _folder: Path | None = None) -> None:
        spec = _output(record.signature.outputs, options.output)
        _check(spec, options)
        self._name, self._options = spec.name, options
        self.passes = frozenset[str]()
        if options.pooling == "mean":
            _check_mask(record.signature, options.attention_mask)
            self.passes = frozenset((options.attention_mask,))
            self._mask = passed(options.attention_mask)

    def run(self, outputs: Sequence[Tensors]) -> list[Any]:
        """Make the vectors: a document for one row, a list for more; ModelError for NaN or infinity."""
        names = (self._name, *map(passed, self.passes))
        read = [{name: item[name] for name in names} for item in outputs]
        return [_document(rows) for rows in by_make(read, self._of_rows)]

    def _of_rows(self, joined: Tensors) -> list[Any]:
        """For each row its vector, or the ModelError that it met."""
        values = joined[self._name]
        values = values.astype(np.promote_types(values.dtype, np.float32), copy=False)
        try:
            vectors = self._cut(self._pooled(values, joined))
        except ModelError as error:
            return [error] * len(values)
        ok = finite({self._name: vectors})
        if self._options.normalize:
            vectors = _of_length_one(vectors)
        return [vector if fine else not_finite() for vector, fine in zip(vectors.tolist(), ok, strict=True)]

    def _pooled(self, values: Array, joined: Tensors) -> Array:
        match self._options.pooling:
            case "none":
                return values
            case "cls":
                return values[:, 0]
            case "mean":
                return _mean(values, joined[self._mask])

    def _cut(self, vectors: Array) -> Array:
        wanted = self._options.dimensions or vectors.shape[1]
        if wanted > vectors.shape[1]:
            raise ModelError(f"the model gave vectors of {vectors.shape[1]} numbers, not of {wanted} or more")
        return vectors[:, :wanted]


def _mean(values: Array, mask: Array) -> Array:
    """The mean over the tokens that the mask names (rows x tokens x numbers); of no token it is 0."""
    if mask.shape != values.shape[:2]:
        raise ModelError(
            f"the model gave {values.shape[1]} vectors a row for {mask.shape[1]} tokens; a mean needs one for each"
        )
    weights = mask.astype(values.dtype)
    weights = _divided(weights, weights.sum(axis=1, keepdims=True))
    with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite are dropped by the caller
        return np.asarray(np.matmul(weights[:, np.newaxis], values)[:, 0])


def _of_length_one(vectors: Array) -> Array:
    """Each row divided by its Euclidean length; zeros stay zeros. The largest number goes first: squares overflow."""
    with np.errstate(invalid="ignore"):  # as above
        vectors = _divided(vectors, np.abs(vectors).max(axis=1, keepdims=True))
        return _divided(vectors, np.sqrt(np.square(vectors).sum(axis=1, keepdims=True)))


def _divided(rows: Array, by: Array) -> Array:
    """Each row divided by its number; by 0 it becomes zeros."""
    return np.asarray(np.divide(rows, by, out=np.zeros_like(rows), where=by != 0))


def _output(outputs: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    names = [spec.name for spec in outputs]
    wanted = name or (names[0] if len(names) == 1 else _USUAL)
    if wanted not in names:
        raise SetupError(f"postprocess.options.output: {name!r} is not one output; name one of {', '.join(names)}")
    return outputs[names.index(wanted)]


def _check(spec: TensorSpec, options: EmbeddingOptions) -> None:
    """SetupError where the output has another form than the pooling needs."""
    axes = _AXES[options.pooling]
    if len(spec.shape) != axes or spec.dtype == "bool":
        form = "rows, tokens, numbers" if axes > _MASK_AXES else "rows, numbers"
        raise SetupError(
            f"postprocess.options.pooling: {options.pooling} needs numbers of {axes} axes ({form}); "
            f"{spec.name} is {spec.dtype} of {len(spec.shape)}"
        )
    width = spec.shape[-1]
    if width is not None and (options.dimensions or 1) > width:
        raise SetupError(f"postprocess.options.dimensions: {options.dimensions}, but {spec.name} has {width}")


def _check_mask(signature: Signature, name: str) -> None:
    mask = next((spec for spec in signature.inputs if spec.name == name), None)
    if mask is None or len(mask.shape) != _MASK_AXES:
        raise SetupError(
            f"postprocess.options.attention_mask: the graph has no input {name} of rows x tokens, which the mean "
            "needs; name it, or use cls or none as pooling"
        )


def _document(rows: list[Any]) -> Any:
    for row in rows:
        if isinstance(row, PenstockError):
            return row
    documents = [{"embedding": row} for row in rows]
    return documents[0] if len(documents) == 1 else documents
