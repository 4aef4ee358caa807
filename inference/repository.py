"""The models folder: ``<models>/<name>/<version>/model.onnx``, ``model.toml`` beside it or one folder up.

A ``model.toml`` in the version's folder wins over the one of the model; without either the defaults hold.
Nothing here loads a graph, so that any process may look.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inference.files import CONFIG, Stamp, check_inside, is_passed_over, stamp
from inference.options import check
from jobs import options
from jobs.errors import SetupError
from jobs.models import ModelConfig

GRAPH = "model.onnx"

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_VERSION = re.compile(r"[1-9][0-9]{0,9}")
_VERSION_MAX = 2**31 - 1
_CONFIG_BYTES_MAX = 1024 * 1024
_PARTS_MAX = 16
_LONG_KEY = re.compile(
    r"""(?<![\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){%d}""" % _PARTS_MAX  # noqa: UP031 - braces
)
"""A key of more parts than any has; tomllib's time and memory grow with the square of their number."""


class Version(NamedTuple):
    """One version of a model: the folder of its files, and its ``model.toml``."""

    name: str
    version: int
    folder: Path
    config: ModelConfig


class Scan(NamedTuple):
    """What lies in a models folder: the versions, by name and number, and what was refused, by its place there."""

    versions: list[Version]
    faults: dict[str, SetupError]


def scan(models: Path) -> Scan:
    """Every version under ``models``; what begins with ``.`` or ``_`` is passed over.

    So are plain files, and in a model's folder all that is not named by digits alone (``samples``). What is wrong in
    one place is a fault of that place and hides no other; SetupError where the folder itself is missing.
    """
    root = _root(models)
    versions, faults = [], {}
    for place in _places(root):
        try:
            versions.append(_version(root, place))
        except SetupError as error:
            faults[place] = error
    return Scan(sorted(versions, key=lambda version: version[:2]), faults)


def stamps(models: Path) -> dict[str, Stamp]:
    """By place, what changes when the files of a version may have: cheap to ask for again and again.

    SetupError where the folder is missing.
    """
    root = _root(models)
    return {place: _stamp(root, place) for place in _places(root)}


def read(models: Path, place: str) -> Version:
    """The version at ``name/version`` of the folder; SetupError that says what is wrong there."""
    return _version(_root(models), place)


def read_config(folder: Path) -> ModelConfig:
    """Read the configuration of the version in ``folder``; SetupError that names file, key and remedy."""
    for file in (folder / CONFIG, folder.parent / CONFIG):
        if file.is_file():
            return _parse(file)
    return ModelConfig()


def place_of(name: str, version: int) -> str:
    """Where a version lies in the models folder; its record has the same name in the store."""
    return f"{name}/{version}"


def is_model(name: str) -> bool:
    """Whether a model can have this name."""
    return bool(_NAME.fullmatch(name))


def is_version(place: str) -> bool:
    """Whether a version can lie at ``place``: its name and its number are ones that we serve."""
    name, _, number = place.partition("/")
    return bool(is_model(name) and _VERSION.fullmatch(number) and int(number) <= _VERSION_MAX)


def _root(models: Path) -> Path:
    if not models.is_dir():
        raise SetupError(f"{models}: no such folder; create it or set PENSTOCK_MODELS")
    return models.resolve()


def _places(root: Path) -> Iterator[str]:
    """``name/version`` of what is or was meant to be a version; a folder of no valid name stands for all in it."""
    for model in _folders(root):
        try:
            versions = [each.name for each in _folders(model) if each.name.isdigit()]
        except FileNotFoundError:  # gone since it was listed
            continue
        except OSError:
            yield model.name
            continue
        if is_model(model.name):
            yield from (f"{model.name}/{each}" for each in versions)
        else:
            yield model.name


def _folders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir() and not is_passed_over(each.name))


def _version(root: Path, place: str) -> Version:
    name, _, number = place.partition("/")
    folder = root / place
    if not is_model(name):
        raise SetupError(f"{folder}: not a model name; use 1 to 63 of a-z 0-9 . _ - and start with a letter or digit")
    if not number:
        raise SetupError(f"{folder}: cannot be read")
    if not _VERSION.fullmatch(number) or int(number) > _VERSION_MAX:
        raise SetupError(
            f"{folder}: not a version; use a whole number from 1 to {_VERSION_MAX} without leading zeros"
        )
    check_inside(folder, root)
    if not (folder / GRAPH).is_file():
        raise SetupError(f"{folder / GRAPH}: no such file; every version's folder needs one")
    check_inside(folder / GRAPH, root)
    return Version(name, int(number), folder, read_config(folder))


def _stamp(root: Path, place: str) -> Stamp:
    try:
        return stamp(root / place, root)
    except (SetupError, OSError) as error:  # it is said when the version is read
        return ((str(error), 0, 0, 0, 0),)


def _parse(file: Path) -> ModelConfig:
    try:
        config = options.read(tomllib.loads(_text(file)), ModelConfig)
        _check_ranges(config)
    except SetupError as error:
        raise SetupError(f"{file}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise SetupError(f"{file}: not valid TOML: {error}") from None
    except UnicodeDecodeError:
        raise SetupError(f"{file}: not UTF-8; save it as UTF-8") from None
    except (RecursionError, ValueError):  # tomllib's own: nested too deeply, a number of thousands of digits
        raise SetupError(f"{file}: nested too deeply, or a number is too long") from None
    except OSError as error:
        raise SetupError(f"{file}: cannot be read: {error.strerror}") from None
    return config


def _text(file: Path) -> str:
    if file.stat().st_size > _CONFIG_BYTES_MAX:
        raise SetupError(f"larger than {_CONFIG_BYTES_MAX} bytes; it should hold settings only")
    text = file.read_text("utf-8")
    if key := _LONG_KEY.search(text):
        line = text.count("\n", 0, key.start()) + 1
        raise SetupError(f"line {line}: a key of more than {_PARTS_MAX} parts; no key here has more than two")
    return text


def _check_ranges(config: ModelConfig) -> None:
    """SetupError for the first value that no model could run with."""
    inference, limits, retry = config.inference, config.limits, config.retry
    ranges = {
        "inference.batch_max": (inference.batch_max, 1, 65_536),
        "inference.intra_op_threads": (inference.intra_op_threads, 0, 1_024),
        "inference.gpu_memory_bytes_max": (inference.gpu_memory_bytes_max, 0, 2**48),
        "limits.input_bytes_max": (limits.input_bytes_max, 1, 2**31),
        "limits.stage_s_max": (limits.stage_s_max, 0.1, 86_400),
        "limits.rows_max": (limits.rows_max, 1, 65_536),
        "limits.ttl_s_max": (limits.ttl_s_max, 1, 30 * 86_400),
        "limits.ttl_s_default": (limits.ttl_s_default, 1, limits.ttl_s_max),
        "retry.attempts_max": (retry.attempts_max, 1, 100),
        "retry.backoff_max_s": (retry.backoff_max_s, 0, 86_400),
        "cache.ttl_s": (config.cache.ttl_s, 0, 30 * 86_400),
        "weight": (config.weight, 0.01, 100),
        "retry.backoff_base_s": (retry.backoff_base_s, 0, retry.backoff_max_s),
    }
    for key, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise SetupError(f"{key}: {value} is out of range; use {low} to {high}")
    if not re.fullmatch(r"[a-z0-9-]{1,32}", config.pool):
        raise SetupError(f"pool: {config.pool!r} is not a pool name; use 1 to 32 of a-z 0-9 -")
    check(inference)
