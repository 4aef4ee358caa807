"""Kind ``text``: texts, or pairs of texts, as token ids, attention mask and token types.

JSON is a string, ``{"text": "...", "pair": "..."}``, or a list of these, one for each row; a raw ``text/plain`` body
in UTF-8 is one text. The door counts bytes and characters and needs no tokenizer; the stage has the one beside the
model (``preprocess.tokens``). An input's rows are padded to one of a few lengths, so that inputs of about the same
length share a call of the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NoReturn, TypeAlias, get_args

import msgspec

from jobs.errors import InvalidInputError, MalformedError, PenstockError, SetupError, UnsupportedMediaTypeError
from jobs.models import ModelRecord
from jobs.payload import TEXTS, Payload
from jobs.tensors import Tensors
from preprocess.limits import check_size
from preprocess.padding import Role, TokenInputs
from preprocess.template import Marks, shares
from preprocess.tokens import Bare, Tokens

PLAIN = "text/plain"

Positive = Annotated[int, msgspec.Meta(ge=1)]
Length = Annotated[int, msgspec.Meta(ge=1, le=1_048_576)]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]

_QUOTES_MAX = 8
"""Quotation marks that a row takes, besides those within its texts."""

_place = re.compile(r" - at `\$((?:\[\d+\]|\.text|\.pair)+)`$").search


class TextOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How texts are cut and padded, and what the graph calls its inputs.

    Rows have at most ``tokens_max`` tokens, special ones included, and are padded to the first of ``buckets`` that
    holds all of an input. ``pad_token`` or ``pad_id`` say with what, where the tokenizer's own is not meant.
    """

    tokens_max: Length = 512
    truncation: Literal["right", "left", "error"] = "right"
    buckets: Annotated[tuple[Length, ...], msgspec.Meta(min_length=1, max_length=64)] = (16, 32, 64, 128, 256, 512)
    chars_max: Positive = 100_000
    input_ids: str = "input_ids"
    attention_mask: str = "attention_mask"
    token_type_ids: str = "token_type_ids"  # noqa: S105 - an input's name
    pad_token: str = ""
    pad_id: TokenId | None = None


class _Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    pair: str


_Given: TypeAlias = str | _Pair
_Texts: TypeAlias = Annotated[list[str], msgspec.Meta(min_length=1, max_length=2)]

_decode_input = msgspec.json.Decoder(_Given | list[_Given]).decode
_encode_rows = msgspec.msgpack.Encoder().encode
_decode_rows = msgspec.msgpack.Decoder(Annotated[list[_Texts], msgspec.Meta(min_length=1)]).decode


class TextKind:
    """See ``preprocess.kinds.Kind``. Without a folder it inspects and cannot run."""

    Options = TextOptions
    media_types = frozenset((PLAIN,))

    def __init__(self, record: ModelRecord, options: TextOptions, folder: Path | None = None) -> None:
        self._rows_max, self._bytes_max = record.config.limits.rows_max, record.config.limits.input_bytes_max
        self._chars_max = options.chars_max
        names: dict[Role, str] = {role: getattr(options, role) for role in get_args(Role)}
        inputs = TokenInputs(record.signature, names, options.buckets, options.tokens_max)
        self._stage = None if folder is None else _Stage(Tokens(folder), inputs, options)

    def from_json(self, raw: bytes | msgspec.Raw) -> Payload:
        """See ``Kind``."""
        given = self._decoded(bytes(raw))
        if not isinstance(given, list):
            return self._admit([("/input", given)])
        if not 1 <= len(given) <= self._rows_max:
            self._refuse(f"got {len(given)} rows")
        return self._admit([(f"/input/{number}", row) for number, row in enumerate(given)])

    def from_bytes(self, media_type: str, body: bytes) -> Payload:
        """See ``Kind``."""
        if media_type not in self.media_types:
            raise UnsupportedMediaTypeError(f"this model takes application/json or {PLAIN}")
        check_size(len(body), self._bytes_max)
        try:
            return self._admit([(None, body.decode())])
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"the body is not UTF-8 at byte {error.start}; save the text as UTF-8") from None

    def run(self, payloads: Sequence[Payload]) -> list[Tensors | PenstockError]:
        """See ``Kind``."""
        if self._stage is None:
            raise RuntimeError("a text kind made without its version's folder cannot run")
        return self._stage.run([_unpacked(payload) for payload in payloads])

    def _decoded(self, text: bytes) -> _Given | list[_Given]:
        if text.count(b'"') - text.count(b'\\"') > _QUOTES_MAX * self._rows_max:
            self._refuse("got more texts")
        try:
            given: _Given | list[_Given] = _decode_input(text)
        except msgspec.ValidationError as error:
            place = _place(str(error))
            self._refuse("got something else here", "/input" + _pointer(place[1] if place else ""))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise MalformedError("the input is not valid JSON, or holds half a surrogate pair") from None
        return given

    def _admit(self, given: Sequence[tuple[str | None, _Given]]) -> Payload:
        """The payload of rows, each with its pointer (None: a raw body)."""
        size = 0
        for pointer, row in given:
            for field, text in _fields(row):
                where = None if pointer is None else pointer + field
                self._check_characters(text, where)
                size += len(text.encode())
        check_size(size, self._bytes_max)
        return Payload(TEXTS, _encode_rows([[text for _, text in _fields(row)] for _, row in given]))

    def _check_characters(self, text: str, pointer: str | None) -> None:
        if len(text) > self._chars_max:
            raise InvalidInputError(
                f"the text has {len(text)} characters; this model takes up to {self._chars_max}", pointer=pointer
            )

    def _refuse(self, got: str, pointer: str = "/input") -> NoReturn:
        form = 'a string, {"text": "...", "pair": "..."}'
        raise InvalidInputError(
            f"{got}; expected {form}, or a list of 1 to {self._rows_max} of these", pointer=pointer
        )


