"""Items of one make worked on together: one call over all their rows instead of one for each item."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from jobs.errors import ModelError, SetupError
from jobs.models import TensorSpec
from jobs.tensors import Tensors, join, make_of, rows_of


def named_output(outputs: tuple[TensorSpec, ...], name: str) -> TensorSpec:
    """Find the output that a kind reads: the one called ``name``, or the only one; SetupError."""
    named = [spec for spec in outputs if name in ("", spec.name)]
    if len(named) != 1:
        names = ", ".join(spec.name for spec in outputs)
        raise SetupError(f"postprocess.options.output: {name!r} is not one output; name one of {names}")
    return named[0]


def by_make(items: Sequence[Tensors], of_rows: Callable[[Tensors], list[Any]]) -> list[list[Any]]:
    """Gather by item, in order, what ``of_rows`` gives for each row (n rows in, a list of n out)."""
    makes: defaultdict[object, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        makes[make_of(item)].append(index)
    gathered: dict[int, list[Any]] = {}
    for indices in makes.values():
        rows = iter(of_rows(join([items[index] for index in indices])))
        gathered |= {index: list(islice(rows, rows_of(items[index]))) for index in indices}
    return [gathered[index] for index in range(len(items))]


def finite(joined: Tensors) -> list[bool]:
    """For each row, whether all its numbers are finite: JSON carries neither NaN nor infinity."""
    count = rows_of(joined)
    checks = [np.isfinite(array).reshape(count, -1).all(axis=1) for array in joined.values()]
    answer: list[bool] = np.logical_and.reduce(checks).tolist()
    return answer


def not_finite() -> ModelError:
    """Make the outcome of an item with a number that JSON cannot carry."""
    return ModelError("the model gave NaN or infinity, which a result cannot carry; check the input and the model")
