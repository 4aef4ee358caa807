"""One graph in ONNX Runtime: arrays in, arrays out, and the runtime's errors in our words.

Axis 0 of every input and output is the row axis. Safe to run from many threads at once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort

from jobs.errors import DeviceLostError, ModelError, OutOfMemoryError, PenstockError, SetupError
from jobs.faults import faults
from jobs.models import Signature, TensorSpec
from jobs.tensors import DTYPES, Tensors, rows_of

log = logging.getLogger(__name__)

PREFERRED = ("CUDAExecutionProvider", "CPUExecutionProvider")
CPU_ONLY = ("CPUExecutionProvider",)

_FATAL_ONLY = 4
"""ONNX Runtime's log severity: its errors reach us as exceptions."""

_DTYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in DTYPES if not name.startswith("float")},
}
"""ONNX Runtime's type names and NumPy's."""

_MEMORY_WORDS = (
    *("out of memory", "failed to allocate", "bad_alloc", "memoryallocation", "cuda failure 2:"),
    "alloc_failed",  # CUBLAS_STATUS_, CUDNN_STATUS_
)
_STICKY = re.compile(
    r"cuda (?:failure|error)[ :]*(?:700|710|716|717|718|719)\b"
    r"|cu(?:blas|dnn)_status_(?:execution_failed|internal_error|mapping_error)"
)
"""Errors after which the CUDA context is dead for good: illegal address, assert, misaligned address, invalid address
space, invalid program counter, launch failure (CUDA runtime API, ``cudaError_t``), and what cuBLAS and cuDNN make of
them.
"""


class Halt:
    """Ends the runs of one stage from another thread; their items then get ``error``."""

    def __init__(self) -> None:
        self.error: PenstockError | None = None
        self._options = ort.RunOptions()

    def now(self, error: PenstockError) -> None:
        """End what runs with this halt, and whatever would begin; the first error stays."""
        if self.error is None:
            self.error = error
            self._options.terminate = True

    def run(self, inner: Any, outputs: Sequence[str], feeds: Tensors) -> list[Any]:
        """One run that can be ended; raises what the runtime raises."""
        arrays: list[Any] = inner.run(outputs, feeds, self._options)
        return arrays


class Session:
    """A loaded graph. ``provider`` is the short name of where it runs: ``CPU`` or ``CUDA``."""

    device_lost: ClassVar[bool] = False
    """Whether a run of this process met an error after which none can work: all that fails then fails of that."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.signature = _signature(inner)
        self.provider: str = inner.get_providers()[0].removesuffix("ExecutionProvider")
        self._outputs = [spec.name for spec in self.signature.outputs]

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        threads: int,
        mem_pattern: bool = False,
        providers: Sequence[str] = PREFERRED,
        custom_ops: Sequence[Path] = (),
    ) -> Session:
        """Load the graph at ``path`` with ``threads`` intra-op threads, on the first provider that is there.

        ``mem_pattern`` is for graphs whose dimensions are fixed but for axis 0: ONNX Runtime keeps one plan
        for each shape that it ever saw. The libraries ``custom_ops`` are loaded into this process. SetupError where
        the graph or a library cannot be loaded, or the graph has types that we do not carry.
        """
        there = ort.get_available_providers()
        if "CUDAExecutionProvider" in there and "CUDAExecutionProvider" in providers:
            ort.preload_dlls()
        options = _options(threads, mem_pattern=mem_pattern)
        for library in custom_ops:
            _register(options, library)
        try:
            inner = ort.InferenceSession(
                path,
                options,
                [each for each in providers if each in there],
            )
        except Exception as error:
            log.warning("ONNX Runtime cannot load a graph", exc_info=True)
            kind = type(error).__name__
            raise SetupError(f"ONNX Runtime cannot load the graph ({kind}); the worker's log says more") from None
        return cls(inner)

    def run(self, feeds: Tensors, halt: Halt | None = None) -> Tensors:
        """Run the graph once; each output has as many rows as the inputs.

        OutOfMemoryError, what ``halt`` was given, and ModelError for all else; DeviceLostError where no run will ever
        work again in this process.
        """
        rows, warming = rows_of(feeds), halt is None
        halt = halt or Halt()
        try:
            if faults and not warming:
                faults.reach("session.run", [feeds])
            arrays = halt.run(self._inner, self._outputs, feeds)
        except Exception as error:  # noqa: BLE001 - the runtime raises many classes, Exception is all they share
            raise halt.error or _mapped(error) from None
        for name, array in zip(self._outputs, arrays, strict=True):
            if array.ndim == 0 or array.shape[0] != rows:
                raise ModelError(f"output {name} has shape {list(array.shape)} for {rows} rows; axis 0 must be rows")
        return dict(zip(self._outputs, arrays, strict=True))

    def warm(self, rows_max: int) -> None:
        """Run zeros at 1 row and at the most rows, so that the first job finds kernels and memory ready.

        SetupError where that fails; but where a dimension is open we can only guess a size (1), and a graph
        that refuses the guess is not broken.
        """
        for rows in sorted({1, self.fixed_rows or rows_max}):
            if self.fixed_rows in (None, rows):
                self._warm(rows)

    @property
    def fixed_rows(self) -> int | None:
        """The number of rows that the graph insists on, None where axis 0 is open."""
        return self.signature.inputs[0].shape[0]

    def _warm(self, rows: int) -> None:
        specs = self.signature.inputs
        try:
            self.run({spec.name: _zeros(spec, rows) for spec in specs})
        except OutOfMemoryError:
            raise SetupError(f"out of memory at {rows} rows; lower inference.batch_max") from None
        except ModelError as error:
            if is_fixed(self.signature):
                raise SetupError(f"a run of zeros at {rows} rows failed: {error.detail}") from None
            log.info("warm-up at %d rows was refused; the graph has open dimensions", rows)


def is_fixed(signature: Signature) -> bool:
    """Whether the inputs' dimensions are fixed but for axis 0."""
    return all(None not in spec.shape[1:] for spec in signature.inputs)


