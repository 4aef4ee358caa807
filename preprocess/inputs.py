"""Kind ``inputs``: several named parts of one input, each of a kind of its own, for graphs with several inputs.

JSON is an object with one value for each part, in the form that the part's kind takes. A part is an ordinary kind
that knows of no more than the graph's inputs that it feeds; together the parts feed each exactly once. The payload
holds the parts' payloads by name. All parts of an input have equally many rows: none is repeated to fit.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeAlias

import msgspec

from jobs import options
from jobs.errors import InvalidInputError, MalformedError, PenstockError, SetupError, UnsupportedMediaTypeError
from jobs.models import ModelRecord, Signature, StageConfig
from jobs.options import Registry
from jobs.payload import PARTS, Payload
from jobs.tensors import ASIDE, Tensors
from preprocess.limits import check_size
from preprocess.pointers import INPUT, lower, pointer_to

_PARTS_MAX = 32
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,64}")
_UNKNOWN = re.compile(r"unknown field `(.*)`", re.DOTALL)
_KEY = "preprocess.options.inputs"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, Payload]).decode

_Kind: TypeAlias = Any
"""``preprocess.kinds.Kind``, which imports this module."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One part: its kind, the options of that kind, and which of the graph's inputs it feeds.

    Where ``feeds`` is empty, it is the one that has the part's name.
    """

    kind: str = "tensor"
    options: dict[str, Any] = {}
    feeds: tuple[str, ...] = ()


class InputsOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The parts by the names that clients give them; each is a ``Part``."""

    inputs: Annotated[dict[str, dict[str, Any]], msgspec.Meta(min_length=1, max_length=_PARTS_MAX)]


class InputsOf:
    """Makes the kind, whose parts are of the kinds in ``registry``."""

    Options = InputsOptions

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def __call__(self, record: ModelRecord, given: InputsOptions, folder: Path | None = None) -> InputsKind:
        """SetupError where a part cannot be made, or the parts do not feed every input of the graph once."""
        parts = {name: _read(name, value, record) for name, value in sorted(given.inputs.items())}
        _check_feeds(parts, record.signature)
        made = {name: self._make(name, part, record, folder) for name, part in parts.items()}
        return InputsKind(record, made, {name: frozenset(part.feeds) for name, part in parts.items()})

    def _make(self, name: str, part: Part, record: ModelRecord, folder: Path | None) -> _Kind:
        config = StageConfig(part.kind, part.options)
        own = msgspec.structs.replace(
            record,
            config=msgspec.structs.replace(record.config, preprocess=config),
            signature=Signature(
                tuple(spec for spec in record.signature.inputs if spec.name in part.feeds), record.signature.outputs
            ),
        )
        try:
            return self._registry.make(config, own, folder)
        except SetupError as error:
            raise SetupError(_of_key(str(error), f"{_KEY}.{name}")) from None


