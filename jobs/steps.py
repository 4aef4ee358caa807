"""A user's own step: a plain function in a Python file beside ``model.toml``, or an entry point of a package.

Only a worker loads it, never a gateway. A file is taken from the version's folder, else from the model's, and runs
once for each worker and digest: what was hashed is what runs. It is the operator's own code, and may do whatever the
worker may; ``PENSTOCK_PYTHON_STEPS=false`` refuses all of them.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import linecache
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import msgspec

from jobs.errors import InternalError, OutOfMemoryError, PenstockError, SetupError
from jobs.settings import settings

log = logging.getLogger(__name__)

GROUP = "penstock.steps"
"""Entry points of installed packages that a model may name."""
FILE = "steps.py"

_SOURCE_BYTES_MAX = 1024 * 1024
_TEXT_MAX = 200

Step: TypeAlias = Callable[[list[Any], dict[str, Any]], Any]


class StepOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the function is: ``file`` and ``function`` (else of the stage's name), or ``entry_point``.

    ``parameters`` is handed to it as it stands.
    """

    file: str = ""
    function: str = ""
    entry_point: str = ""
    parameters: dict[str, Any] = {}


def load(stage: str, options: StepOptions, folder: Path) -> Step:
    """Load the function of a version that lies in ``folder``; SetupError that names the key, or the file and line."""
    key = f"{stage}.options"
    if not settings().python_steps:
        raise SetupError(f"{stage}.kind: Python steps are switched off here; PENSTOCK_PYTHON_STEPS=true allows them")
    if options.entry_point:
        if options.file or options.function:
            raise SetupError(f"{key}.entry_point: it names a function by itself; leave file and function out")
        return _checked(_registered(options.entry_point, f"{key}.entry_point"), f"{key}.entry_point")
    file = options.file or FILE
    module = _module(find(file, folder, f"{key}.file"), f"{key}.file")
    name = options.function or stage
    function = getattr(module, name, None)
    if function is None:
        raise SetupError(f"{key}.function: {file} has no {name}; define it there or name another")
    return _checked(function, f"{key}.function")


def find(file: str, folder: Path, key: str) -> Path:
    """The file of a step: in the version's ``folder``, else in the model's.

    SetupError where it is in neither, lies outside, or has a name that does not count among a version's files.
    """
    if Path(file).name != file or not file.endswith(".py") or file.startswith((".", "_")):
        raise SetupError(f"{key}: {file[:64]!r} is not the plain name of a Python file, such as {FILE}")
    for place in (folder, folder.parent):
        if (place / file).is_file():
            found = (place / file).resolve()
            if not found.is_relative_to(folder.parent.resolve()):
                raise SetupError(f"{key}: {file} is a link that leaves the model's folder; copy the file into it")
            return found
    raise SetupError(f"{key}: {file} is neither in the version's folder nor in the model's; put it beside model.toml")


def parameters_of(options: StepOptions) -> dict[str, Any]:
    """A copy that the function may do with as it likes."""
    return copy.deepcopy(options.parameters)


def outcome_of(error: BaseException, stage: str, blame: type[PenstockError]) -> PenstockError:
    """What an error of the function means for its item: a ValueError's text is for the client, nothing else is."""
    if isinstance(error, ValueError):
        return blame(_said(error) or f"The step {stage} refused the input.")
    if isinstance(error, MemoryError):
        return OutOfMemoryError(f"The step {stage} ran out of memory.")
    log.error("step failed", exc_info=error, extra={"stage": stage})
    return InternalError(f"The step {stage} failed.")


def _said(error: ValueError) -> str:
    """What the step's author wrote for the client: one line, bounded, of characters that JSON can carry."""
    try:
        text = str(error)[: 4 * _TEXT_MAX]
    except Exception:  # noqa: BLE001 - a __str__ of anybody's
        return ""
    return " ".join(text.encode("utf-8", "replace").decode().split())[:_TEXT_MAX]


# --- Files ---

_modules: dict[str, ModuleType] = {}
_lock = threading.Lock()


def _module(path: Path, key: str) -> ModuleType:
    """The module of a file, loaded once for each path and content."""
    try:
        if path.stat().st_size > _SOURCE_BYTES_MAX:
            raise SetupError(f"{key}: {path.name} is larger than {_SOURCE_BYTES_MAX} bytes; make a package of it")
        source = path.read_bytes()
    except OSError as error:
        raise SetupError(f"{key}: {path.name} cannot be read: {error.strerror}") from None
    name = "penstock_step_" + hashlib.sha256(bytes(path) + b"\0" + source).hexdigest()[:32]
    with _lock:
        if name not in _modules:
            _modules[name] = _executed(name, path, source, key)
        return _modules[name]


def _executed(name: str, path: Path, source: bytes, key: str) -> ModuleType:
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and the like look their module up there
    linecache.checkcache(str(path))
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - what a step is
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        log.exception("step cannot be loaded", extra={"file": str(path)})
        raise SetupError(f"{key}: {_where(error, path)}; the worker's log says more") from None
    return module


def _where(error: BaseException, path: Path) -> str:
    """File, line and class of an error, without the text of a library."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path.name}, line {error.lineno}: {type(error).__name__} ({error.msg})"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    at = f", line {lines[-1]}" if lines else ""
    return f"{path.name}{at}: {type(error).__name__}"


# --- Entry points ---


def _registered(wanted: str, key: str) -> Any:
    """What an installed package registered as ``wanted``, by name or as ``package.module:function``."""
    group = entry_points(group=GROUP)
    found = {each.value: each for each in group if wanted in (each.name, each.value)}
    if len(found) != 1:
        known = ", ".join(sorted({each.name for each in group})) or "none"
        problem = "is registered by several packages" if found else "is registered by no installed package"
        raise SetupError(f"{key}: {wanted[:64]!r} {problem}; entry points of {GROUP} here: {known}")
    ((value, entry),) = found.items()
    try:
        return entry.load()
    except (Exception, SystemExit) as error:
        log.exception("step cannot be loaded", extra={"entry_point": value})
        frames = traceback.extract_tb(error.__traceback__)
        path = Path(frames[-1].filename if frames else value)
        raise SetupError(f"{key}: {value}: {_where(error, path)}; the worker's log says more") from None


def _checked(function: Any, key: str) -> Step:
    """SetupError where it cannot be called with the inputs and the parameters, or gives a coroutine."""
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise SetupError(f"{key}: not a plain function; define one with `def`")
    try:
        inspect.signature(function).bind([], {})
    except TypeError:
        raise SetupError(f"{key}: it must take two arguments, a list of items and the parameters") from None
    except ValueError:  # a built-in function does not tell
        pass
    step: Step = function
    return step
