"""What every role knows of a model version: the record that a worker publishes after a trial load.

The gateway validates inputs against the record and needs no model folder. ``ModelConfig`` is ``model.toml``
as written by the user (parsed strictly by ``inference.repository``); ``ModelRecord`` adds what the trial load
found: digests, signature, state.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

SCHEMA = 1
"""Version of the record's form; a process reads its own and the one before."""


class TensorSpec(msgspec.Struct, frozen=True):
    """An input or output of the graph; ``None`` in ``shape`` is a dimension that the graph leaves open.

    Axis 0 is the row axis. ``dtype`` is a NumPy name: ``float32``, ``int64``, ``uint8``, ``bool``...
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Signature(msgspec.Struct, frozen=True):
    """Inputs and outputs of a graph, in its order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class StageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The kind of a pre- or postprocess stage, and the options of that kind."""

    kind: str = "tensor"
    options: dict[str, Any] = {}


Provider = Literal["tensorrt", "cuda", "openvino", "cpu"]
"""ONNX Runtime's execution providers, by our short names."""


class InferenceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the session runs: most rows in one call, ONNX Runtime's intra-op threads (0: from settings), and where.

    ``buckets`` are the numbers of rows that calls are padded to (none: no padding), ``warm_shapes`` the sizes without
    the row axis that inputs of open dimensions are warmed up with. ``providers`` stand in the order of preference;
    without ``required`` there the worker does not serve. ``custom_ops`` names libraries of operators beside the
    graph, native code. The rest are ONNX Runtime's own options, described in docs/models.md.
    """

    batch_max: int = 64
    buckets: tuple[int, ...] = ()
    warm_shapes: dict[str, tuple[int, ...]] = {}
    intra_op_threads: int = 0
    providers: tuple[Provider, ...] = ("tensorrt", "cuda", "openvino", "cpu")
    required: Literal["", "tensorrt", "cuda", "openvino", "cpu"] = ""
    graph_optimization: Literal["all", "extended", "basic", "none"] = "all"
    fp16: bool = False
    cpu_arena: bool = True
    gpu_memory_bytes_max: int = 0
    arena_extend: Literal["next-power-of-two", "same-as-requested"] = "next-power-of-two"
    copy_stream: bool = False
    tensorrt_cache: bool = True
    custom_ops: tuple[str, ...] = ()


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on one job of this model. Bytes count the decoded input; ``rows_max`` the rows of axis 0.

    A stage that runs a micro-batch for longer than ``stage_s_max`` hangs, and is ended.
    """

    input_bytes_max: int = 8 * 1024 * 1024
    rows_max: int = 16
    ttl_s_default: float = 600.0
    ttl_s_max: float = 86_400.0
    stage_s_max: float = 60.0


class RetryPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a transient error is tried (attempts count from 1) and how long it waits between."""

    attempts_max: int = 3
    backoff_base_s: float = 0.5
    backoff_max_s: float = 30.0


class CacheConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a result answers the same input again; 0: every input is run."""

    ttl_s: float = 300.0


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``model.toml``."""

    description: str = ""
    pool: str = "default"
    weight: float = 1.0
    """Turns that this model gets beside the others of its pool, while all have jobs waiting."""
    preprocess: StageConfig = StageConfig()
    inference: InferenceConfig = InferenceConfig()
    postprocess: StageConfig = StageConfig()
    limits: Limits = Limits()
    retry: RetryPolicy = RetryPolicy()
    cache: CacheConfig = CacheConfig()


State = Literal["loading", "ready", "broken"]


class ModelRecord(msgspec.Struct, frozen=True):
    """One version of a model. ``digest`` is the SHA-256 of ``model.onnx`` in hex, "" until it was read.

    ``files`` has that of every file by its name in the version's folder (``../labels.txt``: in the model's), and
    ``files_digest`` one over them all: with the configuration it decides what the version answers.
    """

    name: str
    version: int
    state: State
    config: ModelConfig = ModelConfig()
    digest: str = ""
    signature: Signature = Signature((), ())
    reason: str = ""
    schema: int = SCHEMA
    files: dict[str, str] = {}
    files_digest: str = ""
