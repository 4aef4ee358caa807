"""The kinds of postprocessing, by the name that ``[postprocess] kind`` gives in ``model.toml``.

Made once for each model version, like those of ``preprocess``. An item of exactly one row gives its document
without the row axis, whether or not the client sent one; an item of more rows gives a document a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from jobs.errors import SetupError
from jobs.models import ModelRecord
from jobs.options import Registry
from jobs.tensors import Tensors, passed
from postprocess.classification import ClassificationKind
from postprocess.detection import DetectionKind
from postprocess.embedding import EmbeddingKind
from postprocess.python import PythonKind
from postprocess.tensor import TensorKind


class Kind(Protocol):
    """One model's postprocessing."""

    @property
    def passes(self) -> frozenset[str]:
        """Inputs of the graph that ``run`` reads beside the outputs, each under ``jobs.tensors.passed(name)``."""

    def run(self, outputs: Sequence[Tensors]) -> list[Any]:
        """Make a JSON-ready document, or the PenstockError of this item alone, for each item in order."""


_REGISTRY = Registry(
    "postprocess",
    tensor=TensorKind,
    classification=ClassificationKind,
    detection=DetectionKind,
    embedding=EmbeddingKind,
    python=PythonKind,
)

check = _REGISTRY.check


def kind(record: ModelRecord, folder: Path | None = None) -> Kind:
    """Make the postprocessing of a version whose signature is known.

    ``folder`` is the version's own (``<models>/<name>/<version>``), for kinds that read files of it; a gateway
    has none.
    SetupError where ``check`` fails, or the options contradict the signature or the folder's files.
    """
    made: Kind = _REGISTRY.make(record.config.postprocess, record, folder)
    for spec in record.signature.outputs:
        if spec.name in map(passed, made.passes):
            raise SetupError(f"the graph's output {spec.name} has the name of an input handed on; give it another")
    return made
