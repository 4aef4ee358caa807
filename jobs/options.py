"""Strict reading of what stands in ``model.toml``: unknown keys and wrong types are named, with a remedy."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from jobs.errors import SetupError

T = TypeVar("T")


def read(value: Any, form: type[T], where: str = "") -> T:
    """``value`` (plain dicts and lists) as the struct ``form``; ``where`` is the dotted key it stands under.

    SetupError such as ``preprocess.options.scale: Expected `float`, got `str```.
    """
    try:
        return msgspec.convert(value, form)
    except msgspec.ValidationError as error:
        raise SetupError(_explain(str(error), form, where)) from None


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
