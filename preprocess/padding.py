"""Token ids as the inputs of a graph: rows padded to one of a few lengths, with their mask and token types."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.errors import SetupError
from jobs.models import Signature
from jobs.tensors import DTYPES, Tensors
from preprocess.template import Marks

Role: TypeAlias = Literal["input_ids", "attention_mask", "token_type_ids"]

_AXES = 2
_DTYPES = ("int64", "int32")


class TokenInputs:
    """The inputs of one graph. ``lengths``, ascending, are what rows are padded to; the last is the longest row.

    ``names`` say what the graph calls them; it may lack mask and types. A graph of a fixed length has no other.
    SetupError where it takes anything else.
    """

    def __init__(self, signature: Signature, names: dict[Role, str], buckets: Sequence[int], tokens_max: int) -> None:
        roles = {name: role for role, name in names.items()}
        if len(roles) < len(names):
            raise SetupError(f"preprocess.options: {', '.join(names)} must have different names")
        for spec in signature.inputs:
            if spec.name not in roles:
                raise SetupError(
                    f"preprocess.options: nothing fills the graph's input {spec.name}; "
                    f"say by {', '.join(names)} what it is called, or export the model without it"
                )
            if len(spec.shape) != _AXES or spec.dtype not in _DTYPES:
                raise SetupError(f"{spec.name}: kind text fills inputs of rows x tokens in int64 or int32 alone")
        self._inputs = [(spec.name, roles[spec.name], DTYPES[spec.dtype]) for spec in signature.inputs]
        if all(role != "input_ids" for _, role, _ in self._inputs):
            raise SetupError(f"preprocess.options.input_ids: the graph has no input {names['input_ids']}")
        self.lengths = _fixed(signature) or _lengths(buckets, tokens_max)

    def tensors(self, rows: Sequence[Marks], pad_id: int, pad_type: int) -> Tensors:
        """Pad the rows to the shortest length that holds all of them."""
        longest = max(len(row.ids) for row in rows)
        shape = (len(rows), self.lengths[bisect_left(self.lengths, longest)])
        return {
            name: _filled(rows, role, np.empty(shape, dtype), pad_id, pad_type) for name, role, dtype in self._inputs
        }


def _fixed(signature: Signature) -> tuple[int, ...]:
    """The one length that the graph takes, or none where that is open."""
    found = {spec.shape[1] for spec in signature.inputs}
    if len(found) > 1:
        raise SetupError("the graph's inputs differ in the number of tokens; export it with one for all, or open")
    return tuple(length for length in found if length is not None)


def _lengths(buckets: Sequence[int], tokens_max: int) -> tuple[int, ...]:
    if any(shorter >= longer for shorter, longer in pairwise(buckets)):
        raise SetupError("preprocess.options.buckets: not in ascending order; give each once, the shortest first")
    return (*(length for length in buckets if length < tokens_max), tokens_max)


def _filled(rows: Sequence[Marks], role: Role, array: NDArray[Any], pad_id: int, pad_type: int) -> NDArray[Any]:
    array.fill({"input_ids": pad_id, "attention_mask": 0, "token_type_ids": pad_type}[role])
    for row, (ids, types) in zip(array, rows, strict=True):
        row[: len(ids)] = {"input_ids": ids, "attention_mask": 1, "token_type_ids": types}[role]
    return array
