"""Kind ``python``: a user's own function from outputs to result documents.

It gets the outputs of a whole micro-batch, a dict of arrays (row axis first, read-only) for each item, and gives, in
order, a document for each, or an exception that is this item's own. Documents are what JSON can carry, and NumPy's
numbers and arrays.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from jobs import steps
from jobs.errors import ModelError
from jobs.models import ModelRecord
from jobs.steps import StepOptions
from jobs.tensors import Tensors
from postprocess.rows import not_finite

log = logging.getLogger(__name__)


class PythonKind:
    """See ``postprocess.kinds.Kind``."""

    Options = StepOptions
    passes = frozenset[str]()

    def __init__(self, _record: ModelRecord, options: StepOptions, folder: Path | None = None) -> None:
        self._parameters = steps.parameters_of(options)
        self._step = None if folder is None else steps.load("postprocess", options, folder)

    def run(self, outputs: Sequence[Tensors]) -> list[Any]:
        """See ``Kind``; raises what the function raises for several items, which then are to be tried alone."""
        if self._step is None:
            raise RuntimeError("a gateway runs no steps")
        count = len(outputs)
        try:
            results = self._step(list(outputs), self._parameters)
        except ValueError as error:
            if count > 1:
                raise  # whose it is, the next run of each alone will tell
            results = [error]
        if not isinstance(results, list | tuple) or len(results) != count:
            raise ModelError("the step postprocess must give a list with one document for each item")
        return [_outcome(result) for result in results]


def _outcome(result: object) -> Any:
    """The document in plain values, or the error of its item."""
    if isinstance(result, BaseException):
        return steps.outcome_of(result, "postprocess", ModelError)
    try:
        plain = msgspec.to_builtins(result, enc_hook=_of_numpy, str_keys=True)
        msgspec.json.encode(plain)
    except Exception:
        log.warning("a document cannot be encoded", exc_info=True)
        return ModelError("the step postprocess gave a document that JSON cannot carry")
    return plain if _finite(plain) else not_finite()


def _of_numpy(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise NotImplementedError(type(value))


def _finite(document: Any) -> bool:
    """Whether all numbers are: the encoder would write null for NaN and infinity."""
    open_ = [document]
    while open_:
        each = open_.pop()
        if isinstance(each, dict):
            open_ += each.values()
        elif isinstance(each, list | tuple):
            open_ += each
        elif isinstance(each, float) and not math.isfinite(each):
            return False
    return True