class _Stage:
    """The worker's side of the kind."""

    def __init__(self, tokens: Tokens, inputs: TokenInputs, options: TextOptions) -> None:
        self._tokens, self._inputs = tokens, inputs
        self._tokens_max = inputs.lengths[-1]
        if self._tokens_max <= tokens.two.added:
            raise SetupError(
                f"preprocess.options.tokens_max: {self._tokens_max} leaves no room for text beside "
                f"{tokens.two.added} special tokens"
            )
        self._strict, self._left = options.truncation == "error", options.truncation == "left"
        self._pad = tokens.pad_id(options.pad_token, options.pad_id), tokens.pad_type

    def run(self, items: Sequence[list[list[str]] | PenstockError]) -> list[Tensors | PenstockError]:
        """Encode the texts of all items together, and make the tensors of each."""
        texts = [text for item in items if isinstance(item, list) for row in item for text in row]
        keep = slice(-self._tokens_max, None) if self._left else slice(self._tokens_max)
        bare = iter(self._tokens.bare(texts, keep))
        return [
            self._tensors([[next(bare) for _ in row] for row in item]) if isinstance(item, list) else item
            for item in items
        ]

    def _tensors(self, rows: list[list[Bare | None]]) -> Tensors | PenstockError:
        try:
            return self._inputs.tensors([self._row(number, row) for number, row in enumerate(rows)], *self._pad)
        except InvalidInputError as error:
            return error

    def _row(self, number: int, row: list[Bare | None]) -> Marks:
        texts = [text for text in row if text is not None]
        if len(texts) < len(row):
            raise InvalidInputError(f"row {number}: the model's tokenizer cannot take this text")
        template = self._tokens.one if len(texts) == 1 else self._tokens.two
        lengths = [text.length for text in texts]
        total = sum(lengths) + template.added
        if self._strict and total > self._tokens_max:
            raise InvalidInputError(f"row {number} has {total} tokens; this model takes up to {self._tokens_max}")
        kept = shares(lengths, self._tokens_max - template.added)
        return template.row([self._cut(text.ids, count) for text, count in zip(texts, kept, strict=True)])

    def _cut(self, ids: list[int], count: int) -> list[int]:
        return ids[len(ids) - count :] if self._left else ids[:count]


def _fields(row: _Given) -> tuple[tuple[str, str], ...]:
    """The texts of a row, and where in it they stand."""
    return (("", row),) if isinstance(row, str) else (("/text", row.text), ("/pair", row.pair))


def _pointer(place: str) -> str:
    """``[3].pair`` as ``/3/pair``."""
    return place.replace("[", "/").replace("]", "").replace(".", "/")


def _unpacked(payload: Payload) -> list[list[str]] | PenstockError:
    if payload.media_type != TEXTS:
        return InvalidInputError("the stored input is not a text; submit it again")
    try:
        rows: list[list[str]] = _decode_rows(payload.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return InvalidInputError("the stored input cannot be read; submit it again")
    return rows
