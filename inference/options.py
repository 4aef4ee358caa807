"""``[inference]`` of ``model.toml`` in ONNX Runtime's words. Pure: nothing here loads ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from jobs.errors import SetupError
from jobs.models import InferenceConfig, Provider

NAMES: dict[Provider, str] = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""ONNX Runtime's name of each provider."""

Options: TypeAlias = dict[str, Any]
ProviderOptions: TypeAlias = list[tuple[str, Options]]


WARM_NUMBERS_MAX = 2**28
"""Most numbers in one input of a warm-up: 1 GiB of float32."""


def check(config: InferenceConfig) -> None:
    """SetupError for the first option that contradicts another."""
    _check_providers(config)
    _check_buckets(config)
    for name, dims in config.warm_shapes.items():
        if min(dims, default=1) < 1 or math.prod(dims) * config.batch_max > WARM_NUMBERS_MAX:
            raise SetupError(
                f"inference.warm_shapes.{name}: {list(dims)} is out of range; each size is at least 1, and all "
                f"of them times inference.batch_max at most {WARM_NUMBERS_MAX}"
            )


def _check_buckets(config: InferenceConfig) -> None:
    buckets = config.buckets
    if not buckets:
        return
    if buckets[0] < 1 or list(buckets) != sorted(set(buckets)):
        raise SetupError(f"inference.buckets: {list(buckets)} must be ascending numbers of rows, from 1 on")
    if buckets[-1] != config.batch_max:
        raise SetupError(
            f"inference.buckets: the last is {buckets[-1]}; make it inference.batch_max, {config.batch_max}"
        )


def _check_providers(config: InferenceConfig) -> None:
    wanted = config.providers
    if not wanted or len(set(wanted)) < len(wanted):
        raise SetupError(f"inference.providers: name each provider once, of {', '.join(NAMES)}")
    if "cpu" in wanted[:-1]:
        raise SetupError("inference.providers: 'cpu' runs every graph, so what follows it is never used; put it last")
    if config.required and config.required not in wanted:
        raise SetupError(f"inference.required: {config.required!r} is not among inference.providers; add it there")


def on_cpu(config: InferenceConfig) -> InferenceConfig:
    """The same options on the CPU alone, as a trial load wants them."""
    return msgspec.structs.replace(config, providers=("cpu",), required="")


def provider_options(config: InferenceConfig, cache_folder: Path | None = None) -> ProviderOptions:
    """The providers to try, the preferred one first; the CPU is always the last, for what no other can run.

    ``cache_folder`` is this graph's own: TensorRT names its engines by the graph's structure, not by its weights.
    Options that stand at ONNX Runtime's default are left out.
    """
    wanted: list[Provider] = [name for name in config.providers if name != "cpu"]
    return [(NAMES[name], _OPTIONS[name](config, cache_folder)) for name in (*wanted, "cpu")]


def _cuda(config: InferenceConfig, _: Path | None) -> Options:
    """https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html."""
    options: Options = {}
    if config.gpu_memory_bytes_max:
        options["gpu_mem_limit"] = config.gpu_memory_bytes_max
    if config.arena_extend == "same-as-requested":
        options["arena_extend_strategy"] = "kSameAsRequested"
    if config.copy_stream:
        options["do_copy_in_default_stream"] = False
    return options


def _tensorrt(config: InferenceConfig, cache_folder: Path | None) -> Options:
    """https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html."""
    options: Options = {}
    if config.gpu_memory_bytes_max:
        options["trt_max_workspace_size"] = config.gpu_memory_bytes_max
    if config.fp16:
        options["trt_fp16_enable"] = True
    if config.tensorrt_cache and cache_folder is not None:
        folder = str(cache_folder / "tensorrt")
        options |= {"trt_engine_cache_enable": True, "trt_engine_cache_path": folder}
        options |= {"trt_timing_cache_enable": True, "trt_timing_cache_path": folder}
    return options


def _openvino(config: InferenceConfig, cache_folder: Path | None) -> Options:
    """https://onnxruntime.ai/docs/execution-providers/OpenVINO-ExecutionProvider.html."""
    options: Options = {}
    if config.fp16:
        options["precision"] = "FP16"
    if config.intra_op_threads:
        options["num_of_threads"] = config.intra_op_threads
    if cache_folder is not None:
        options["cache_dir"] = str(cache_folder / "openvino")
    return options


def _cpu(_: InferenceConfig, __: Path | None) -> Options:
    return {}


_OPTIONS: dict[Provider, Callable[[InferenceConfig, Path | None], Options]] = {
    "tensorrt": _tensorrt,
    "cuda": _cuda,
    "openvino": _openvino,
    "cpu": _cpu,
}
