"""Texts to token ids by the ``tokenizer.json`` beside a model; workers only.

The file's own truncation and padding are switched off. ``tokenizers`` keeps what it cuts off, and of a pair every
combination of what it cut off both: 80 kB of text took 1.6 GB and nine seconds. So texts are encoded bare, as many
characters at a time as take little memory, and ``preprocess.template`` puts them together.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from jobs.errors import SetupError
from preprocess.template import Template, learn

log = logging.getLogger(__name__)

FILE = "tokenizer.json"

_BYTES_MAX = 128 * 1024 * 1024
"""The largest in use, of vocabularies of 256,000 words, have 35 MB."""
_CHARACTERS_A_CALL = 250_000
"""A character becomes at most four tokens, of about 100 bytes each while the call lasts."""
_PAD_TOKENS = ("[PAD]", "<pad>")
_PROBES_MAX = 256


class Bare(NamedTuple):
    """A text without special tokens: the ids of it that may be kept, and how long it was."""

    ids: list[int]
    length: int


class Tokens:
    """One tokenizer, safe to share between threads; SetupError where the file of ``folder``'s version is no good."""

    def __init__(self, folder: Path) -> None:
        path = _find(folder)
        self._called = path.relative_to(folder.parent.parent)
        self._inner = _read(path, self._called)
        self._padding: dict[str, Any] = self._inner.padding or {}
        self._inner.no_padding()
        self._inner.no_truncation()
        self.one, self.two = (self._template(texts) for texts in (1, 2))

    @property
    def pad_type(self) -> int:
        """The token type of padding."""
        return int(self._padding.get("pad_type_id", 0))

    def pad_id(self, token: str, given: int | None) -> int:
        """The id that fills rows up: the one ``given``, or that of ``token``, or of the tokenizer's own."""
        if token:
            found = self._inner.token_to_id(token)
            if found is None or given not in (None, found):
                raise SetupError(
                    f"preprocess.options.pad_token: {token!r} has the id {found} in {self._called}; "
                    "give another token, or pad_id alone"
                )
            return int(found)
        known = (self._inner.token_to_id(each) for each in _PAD_TOKENS)
        ids = (given, self._padding.get("pad_id"), *known)
        pad_id = next((each for each in ids if each is not None), None)
        if pad_id is None:
            raise SetupError(f"preprocess.options.pad_id: missing, and {self._called} names no token for padding")
        return int(pad_id)

    def bare(self, texts: Sequence[str], keep: slice) -> list[Bare | None]:
        """Encode without special tokens; None for a text that the tokenizer cannot take."""
        return [bare for some in _calls(texts) for bare in self._bare(some, keep)]

    def _bare(self, texts: list[str], keep: slice) -> list[Bare | None]:
        try:
            encoded = self._inner.encode_batch_fast(texts, add_special_tokens=False)
        except BaseException as error:
            if isinstance(error, MemoryError) or not _is_the_librarys(error):
                raise
            if len(texts) > 1:  # which of them is it?
                return [bare for text in texts for bare in self._bare([text], keep)]
            log.warning("the tokenizer failed on a text", exc_info=True)
            return [None]
        return [Bare(each.ids[keep], len(each)) for each in encoded]

    def _template(self, texts: int) -> Template:
        probe, bare = self._probe()
        row = self._inner.encode(*[probe] * texts)
        template = learn(row.ids, row.type_ids, row.sequence_ids)
        if template is None or len(template.types) != texts or template.row([bare] * texts).ids != row.ids:
            raise SetupError(f"{self._called}: its template puts texts out of order, or twice; that is not served")
        return template

    def _probe(self) -> tuple[str, list[int]]:
        """A text of at least one token, and its ids."""
        words: Iterator[str] = chain("a0.", islice(self._inner.get_vocab(), _PROBES_MAX))
        for word in words:
            if ids := self._inner.encode(word, add_special_tokens=False).ids:
                return word, ids
        raise SetupError(f"{self._called}: it makes no token of its own words; save the tokenizer again")


def _find(folder: Path) -> Path:
    for path in (folder / FILE, folder.parent / FILE):
        if path.is_file():
            return path
    raise SetupError(
        f"{folder.parent.name}/{folder.name}/{FILE}: no such file, nor one folder up; kind text needs the model's own"
    )


def _read(path: Path, called: Path) -> Any:
    # Stages run in threads already, one micro-batch each, and ONNX Runtime has threads of its own: a third pool, as
    # wide as the machine, would only take cores from the model.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if path.stat().st_size > _BYTES_MAX:
            raise SetupError(f"{called}: larger than {_BYTES_MAX} bytes, which no tokenizer is")
        data = path.read_bytes()
    except OSError as error:
        raise SetupError(f"{called}: cannot be read: {error.strerror}") from None
    tokenizers = import_module("tokenizers")
    try:
        return tokenizers.Tokenizer.from_buffer(data)
    except BaseException as error:
        if not _is_the_librarys(error):
            raise
        log.warning("tokenizers cannot read a file", exc_info=True)
        raise SetupError(
            f"{called}: not a tokenizer that tokenizers {tokenizers.__version__} reads; the worker's log says more"
        ) from None


def _is_the_librarys(error: BaseException) -> bool:
    """Whether it is an error of the library: a panic of its Rust code is no Exception, and has no class to import."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _calls(texts: Sequence[str]) -> Iterator[list[str]]:
    """Cut into calls of at most ``_CHARACTERS_A_CALL``, unless one text has more."""
    call: list[str] = []
    characters = 0
    for text in texts:
        if call and characters + len(text) > _CHARACTERS_A_CALL:
            yield call
            call, characters = [], 0
        call.append(text)
        characters += len(text)
    if call:
        yield call
