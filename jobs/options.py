"""Strict reading of what stands in ``model.toml``: unknown kinds, keys and wrong types are named, with a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import msgspec

from jobs.errors import SetupError
from jobs.models import ModelRecord, StageConfig

T = TypeVar("T")


def read(value: Any, form: type[T], where: str = "") -> T:
    """``value`` (plain dicts and lists) as the struct ``form``; ``where`` is the dotted key it stands under.

    SetupError such as ``preprocess.options.scale: Expected `float`, got `str```.
    """
    try:
        return msgspec.convert(value, form)
    except msgspec.ValidationError as error:
        raise SetupError(_explain(str(error), form, where)) from None


class Registry:
    """The kinds of one stage, by the names that its ``kind`` takes; each has its ``Options`` form."""

    def __init__(self, stage: str, **kinds: Any) -> None:
        self._stage = stage
        self._kinds = kinds

    def extended(self, **kinds: Any) -> Registry:
        """A registry of these kinds and ``kinds``."""
        return Registry(self._stage, **self._kinds, **kinds)

    def check(self, config: StageConfig) -> None:
        """SetupError where the kind is not known or its options do not have its form."""
        self._options(config)

    def make(self, config: StageConfig, record: ModelRecord, folder: Path | None = None) -> Any:
        """Make the kind for a version whose signature is known; ``folder`` is the version's own, where there is one.

        SetupError where ``check`` fails, or the options contradict the signature or the folder's files.
        """
        options = self._options(config)
        return self._kinds[config.kind](record, options, folder)

    def _options(self, config: StageConfig) -> Any:
        form = self._kinds.get(config.kind)
        if form is None:
            known = ", ".join(self._kinds)
            raise SetupError(f"{self._stage}.kind: {config.kind!r} is not known; use one of {known}")
        return read(config.options, form.Options, f"{self._stage}.options")


def _explain(text: str, form: Any, where: str) -> str:
    text, _, path = text.partition(" - at `$")
    path = path.rstrip("`")
    key = f"{where}{path}".lstrip(".")
    known = f"; known keys: {', '.join(_keys(form, path))}" if "unknown field" in text else ""
    return f"{key}: {text}{known}" if key else f"{text}{known}"


def _keys(form: Any, path: str) -> tuple[str, ...]:
    for part in filter(None, path.split(".")):
        form = next(field.type for field in msgspec.structs.fields(form) if field.name == part)
    return tuple(field.encode_name for field in msgspec.structs.fields(form)) or ("none",)
