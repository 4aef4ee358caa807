"""Loads a graph on the execution provider that is preferred and truly there, and says where it then runs.

A provider may be absent from this build of ONNX Runtime, refuse to start (an exception), or be left out in silence
(its libraries are missing). ONNX Runtime's own fallback is off: it prints to stdout, and moves a session that serves
to the CPU after a failed run, under the feet of the other threads.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from inference.options import NAMES, ProviderOptions, provider_options
from jobs.errors import SetupError
from jobs.models import InferenceConfig

log = logging.getLogger(__name__)

_BY_DEFAULT = InferenceConfig().providers
_CUDA = {NAMES["tensorrt"], NAMES["cuda"]}
RECORD_NODES = "session.record_ep_graph_assignment_info"
"""Session configuration key: remember which provider took which nodes."""


def load(path: Path, options: Any, config: InferenceConfig, cache_folder: Path | None = None) -> Any:
    """Open an ``ort.InferenceSession`` on the first of the providers of ``config`` that starts.

    ``cache_folder`` is this graph's own, for what providers keep between starts.
    SetupError where the graph cannot be loaded, or runs on nothing as good as what ``config`` requires.
    """
    must = NAMES[config.required] if config.required else ""
    _check_there(must)
    options.add_session_config_entry(RECORD_NODES, "1")
    wanted = provider_options(config, cache_folder)
    ladder = _there(wanted)
    _make_folders(ladder)
    inner = _open(path, options, ladder, must)
    runs = running(inner)
    order = [name for name, _ in ladder]
    if must and order.index(runs[0]) > order.index(must):
        raise SetupError(f"inference.required: the graph runs on {_short(runs[0])}, not on {_short(must)}; {_REMEDY}")
    preferred = (ladder if config.providers == _BY_DEFAULT else wanted)[0][0]
    if preferred != runs[0]:
        _say_once(str(path), preferred, runs[0])
    return inner


def cpu_only(config: InferenceConfig) -> bool:
    """Whether a graph of these options can run on the CPU alone, with this build of ONNX Runtime."""
    return [name for name, _ in _there(provider_options(config))] == [NAMES["cpu"]]


def running(inner: Any) -> list[str]:
    """The providers that took nodes of the graph, the preferred one first; all of the session where that is unknown.

    A provider may start and yet take no node, so that everything runs on the CPU.
    """
    registered: list[str] = inner.get_providers()
    took = {each.ep_name for each in _assigned(inner)}
    return [name for name in registered if name in took] or registered


def nodes(inner: Any) -> int:
    """How many nodes the graph has, optimised; 0 where that is unknown."""
    return sum(len(each.get_nodes()) for each in _assigned(inner))


def _assigned(inner: Any) -> Sequence[Any]:
    """Parts of the graph, each with its provider; none where that was not recorded, or cannot be told."""
    try:
        parts: Sequence[Any] = inner.get_provider_graph_assignment_info()
    except Exception:  # noqa: BLE001 - the runtime raises many classes, Exception is all they share
        return ()
    return parts


_REMEDY = "the worker's log says why; mend that, or change model.toml"


def _check_there(must: str) -> None:
    there = ort.get_available_providers()
    if must and must not in there:
        has = ", ".join(_short(name) for name in there)
        raise SetupError(
            f"inference.required: this build of ONNX Runtime has no {_short(must)}, only {has}; install the build "
            "that has it, or change model.toml"
        )


def _there(wanted: ProviderOptions) -> ProviderOptions:
    """What of ``wanted`` this build of ONNX Runtime has."""
    there = ort.get_available_providers()
    return [each for each in wanted if each[0] in there]


def _make_folders(ladder: ProviderOptions) -> None:
    """Make the folders that providers keep their caches in; one that cannot be made costs no start."""
    for _, options in ladder:
        for key in {"trt_engine_cache_path", "cache_dir"} & options.keys():
            with contextlib.suppress(OSError):
                Path(options[key]).mkdir(mode=0o700, parents=True, exist_ok=True)


def _open(path: Path, options: Any, ladder: ProviderOptions, must: str) -> Any:
    """Step down from the preferred provider to the next until one starts; never below ``must``."""
    if any(name in _CUDA for name, _ in ladder):
        _preload()
    for step, (name, _) in enumerate(ladder):
        try:
            return ort.InferenceSession(path, options, providers=ladder[step:], enable_fallback=0)
        except Exception as error:  # the runtime raises many classes, Exception is all they share
            log.warning("ONNX Runtime cannot load a graph", extra={"provider": _short(name)}, exc_info=True)
            if name in {must, ladder[-1][0]}:
                raise _refusal(error, must) from None
    raise AssertionError("the CPU is always there")


def _refusal(error: Exception, must: str) -> SetupError:
    kind = type(error).__name__
    where = f" on {_short(must)}, which inference.required asks for" if must else ""
    return SetupError(f"ONNX Runtime cannot load the graph{where} ({kind}); the worker's log says more")


@functools.cache
def _preload() -> None:
    """Load CUDA's libraries from their wheels, once in this process."""
    ort.preload_dlls()


@functools.cache
def _say_once(path: str, preferred: str, runs: str) -> None:
    """Cached, so that a version that is opened again and again says it once."""
    level = logging.ERROR if runs == NAMES["cpu"] else logging.WARNING
    told = {"graph": path, "preferred": _short(preferred), "runs": _short(runs)}
    log.log(level, "a graph does not run on the provider that is preferred", extra=told)


def _short(name: str) -> str:
    return name.removesuffix("ExecutionProvider")
