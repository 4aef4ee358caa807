"""The models folder: ``<models>/<name>/<version>/model.onnx``, ``model.toml`` beside it or one folder up.

A ``model.toml`` in the version's folder wins over the one of the model; without either the defaults hold.
Nothing here loads a graph, so that any process may look.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inference.options import check
from jobs import options
from jobs.errors import SetupError
from jobs.models import ModelConfig

GRAPH = "model.onnx"
CONFIG = "model.toml"

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


def scan(models: Path) -> list[Version]:
    """Every version under ``models``, by name and number; what begins with ``.`` or ``_`` is passed over.

    So are plain files, and in a model's folder all that is not named by digits alone (``samples``).
    SetupError where the folder is missing, a name is not one we could serve, or a ``model.toml`` is wrong.
    """
    if not models.is_dir():
        raise SetupError(f"{models}: no such folder; create it or set PENSTOCK_MODELS")
    root = models.resolve()
    found = [version for folder in _folders(root, root) for version in _versions(folder, root)]
    return sorted(found, key=lambda version: version[:2])


def read_config(folder: Path) -> ModelConfig:
    """Read the configuration of the version in ``folder``; SetupError that names file, key and remedy."""
    for file in (folder / CONFIG, folder.parent / CONFIG):
        if file.is_file():
            return _parse(file)
    return ModelConfig()


def digest(folder: Path) -> str:
    """SHA-256 of the version's graph in hex; OSError where it cannot be read."""
    with (folder / GRAPH).open("rb") as graph:
        return hashlib.file_digest(graph, "sha256").hexdigest()


def _versions(folder: Path, root: Path) -> Iterator[Version]:
    if not _NAME.fullmatch(folder.name):
        raise SetupError(f"{folder}: not a model name; use 1 to 63 of a-z 0-9 . _ - and start with a letter or digit")
    for each in _folders(folder, root):
        if not each.name.isdigit():
            continue
        if not _VERSION.fullmatch(each.name) or int(each.name) > _VERSION_MAX:
            raise SetupError(
                f"{each}: not a version; use a whole number from 1 to {_VERSION_MAX} without leading zeros"
            )
        _check_graph(each / GRAPH, root)
        yield Version(folder.name, int(each.name), each, read_config(each))


def _folders(folder: Path, root: Path) -> Iterator[Path]:
    for each in sorted(folder.iterdir()):
        if each.is_dir() and not each.name.startswith((".", "_")):
            _check_inside(each, root)
            yield each


def _check_graph(graph: Path, root: Path) -> None:
    if not graph.is_file():
        raise SetupError(f"{graph}: no such file; every version's folder needs one")
    _check_inside(graph, root)


def _check_inside(path: Path, root: Path) -> None:
    if not path.resolve().is_relative_to(root):
        raise SetupError(f"{path}: a link that leaves the models folder; copy the files into it")


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