def _options(threads: int, *, mem_pattern: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = mem_pattern
    options.log_severity_level = _FATAL_ONLY
    return options


def _register(options: Any, library: Path) -> None:
    try:
        options.register_custom_ops_library(str(library))
    except Exception:
        log.warning("ONNX Runtime cannot load a library of custom operators", exc_info=True)
        raise SetupError(f"{library.name}: not a library of custom operators that can be loaded") from None


def _zeros(spec: TensorSpec, rows: int) -> Any:
    return np.zeros((rows, *(dim or 1 for dim in spec.shape[1:])), spec.dtype)


def _signature(inner: Any) -> Signature:
    inputs, outputs = (tuple(_spec(each) for each in side) for side in (inner.get_inputs(), inner.get_outputs()))
    if not inputs or not outputs:
        raise SetupError("the graph has no inputs or no outputs")
    if len({spec.shape[0] for spec in inputs}) > 1:
        raise SetupError("the graph's inputs differ in axis 0, which must be the row axis of all; export it again")
    return Signature(inputs, outputs)


def _spec(node: Any) -> TensorSpec:
    dtype = _DTYPES.get(node.type)
    if dtype is None:
        raise SetupError(f"{node.name} is a {node.type}; only tensors of {', '.join(DTYPES)} are served")
    if not node.shape:
        raise SetupError(f"{node.name} is a scalar; axis 0 of every input and output must be the row axis")
    return TensorSpec(node.name, dtype, tuple(dim if isinstance(dim, int) else None for dim in node.shape))


def _mapped(error: Exception) -> Exception:
    """Turn the runtime's errors into ours; the one place where that is done."""
    text = str(error).lower()
    if Session.device_lost or _STICKY.search(text):
        Session.device_lost = True
        log.critical("the device is lost to this process", exc_info=error)
        return DeviceLostError("a CUDA error after which this process can run nothing")
    if isinstance(error, MemoryError) or any(words in text for words in _MEMORY_WORDS):
        return OutOfMemoryError("the model ran out of memory")
    log.warning("ONNX Runtime refused a run (%s)", type(error).__name__, exc_info=error)
    return ModelError(f"ONNX Runtime failed on this input ({type(error).__name__})")
