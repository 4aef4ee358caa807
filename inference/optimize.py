"""A new version from an old one: half precision, integer weights, or a graph optimised beforehand.

Pure of stores and queues: ``optimize`` reads one version's folder and writes another's. What it writes is compared
with the old version on sample inputs, on the CPU with one thread, before it takes its name; beyond the tolerance
nothing is left behind. The new graph is trusted no more than any other: a worker tries it before it serves it.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import onnxruntime as ort

from inference.comparison import Comparison, compare
from inference.repository import GRAPH
from jobs.errors import SetupError
from jobs.tensors import Tensors

Method = Literal["fp16", "int8", "graph"]


class Tolerance(msgspec.Struct, frozen=True):
    """How far outputs may go: the largest absolute difference, and the least share of rows of the same argmax."""

    difference_max: float
    agreement_min: float


TOLERANCES: dict[Method, Tolerance] = {
    "fp16": Tolerance(0.01, 0.99),
    "int8": Tolerance(0.1, 0.98),
    "graph": Tolerance(0.0001, 0.999),
}
"""What each method is held to unless told otherwise; for outputs of the size of probabilities or small logits."""


def optimize(
    folder: Path, target: Path, method: Method, samples: Sequence[Tensors], tolerance: Tolerance | None = None
) -> Comparison:
    """Write the version in ``folder``, optimised, as ``target``; how the two compare on ``samples``.

    SetupError where ``target`` exists, the graph cannot be converted, or its outputs are beyond the tolerance.
    """
    if target.exists():
        raise SetupError(f"{target}: there is such a version; choose a number that is free")
    aside = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        shutil.copytree(folder, aside)
        with _told(method), _path_of_converters():
            _METHODS[method](folder / GRAPH, aside / GRAPH)
        compared = compare(folder / GRAPH, aside / GRAPH, samples)
        _check(compared, tolerance or TOLERANCES[method], method)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return compared


def _check(found: Comparison, tolerance: Tolerance, method: Method) -> None:
    fine = found.difference_max <= tolerance.difference_max and found.agreement >= tolerance.agreement_min
    if not fine:  # so that what is not a number is not fine
        raise SetupError(
            f"{method}: outputs differ by up to {found.difference_max:.3g} (allowed: {tolerance.difference_max:g}) "
            f"and {found.agreement:.2%} of {found.rows} rows agree (wanted: {tolerance.agreement_min:.2%}); "
            "the new version is not kept"
        )


@contextlib.contextmanager
def _told(method: Method) -> Iterator[None]:
    """Whatever the converters raise, in one line."""
    try:
        yield
    except SetupError:
        raise
    except Exception as error:
        raise SetupError(f"{method}: the graph cannot be converted ({type(error).__name__}: {error})") from error


def _onnx() -> Any:
    try:
        import onnx  # noqa: PLC0415 - an extra; workers and gateways do without
    except ModuleNotFoundError:
        raise SetupError("the package onnx is not installed; install penstock[optimize]") from None
    return onnx


def _fp16(source: Path, target: Path) -> None:
    """Weights and arithmetic in half precision; inputs and outputs stay as they are."""
    onnx = _onnx()
    from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: PLC0415 - needs onnx

    _save(onnx, convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def _int8(source: Path, target: Path) -> None:
    """Weights as 8-bit integers, a scale for each channel; activations are quantised as they come."""
    onnx = _onnx()
    from onnxruntime.quantization import quantize_dynamic  # noqa: PLC0415 - needs onnx

    _drop_external(onnx, target)
    # 7 bits of 8: sums of full ones overflow on processors without VNNI, and a version may run on any.
    quantize_dynamic(onnx.load(source), target, per_channel=True, reduce_range=True)


def _graph(source: Path, target: Path) -> None:
    """Fused and folded by ONNX Runtime, as far as no processor's own layout is chosen."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    target.unlink()
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"], enable_fallback=0)


_METHODS: dict[Method, Callable[[Path, Path], None]] = {"fp16": _fp16, "int8": _int8, "graph": _graph}


def _save(onnx: Any, model: Any, target: Path) -> None:
    _drop_external(onnx, target)
    onnx.save(model, target)


def _drop_external(onnx: Any, target: Path) -> None:
    """Remove the copied weights that lie beside the graph: the new graph holds its own."""
    folder = target.parent.resolve()
    for tensor in onnx.load(target, load_external_data=False).graph.initializer:
        for entry in tensor.external_data:
            file = (folder / entry.value).resolve()
            if entry.key == "location" and file.is_relative_to(folder):
                file.unlink(missing_ok=True)


@contextlib.contextmanager
def _path_of_converters() -> Iterator[None]:
    """ONNX Runtime's converters import each other by bare names, and leave their folder on the path."""
    before = list(sys.path)
    sys.path.append(str(Path(ort.__file__).parent / "transformers"))
    try:
        yield
    finally:
        sys.path[:] = before
