"""The kinds of preprocessing, by the name that ``[preprocess] kind`` gives in ``model.toml``.

A kind is made once for each model version (``kind(record)``) and kept beside its record: all that depends on
options and signature is worked out there, so that the door pays only for the input itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from jobs.errors import PenstockError
from jobs.models import ModelRecord
from jobs.options import Registry
from jobs.payload import Payload
from jobs.tensors import Tensors
from preprocess.image import ImageKind
from preprocess.inputs import InputsOf
from preprocess.python import PythonKind
from preprocess.tensor import TensorKind
from preprocess.text import TextKind


class Kind(Protocol):
    """One model's preprocessing: the door checks and stores, the stage runs."""

    @property
    def media_types(self) -> frozenset[str]:
        """Raw media types that ``from_bytes`` takes, besides JSON."""

    def from_json(self, raw: bytes | msgspec.Raw) -> Payload:
        """Turn the JSON of a request's ``input`` into the canonical payload.

        InvalidInputError with a JSON pointer, PayloadTooLargeError, MalformedError where it is not JSON.
        """

    def from_bytes(self, media_type: str, body: bytes) -> Payload:
        """Turn a raw body into the canonical payload.

        UnsupportedMediaTypeError, InvalidInputError (without pointer), PayloadTooLargeError.
        """

    def run(self, payloads: Sequence[Payload]) -> list[Tensors | PenstockError]:
        """Tensors with the row axis first, or the error of this item alone, for each payload in order."""


_PARTS = Registry("preprocess", tensor=TensorKind, image=ImageKind, text=TextKind, python=PythonKind)
"""What the parts of ``inputs`` may be."""
_REGISTRY = _PARTS.extended(inputs=InputsOf(_PARTS))

check = _REGISTRY.check


def kind(record: ModelRecord, folder: Path | None = None) -> Kind:
    """Make the preprocessing of a version whose signature is known.

    ``folder`` is the version's own (``<models>/<name>/<version>``), for kinds that read files of it; a gateway, which
    only inspects, has none.
    SetupError where ``check`` fails, or the options contradict the signature or the folder's files.
    """
    made: Kind = _REGISTRY.make(record.config.preprocess, record, folder)
    return made
