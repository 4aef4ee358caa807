"""Kind ``python``: a user's own function from inputs to arrays.

The gateway neither loads nor runs it: the door bounds an input and checks that JSON is JSON, and stores it as it
came. The worker hands the function the inputs of a whole micro-batch, JSON as the decoded value and raw bodies as
bytes; it gives, in order, a dict of arrays by the names of the graph's inputs for each, or an exception that is this
item's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from jobs import steps
from jobs.errors import (
    InvalidInputError,
    MalformedError,
    ModelError,
    PayloadTooLargeError,
    PenstockError,
    SetupError,
    UnsupportedMediaTypeError,
)
from jobs.models import ModelRecord
from jobs.payload import JSON, Payload
from jobs.steps import StepOptions
from jobs.tensors import Tensors
from preprocess.arrays import fitted
from preprocess.limits import check_size

MediaType = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9.+_-]{1,64}/[a-z0-9.+_-]{1,64}$")]

_check_json = msgspec.json.Decoder(msgspec.Raw).decode
_decode_json = msgspec.json.Decoder().decode


class PythonOptions(StepOptions, frozen=True, forbid_unknown_fields=True):
    """``media_types`` of raw bodies that are taken besides JSON; ``values_max`` bounds the values in a JSON input."""

    media_types: Annotated[tuple[MediaType, ...], msgspec.Meta(max_length=32)] = ()
    values_max: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000


class PythonKind:
    """See ``preprocess.kinds.Kind``."""

    Options = PythonOptions

    def __init__(self, record: ModelRecord, options: PythonOptions, folder: Path | None = None) -> None:
        if JSON in options.media_types:
            raise SetupError(f"preprocess.options.media_types: {JSON} is always taken; leave it out")
        self.media_types = frozenset[str](options.media_types)
        self._specs = record.signature.inputs
        self._limits = record.config.limits
        self._values_max = options.values_max
        self._parameters = steps.parameters_of(options)
        self._step = None if folder is None else steps.load("preprocess", options, folder)

    def from_json(self, raw: bytes | msgspec.Raw) -> Payload:
        """See ``Kind``."""
        text = bytes(raw)
        check_size(len(text), self._limits.input_bytes_max)
        count = 1 + text.count(b",") + text.count(b"[") + text.count(b"{")  # at least as many as there are values
        if count > self._values_max:
            raise PayloadTooLargeError(
                f"the input has about {count} values; this model takes up to {self._values_max}"
            )
        try:
            _check_json(text)
            text.decode()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise MalformedError("the input is not valid JSON, or is nested too deeply") from None
        return Payload(JSON, text)

    def from_bytes(self, media_type: str, body: bytes) -> Payload:
        """See ``Kind``."""
        if media_type not in self.media_types:
            raise UnsupportedMediaTypeError(f"this model takes {', '.join(sorted({JSON, *self.media_types}))}")
        check_size(len(body), self._limits.input_bytes_max)
        return Payload(media_type, body)

    def run(self, payloads: Sequence[Payload]) -> list[Tensors | PenstockError]:
        """See ``Kind``; raises what the function raises for several items, which then are to be tried alone."""
        given = [self._given(payload) for payload in payloads]
        results = iter(self._called([each for each in given if not isinstance(each, PenstockError)]))
        return [each if isinstance(each, PenstockError) else self._outcome(next(results)) for each in given]

    def _given(self, payload: Payload) -> Any:
        """What the function gets, or why it cannot be read."""
        if payload.media_type in self.media_types:
            return payload.data
        try:
            if payload.media_type == JSON:
                return _decode_json(payload.data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return InvalidInputError("the input is not JSON that can be read")
        return InvalidInputError("the stored input is of another kind; submit it again")

    def _called(self, inputs: list[Any]) -> Sequence[object]:
        if self._step is None:
            raise RuntimeError("a gateway runs no steps")
        count = len(inputs)
        try:
            results = self._step(inputs, self._parameters) if inputs else []
        except ValueError as error:
            if count > 1:
                raise  # whose it is, the next run of each alone will tell
            return [error]
        if not isinstance(results, list | tuple) or len(results) != count:
            raise ModelError("the step preprocess must give a list with one result for each input")
        return results

    def _outcome(self, result: object) -> Tensors | PenstockError:
        if isinstance(result, BaseException):
            return steps.outcome_of(result, "preprocess", InvalidInputError)
        try:
            return fitted(result, self._specs, self._limits.rows_max)
        except PenstockError as error:
            return error
