"""One graph in ONNX Runtime: arrays in, arrays out, and the runtime's errors in our words.

Axis 0 of every input and output is the row axis. Safe to run from many threads at once.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import onnxruntime as ort

from inference import binding, providers, warmup
from inference.graphcache import Slot
from jobs.errors import DeviceLostError, ModelError, OutOfMemoryError, PenstockError, SetupError
from jobs.faults import faults
from jobs.models import InferenceConfig, Signature, TensorSpec
from jobs.tensors import DTYPES, Tensors, rows_of

log = logging.getLogger(__name__)

_DEFAULTS = InferenceConfig()
_BOUND = {"CUDA", "Tensorrt"}
"""Where IO binding saves a copy; ``binding`` has the figures."""
_FATAL_ONLY = 4
"""ONNX Runtime's log severity: its errors reach us as exceptions."""

_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
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

    def run_bound(self, inner: Any, outputs: Sequence[TensorSpec], feeds: Tensors) -> list[Any]:
        """Run once with IO binding; can be ended too, and raises what the runtime raises."""
        return binding.run(inner, outputs, feeds, self._options)


class Session:
    """A loaded graph. ``provider`` is where it runs: ``CPU``, ``CUDA``, ``Tensorrt`` or ``OpenVINO``."""

    device_lost: ClassVar[bool] = False
    """Whether a run of this process met an error after which none can work: all that fails then fails of that."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.signature = _signature(inner)
        self.provider = providers.running(inner)[0].removesuffix("ExecutionProvider")
        self._bound = self.provider in _BOUND
        self._outputs = [spec.name for spec in self.signature.outputs]

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        threads: int,
        mem_pattern: bool = False,
        config: InferenceConfig = _DEFAULTS,
        slot: Slot | None = None,
        custom_ops: Sequence[Path] = (),
    ) -> Session:
        """Load the graph at ``path`` with ``threads`` intra-op threads, on the first provider that is truly there.

        ``mem_pattern`` is for graphs whose dimensions are fixed but for axis 0: ONNX Runtime keeps one plan
        for each shape that it ever saw. In ``slot`` the optimised graph is kept for the next start. The libraries
        ``custom_ops`` are loaded into this process. SetupError where the graph or a library cannot be loaded, where
        the graph has types that we do not carry, or does not run on the provider that ``config`` requires.
        """
        options = functools.partial(_options, config, threads, custom_ops, mem_pattern=mem_pattern)
        if slot is not None and providers.cpu_only(config):
            return cls(slot.load(options, config))
        return cls(providers.load(path, options(), config, None if slot is None else slot.engines))

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
            if self._bound:
                arrays = halt.run_bound(self._inner, self.signature.outputs, feeds)
            else:
                arrays = halt.run(self._inner, self._outputs, feeds)
        except Exception as error:  # noqa: BLE001 - the runtime raises many classes, Exception is all they share
            raise halt.error or _mapped(error) from None
        for name, array in zip(self._outputs, arrays, strict=True):
            if array.ndim == 0 or array.shape[0] != rows:
                raise ModelError(f"output {name} has shape {list(array.shape)} for {rows} rows; axis 0 must be rows")
        return dict(zip(self._outputs, arrays, strict=True))

    def warm(self, config: InferenceConfig) -> None:
        """Run zeros at every bucket of rows, so that the first job finds kernels and memory ready.

        SetupError where that fails; but where a dimension is open and ``inference.warm_shapes`` does not tell its
        size, we can only guess (1), and a graph that refuses the guess is not broken.
        """
        for rows, zeros in warmup.batches(self.signature, config):
            try:
                self.run(zeros)
            except OutOfMemoryError:
                raise SetupError(f"out of memory at {rows} rows; lower inference.batch_max") from None
            except ModelError as error:
                if not warmup.is_guess(self.signature, config):
                    raise SetupError(f"a run of zeros at {rows} rows failed: {error.detail}") from None
                log.info("warm-up at %d rows was refused; inference.warm_shapes can tell the open dimensions", rows)

    @property
    def fixed_rows(self) -> int | None:
        """The number of rows that the graph insists on, None where axis 0 is open."""
        return self.signature.inputs[0].shape[0]


def is_fixed(signature: Signature) -> bool:
    """Whether the inputs' dimensions are fixed but for axis 0."""
    return all(None not in spec.shape[1:] for spec in signature.inputs)


def _options(config: InferenceConfig, threads: int, custom_ops: Sequence[Path], *, mem_pattern: bool) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[config.graph_optimization]
    options.enable_cpu_mem_arena = config.cpu_arena
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = mem_pattern
    options.log_severity_level = _FATAL_ONLY
    for library in custom_ops:
        _register(options, library)
    return options


def _register(options: Any, library: Path) -> None:
    try:
        options.register_custom_ops_library(str(library))
    except Exception:
        log.warning("ONNX Runtime cannot load a library of custom operators", exc_info=True)
        raise SetupError(f"{library.name}: not a library of custom operators that can be loaded") from None


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
