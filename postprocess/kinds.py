"""The kinds of postprocessing, by the name that ``[postprocess] kind`` gives in ``model.toml``.

Made once for each model version, like those of ``preprocess``. An item of exactly one row gives its document
without the row axis, whether or not the client sent one; an item of more rows gives a document a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from jobs import options
from jobs.errors import SetupError
from jobs.models import ModelRecord, StageConfig
from jobs.tensors import Tensors
from postprocess.classification import ClassificationKind
from postprocess.tensor import TensorKind


class Kind(Protocol):
    """One model's postprocessing."""

    def run(self, outputs: Sequence[Tensors]) -> list[Any]:
        """Make a JSON-ready document, or the PenstockError of this item alone, for each item in order."""


_KINDS: dict[str, Any] = {"tensor": TensorKind, "classification": ClassificationKind}


def check(config: StageConfig) -> None:
    """SetupError where the kind is not known or its options do not have its form."""
    _options(config)


def kind(record: ModelRecord) -> Kind:
    """Make the postprocessing of a version whose signature is known.

    SetupError where ``check`` fails or the options contradict the signature.
    """
    config = record.config.postprocess
    read = _options(config)
    made: Kind = _KINDS[config.kind](record, read)
    return made


def _options(config: StageConfig) -> Any:
    form = _KINDS.get(config.kind)
    if form is None:
        raise SetupError(f"postprocess.kind: {config.kind!r} is not known; use one of {', '.join(_KINDS)}")
    return options.read(config.options, form.Options, "postprocess.options")