class InputsKind:
    """See ``preprocess.kinds.Kind``."""

    media_types = frozenset[str]()

    def __init__(self, record: ModelRecord, parts: dict[str, _Kind], feeds: dict[str, frozenset[str]]) -> None:
        self._bytes_max = record.config.limits.input_bytes_max
        self._parts = parts
        self._feeds = feeds
        self._read = _reader(tuple(parts))

    def from_json(self, raw: bytes | msgspec.Raw) -> Payload:
        """See ``Kind``."""
        fields = self._fields(bytes(raw))
        payloads = {name: self._from_json(name, value) for name, value in fields.items()}
        check_size(sum(len(payload.data) for payload in payloads.values()), self._bytes_max)
        return Payload(PARTS, _encode(payloads))

    def from_bytes(self, media_type: str, body: bytes) -> Payload:  # noqa: ARG002 - the form of ``Kind``
        """See ``Kind``."""
        raise UnsupportedMediaTypeError("this model takes application/json")

    def run(self, payloads: Sequence[Payload]) -> list[Tensors | PenstockError]:
        """See ``Kind``: each part's payloads are run together; an item is left out once one of its parts failed."""
        unpacked = [self._unpacked(payload) for payload in payloads]
        errors = {index: each for index, each in enumerate(unpacked) if isinstance(each, PenstockError)}
        made: list[dict[str, Tensors]] = [{} for _ in payloads]
        for name, part in self._parts.items():
            asked = {i: each[name] for i, each in enumerate(unpacked) if isinstance(each, dict) and i not in errors}
            results = part.run(list(asked.values())) if asked else []
            for index, result in zip(asked, results, strict=True):
                if isinstance(result, PenstockError):
                    errors[index] = _of_part(result, name)
                else:
                    made[index][name] = result
        return [errors.get(index) or self._joined(each) for index, each in enumerate(made)]

    def _from_json(self, name: str, value: msgspec.Raw) -> Payload:
        try:
            payload: Payload = self._parts[name].from_json(value)
        except PenstockError as error:
            lower(error, name)
            raise
        return payload

    def _fields(self, text: bytes) -> dict[str, msgspec.Raw]:
        """Read the object: exactly the parts, each once."""
        try:
            found = msgspec.structs.astuple(self._read(text))
        except msgspec.ValidationError as error:
            self._refuse_form(str(error))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise MalformedError("the input is not valid JSON, or is nested too deeply") from None
        fields: dict[str, msgspec.Raw] = dict(zip(self._parts, found, strict=True))
        if missing := [name for name, value in fields.items() if not bytes(value)]:
            self._refuse(f"{', '.join(missing)} missing")
        quotes = sum(2 + bytes(value).count(b'"') for value in fields.values())
        if text.count(b'"') != quotes:  # the names hold none, so what is left over is a field that was overwritten
            self._refuse("a part is given twice")
        return fields

    def _refuse_form(self, text: str) -> NoReturn:
        unknown = _UNKNOWN.search(text)
        if unknown:
            self._refuse("no such part", pointer=pointer_to(unknown[1][:64]))
        self._refuse("expected an object with one value for each part")

    def _refuse(self, detail: str, pointer: str = INPUT) -> NoReturn:
        raise InvalidInputError(f"{detail}; the parts of an input: {', '.join(self._parts)}", pointer=pointer)

    def _unpacked(self, payload: Payload) -> dict[str, Payload] | PenstockError:
        try:
            parts = _decode(payload.data) if payload.media_type == PARTS else {}
        except (msgspec.DecodeError, ValueError, RecursionError):
            parts = {}
        return parts if parts.keys() == self._parts.keys() else _unreadable()

    def _joined(self, made: dict[str, Tensors]) -> Tensors | PenstockError:
        """The tensors of all parts as one item."""
        rows: dict[str, int] = {}
        for name, tensors in made.items():
            heights = {array.shape[:1] for array in tensors.values()}
            if not _is_for(tensors, self._feeds[name]) or len(heights) != 1 or heights == {()}:
                return _unreadable()
            ((rows[name],),) = heights
        if len(set(rows.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in rows.items())
            return InvalidInputError(f"the parts differ in rows ({counts}); give each as many", pointer=INPUT)
        return {name: array for tensors in made.values() for name, array in tensors.items()}


def _read(name: str, value: dict[str, Any], record: ModelRecord) -> Part:
    """A part as ``model.toml`` has it, with what it feeds spelled out."""
    if not _NAME.fullmatch(name):
        raise SetupError(f"{_KEY}: {name[:64]!r} is not a part's name; use 1 to 64 of A-Z a-z 0-9 _ . : / -")
    part = options.read(value, Part, f"{_KEY}.{name}")
    return part if part.feeds else msgspec.structs.replace(part, feeds=(_same_name(name, record),))


def _same_name(name: str, record: ModelRecord) -> str:
    if all(spec.name != name for spec in record.signature.inputs):
        names = _names(record.signature)
        raise SetupError(f"{_KEY}.{name}.feeds: missing, and the graph has no input {name}; name some of {names}")
    return name


def _check_feeds(parts: dict[str, Part], signature: Signature) -> None:
    fed = Counter(feed for part in parts.values() for feed in part.feeds)
    known = {spec.name for spec in signature.inputs}
    for name, part in parts.items():
        for feed in part.feeds:
            if feed not in known:
                raise SetupError(f"{_KEY}.{name}.feeds: the graph has no input {feed}; it has {_names(signature)}")
            if fed[feed] > 1:
                raise SetupError(f"{_KEY}.{name}.feeds: {feed} is fed {fed[feed]} times; feed each input once")
    if missing := [spec.name for spec in signature.inputs if spec.name not in fed]:
        raise SetupError(f"{_KEY}: no part feeds the graph's input {missing[0]}; name it in the feeds of one")


def _of_key(text: str, key: str) -> str:
    """What a kind says of ``preprocess``, of the part at ``key`` instead."""
    return text.replace("preprocess", key, 1) if text.startswith("preprocess.") else f"{key}: {text}"


def _names(signature: Signature) -> str:
    return ", ".join(spec.name for spec in signature.inputs)


def _reader(names: tuple[str, ...]) -> Any:
    """A decoder of objects with these fields and no others, the values still as text; an empty one is missing."""
    fields = [
        (f"part{place}", msgspec.Raw, msgspec.field(name=name, default=msgspec.Raw()))
        for place, name in enumerate(names)
    ]
    return msgspec.json.Decoder(msgspec.defstruct("Parts", fields, forbid_unknown_fields=True)).decode


def _of_part(error: PenstockError, name: str) -> PenstockError:
    """A copy that names the part: one error may be that of several items, and a job's holds no pointer."""
    own = copy.copy(error)
    own.detail = f"{name}: {error.detail}"
    lower(own, name)
    return own


def _is_for(tensors: Tensors, feeds: frozenset[str]) -> bool:
    """Whether they are what feeds the graph; names that begin with ``_`` go past it, to the stage behind."""
    return feeds <= tensors.keys() and all(name.startswith(ASIDE) for name in tensors.keys() - feeds)


def _unreadable() -> InvalidInputError:
    return InvalidInputError("the stored input cannot be read; submit it again")
