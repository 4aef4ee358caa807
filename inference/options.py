"""``[inference]`` of ``model.toml`` in ONNX Runtime's words. Pure: nothing here loads ONNX Runtime."""

from __future__ import annotations

from typing import Any

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

ProviderOptions = list[tuple[str, dict[str, Any]]]


def check(config: InferenceConfig) -> None:
    """SetupError for the first option that contradicts another."""
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


def provider_options(config: InferenceConfig) -> ProviderOptions:
    """The providers to try, the preferred one first; the CPU is always the last, for what no other can run."""
    wanted: list[Provider] = [name for name in config.providers if name != "cpu"]
    return [(NAMES[name], {}) for name in (*wanted, "cpu")]
