"""The kinds of preprocessing, by the name that ``[preprocess] kind`` gives in ``model.toml``.

A kind is made once for each model version (``kind(record)``) and kept beside its record: all that depends on
options and signature is worked out there, so that the door pays only for the input itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from jobs import options
from jobs.errors import PenstockError, SetupError
from jobs.models import ModelRecord, StageConfig
from jobs.payload import Payload
from jobs.tensors import Tensors
from preprocess.image import ImageKind
from preprocess.tensor import TensorKind


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


_KINDS: dict[str, Any] = {"tensor": TensorKind, "image": ImageKind}


def check(config: StageConfig) -> None:
    """SetupError where the kind is not known or its options do not have its form."""
    _options(config)


def kind(record: ModelRecord) -> Kind:
    """Make the preprocessing of a version whose signature is known.

    SetupError where ``check`` fails or the options contradict the signature.
    """
    config = record.config.preprocess
    read = _options(config)
    made: Kind = _KINDS[config.kind](record, read)
    return made


def _options(config: StageConfig) -> Any:
    form = _KINDS.get(config.kind)
    if form is None:
        raise SetupError(f"preprocess.kind: {config.kind!r} is not known; use one of {', '.join(_KINDS)}")
    return options.read(config.options, form.Options, "preprocess.options")
