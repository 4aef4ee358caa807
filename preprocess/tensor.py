"""Kind ``tensor``: numbers in JSON, or their bytes, for any graph.

JSON is a nested list for a graph with one input, or an object ``{name: tensor}`` for any graph. A tensor is a
nested list, or ``{"shape": [...], "data": [flat list]}``, or ``{"shape": [...], "base64": "..."}``; the last
two may name their ``"dtype"``. Raw ``application/octet-stream`` is taken where the graph has one input whose
dimensions are fixed but for axis 0.

An input may come without the row axis (one row) or with it (1 to ``rows_max`` rows; all inputs as many). The
payload always has the row axis; a result of exactly one row is given without it (see ``postprocess``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from jobs.errors import (
    InvalidInputError,
    MalformedError,
    PenstockError,
    SetupError,
    UnsupportedMediaTypeError,
)
from jobs.models import ModelRecord
from jobs.payload import TENSORS, Payload
from jobs.tensors import Buffer, Tensors, pack_buffers, unpack_item
from preprocess.limits import check_size
from preprocess.numbers import NumbersInput, is_object
from preprocess.pointers import pointer_to

OCTETS = "application/octet-stream"

_QUOTES_MAX = 24
"""Quotation marks that one input may take, so that a million fields are refused unread; it needs up to 12."""

_decode_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class TensorKind:
    """See ``preprocess.kinds.Kind``."""

    class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """None so far."""

    def __init__(self, record: ModelRecord, _options: Options, _folder: Path | None = None) -> None:
        limits, specs = record.config.limits, record.signature.inputs
        if not specs:
            raise SetupError("the graph has no inputs; export the model with at least one")
        self._bytes_max = limits.input_bytes_max
        self._inputs = {spec.name: NumbersInput(spec, limits) for spec in specs}
        self._quotes_max = sum(_QUOTES_MAX + 2 * spec.name.count('"') for spec in specs)
        self._name = specs[0].name
        self._only = self._inputs[self._name] if len(specs) == 1 else None
        raw = self._only is not None and self._only.row_bytes > 0
        self.media_types = frozenset((OCTETS,)) if raw else frozenset[str]()

    def from_json(self, raw: bytes | msgspec.Raw) -> Payload:
        """See ``Kind``."""
        text = bytes(raw)
        if self._only is not None and (text[:1] == b"[" or not is_object(text)):
            return _payload({self._name: self._only.from_json(text, "/input")})
        return _payload(self._from_object(text))

    def from_bytes(self, media_type: str, body: bytes) -> Payload:
        """See ``Kind``."""
        if self._only is None or media_type not in self.media_types:
            raise UnsupportedMediaTypeError("this model takes application/json" + self._or_octets())
        return _payload({self._name: self._only.from_bytes(body)})

    def run(self, payloads: Sequence[Payload]) -> list[Tensors | PenstockError]:
        """See ``Kind``."""
        return [_tensors(payload) for payload in payloads]

    def _or_octets(self) -> str:
        return f" or {OCTETS}" if self.media_types else ""

    def _from_object(self, text: bytes) -> dict[str, Buffer]:
        fields = self._fields(text)
        item = {name: self._inputs[name].from_json(bytes(fields[name]), pointer_to(name)) for name in self._inputs}
        check_size(sum(len(data) for _, _, data in item.values()), self._bytes_max)
        rows = {name: shape[0] for name, (_, shape, _) in item.items()}
        if len(set(rows.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in rows.items())
            raise InvalidInputError(f"inputs differ in rows ({counts}); expected as many in each", pointer="/input")
        return item

    def _fields(self, text: bytes) -> dict[str, msgspec.Raw]:
        """Read an input object: exactly the graph's inputs, each once."""
        if text.count(b'"') > self._quotes_max:
            self._refuse("more fields than there are inputs")
        try:
            fields = _decode_object(text)
        except msgspec.ValidationError:
            self._refuse("expected an object with one tensor for each input")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise MalformedError("the input is not valid JSON, or is nested too deeply") from None
        for name in fields.keys() - self._inputs.keys():
            self._refuse("no such input", pointer=pointer_to(name[:64]))
        if missing := [name for name in self._inputs if name not in fields]:
            self._refuse(f"{', '.join(missing)} missing")
        if _quotes(text, fields) != 0:
            self._refuse("an input is given twice")
        return fields

    def _refuse(self, detail: str, pointer: str = "/input") -> NoReturn:
        names = ", ".join(self._inputs)
        raise InvalidInputError(f"{detail}; the inputs of this model: {names}", pointer=pointer)


def _quotes(text: bytes, fields: dict[str, msgspec.Raw]) -> int:
    """Quotation marks beyond those of the names and values in ``fields``: left by a name that stood twice."""
    values = sum(bytes(value).count(b'"') for value in fields.values())
    return text.count(b'"') - values - sum(2 + name.count('"') for name in fields)


def _payload(item: dict[str, Buffer]) -> Payload:
    return Payload(TENSORS, pack_buffers(item))


def _tensors(payload: Payload) -> Tensors | PenstockError:
    try:
        if payload.media_type != TENSORS:
            return InvalidInputError("the stored input is not a tensor; submit it again")
        return unpack_item(payload.data)
    except ValueError:
        return InvalidInputError("the stored input cannot be read; submit it again")
