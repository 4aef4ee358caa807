"""Libraries of custom operators: native code that a model brings along, loaded only where the operator allows it."""

from __future__ import annotations

from pathlib import Path

from inference.files import paths
from jobs.errors import SetupError
from jobs.models import ModelConfig

_SUFFIX = ".so"


def libraries(config: ModelConfig, folder: Path, root: Path, *, allowed: bool) -> list[Path]:
    """The libraries that ``inference.custom_ops`` names, in its order; ``root`` is the models folder.

    Each is a file of the version in ``folder``, or one beside it in the model's. SetupError where one is not, or
    where there are any and that is not ``allowed``.
    """
    names = config.inference.custom_ops
    if names and not allowed:
        raise SetupError(
            f"inference.custom_ops: {names[0]!a} is native code, which runs in the worker's own process: set"
            " PENSTOCK_CUSTOM_OPS=true if you trust whoever made it"
        )
    files = paths(folder, root) if names else {}
    return [_library(name, files) for name in names]


def _library(name: str, files: dict[str, Path]) -> Path:
    if "/" in name or not name.endswith(_SUFFIX):
        raise SetupError(f"inference.custom_ops: {name!a} is not the name of a {_SUFFIX} file")
    found = files.get(name) or files.get(f"../{name}")
    if found is None:
        raise SetupError(f"inference.custom_ops: {name!a}: no such file; put it beside the graph or model.toml")
    return found.resolve()
