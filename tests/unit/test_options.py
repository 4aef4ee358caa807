"""``[inference]`` becomes ONNX Runtime's options, by its own names, and only what differs from its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from inference.options import NAMES, on_cpu, provider_options
from inference.session import Session
from jobs.models import InferenceConfig
from tests.unit.graphs import doubling, place

CPU: tuple[str, dict[str, Any]] = ("CPUExecutionProvider", {})


def test_the_defaults_name_every_provider_in_order_and_set_nothing() -> None:
    assert provider_options(InferenceConfig()) == [
        ("TensorrtExecutionProvider", {}),
        ("CUDAExecutionProvider", {}),
        ("OpenVINOExecutionProvider", {}),
        CPU,
    ]


def test_every_name_is_one_that_onnx_runtime_knows() -> None:
    assert set(NAMES.values()) <= set(ort.get_all_providers())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (InferenceConfig(providers=("cpu",)), [CPU]),
        (InferenceConfig(providers=("openvino",)), [("OpenVINOExecutionProvider", {}), CPU]),
        (
            InferenceConfig(
                providers=("cuda", "cpu"),
                gpu_memory_bytes_max=2**31,
                arena_extend="same-as-requested",
                copy_stream=True,
                fp16=True,
            ),
            [
                (
                    "CUDAExecutionProvider",
                    {
                        "gpu_mem_limit": 2_147_483_648,
                        "arena_extend_strategy": "kSameAsRequested",
                        "do_copy_in_default_stream": False,
                    },
                ),
                CPU,
            ],
        ),
        (
            InferenceConfig(
                providers=("tensorrt", "cuda"), gpu_memory_bytes_max=1024, tensorrt_cache=False, fp16=True
            ),
            [
                ("TensorrtExecutionProvider", {"trt_max_workspace_size": 1024, "trt_fp16_enable": True}),
                ("CUDAExecutionProvider", {"gpu_mem_limit": 1024}),
                CPU,
            ],
        ),
        (
            InferenceConfig(providers=("openvino", "cpu"), fp16=True, intra_op_threads=3),
            [("OpenVINOExecutionProvider", {"precision": "FP16", "num_of_threads": 3}), CPU],
        ),
    ],
)
def test_options_are_given_to_the_providers_that_have_them(
    config: InferenceConfig, expected: list[tuple[str, dict[str, object]]]
) -> None:
    assert provider_options(config) == expected


def test_caches_of_the_providers_lie_in_the_folder_of_the_graph() -> None:
    assert provider_options(InferenceConfig(providers=("tensorrt", "openvino")), Path("/d")) == [
        (
            "TensorrtExecutionProvider",
            {
                "trt_engine_cache_enable": True,
                "trt_engine_cache_path": "/d/tensorrt",
                "trt_timing_cache_enable": True,
                "trt_timing_cache_path": "/d/tensorrt",
            },
        ),
        ("OpenVINOExecutionProvider", {"cache_dir": "/d/openvino"}),
        CPU,
    ]
    without = InferenceConfig(providers=("tensorrt",), tensorrt_cache=False)
    assert provider_options(without, Path("/d")) == [("TensorrtExecutionProvider", {}), CPU]


def test_a_trial_on_the_cpu_keeps_the_other_options() -> None:
    config = InferenceConfig(batch_max=3, required="cuda", graph_optimization="basic")
    assert on_cpu(config) == InferenceConfig(batch_max=3, providers=("cpu",), graph_optimization="basic")


@pytest.mark.parametrize(
    ("config", "level", "arena"),
    [
        (InferenceConfig(), ort.GraphOptimizationLevel.ORT_ENABLE_ALL, True),
        (InferenceConfig(graph_optimization="extended"), ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, True),
        (InferenceConfig(graph_optimization="basic"), ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, True),
        (
            InferenceConfig(graph_optimization="none", cpu_arena=False),
            ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
            False,
        ),
    ],
)
def test_a_session_has_the_options_of_its_model(
    tmp_path: Path, config: InferenceConfig, level: object, arena: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[ort.SessionOptions] = []
    inner = ort.SessionOptions

    def make() -> ort.SessionOptions:
        made.append(inner())
        return made[-1]

    monkeypatch.setattr(ort, "SessionOptions", make)
    Session.open(place(tmp_path, doubling()) / "model.onnx", threads=3, config=config)
    (options,) = made
    assert (options.graph_optimization_level, options.enable_cpu_mem_arena) == (level, arena)
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
