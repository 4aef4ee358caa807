"""Where a graph runs: the first provider that is truly there, said aloud where it is not the preferred one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from inference import providers
from inference.session import Session
from jobs.errors import SetupError
from jobs.models import InferenceConfig
from tests.unit.graphs import doubling, place

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"


class Runtime:
    """A build of ONNX Runtime with TensorRT and CUDA, of which only ``starts`` start.

    ``raises`` refuse with an exception, the others in silence; ``idle`` start and take no nodes.
    """

    def __init__(self, *, starts: list[str], raises: tuple[str, ...] = (), idle: tuple[str, ...] = ()) -> None:
        self.starts, self.raises, self.idle = starts, raises, idle
        self.tried: list[list[str]] = []
        self.preloads = 0

    def get_available_providers(self) -> list[str]:
        return [TENSORRT, CUDA, CPU]

    def preload_dlls(self) -> None:
        self.preloads += 1

    def InferenceSession(self, _: Path, __: Any, *, providers: Any, enable_fallback: int) -> Any:  # noqa: N802
        assert enable_fallback == 0
        names = [name for name, _ in providers]
        self.tried.append(names)
        if names[0] in self.raises:
            raise RuntimeError("EP Error")
        got = [name for name in names if name in self.starts]
        took = [SimpleNamespace(ep_name=name) for name in got if name not in self.idle]
        return SimpleNamespace(get_providers=lambda: got, get_provider_graph_assignment_info=lambda: took)


@pytest.fixture
def _afresh() -> Iterator[None]:
    """What is said and loaded once in a process may be said and loaded again."""
    providers._say_once.cache_clear()
    providers._preload.cache_clear()
    yield
    providers._say_once.cache_clear()
    providers._preload.cache_clear()


def load(monkeypatch: pytest.MonkeyPatch, runtime: Runtime, config: InferenceConfig | None = None) -> str:
    """Load a graph in this runtime; where it runs."""
    monkeypatch.setattr(providers, "ort", runtime)
    config = config or InferenceConfig()
    return providers.running(providers.load(Path("g"), ort.SessionOptions(), config))[0]


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """What was said of providers: level, preferred, runs."""
    return [
        (record.levelname, vars(record)["preferred"], vars(record)["runs"])
        for record in caplog.records
        if "preferred" in vars(record)
    ]


@pytest.mark.usefixtures("_afresh")
def test_the_preferred_provider_runs_and_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = Runtime(starts=[TENSORRT, CUDA, CPU])
    assert load(monkeypatch, runtime) == TENSORRT
    assert runtime.tried == [[TENSORRT, CUDA, CPU]]
    assert said(caplog) == []


@pytest.mark.usefixtures("_afresh")
@pytest.mark.parametrize("raises", [(), (TENSORRT,)])
def test_the_next_in_order_runs_where_the_first_does_not_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, raises: tuple[str, ...]
) -> None:
    assert load(monkeypatch, Runtime(starts=[CUDA, CPU], raises=raises)) == CUDA
    assert said(caplog) == [("WARNING", "Tensorrt", "CUDA")]


@pytest.mark.usefixtures("_afresh")
@pytest.mark.parametrize(
    "runtime",
    [
        Runtime(starts=[CPU]),
        Runtime(starts=[CPU], raises=(TENSORRT, CUDA)),
        Runtime(starts=[TENSORRT, CUDA, CPU], idle=(TENSORRT, CUDA)),
    ],
    ids=["left out", "refused", "without nodes"],
)
def test_a_fall_to_the_cpu_is_an_error_in_the_log_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, runtime: Runtime
) -> None:
    config = InferenceConfig(providers=("cuda", "cpu"))
    assert [load(monkeypatch, runtime, config) for _ in range(3)] == [CPU] * 3
    assert said(caplog) == [("ERROR", "CUDA", "CPU")]


@pytest.mark.usefixtures("_afresh")
def test_cuda_s_libraries_are_loaded_once_and_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime(starts=[CUDA, CPU])
    load(monkeypatch, runtime, InferenceConfig(providers=("cpu",)))
    assert runtime.preloads == 0
    for _ in range(3):
        load(monkeypatch, runtime)
    assert runtime.preloads == 1


@pytest.mark.usefixtures("_afresh")
def test_folders_for_the_caches_of_providers_are_made_where_that_is_possible(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(providers, "ort", Runtime(starts=[TENSORRT, CUDA, CPU]))
    providers.load(Path("g"), ort.SessionOptions(), InferenceConfig(), tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "tensorrt").is_dir()
    (tmp_path / "file").touch()
    providers.load(Path("g"), ort.SessionOptions(), InferenceConfig(), tmp_path / "file")


@pytest.mark.usefixtures("_afresh")
@pytest.mark.parametrize(
    ("runtime", "says"),
    [
        (Runtime(starts=[CPU]), "the graph runs on CPU, not on CUDA; the worker's log says why"),
        (Runtime(starts=[CPU], raises=(CUDA,)), "cannot load the graph on CUDA, which inference.required asks for"),
        (Runtime(starts=[CUDA, CPU], idle=(CUDA,)), "the graph runs on CPU, not on CUDA"),
    ],
    ids=["left out", "refused", "without nodes"],
)
def test_a_required_provider_that_does_not_run_the_graph_is_a_reason_not_to_serve(
    monkeypatch: pytest.MonkeyPatch, runtime: Runtime, says: str
) -> None:
    config = InferenceConfig(providers=("cuda", "cpu"), required="cuda")
    with pytest.raises(SetupError, match=says):
        load(monkeypatch, runtime, config)


@pytest.mark.usefixtures("_afresh")
def test_what_is_preferred_to_the_required_provider_may_run_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    config = InferenceConfig(required="cuda")
    assert load(monkeypatch, Runtime(starts=[TENSORRT, CUDA, CPU], idle=(CUDA, CPU)), config) == TENSORRT
    assert load(monkeypatch, Runtime(starts=[CUDA, CPU], raises=(TENSORRT,)), config) == CUDA


def test_a_required_provider_that_this_build_lacks_is_named_with_a_remedy(tmp_path: Path) -> None:
    if "OpenVINOExecutionProvider" in ort.get_available_providers():
        pytest.skip("this build has OpenVINO")
    path = place(tmp_path, doubling()) / "model.onnx"
    with pytest.raises(SetupError, match=r"has no OpenVINO, only .*CPU; install the build that has it"):
        Session.open(path, threads=1, config=InferenceConfig(required="openvino"))


def test_a_provider_named_by_hand_that_this_build_lacks_is_missed_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if "OpenVINOExecutionProvider" in ort.get_available_providers():
        pytest.skip("this build has OpenVINO")
    path = place(tmp_path, doubling()) / "model.onnx"
    session = Session.open(path, threads=1, config=InferenceConfig(providers=("openvino", "cpu")))
    assert session.provider == "CPU"
    assert said(caplog) == [("ERROR", "OpenVINO", "CPU")]


def test_the_defaults_say_nothing_where_there_is_no_gpu(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if ort.get_available_providers()[-1:] != [CPU] or CUDA in ort.get_available_providers():
        pytest.skip("this build may run elsewhere")
    with caplog.at_level(logging.INFO):
        Session.open(place(tmp_path, doubling()) / "model.onnx", threads=1)
    assert caplog.records == []


@pytest.mark.gpu
def test_on_a_gpu_the_graph_truly_runs_on_cuda_and_agrees_with_the_cpu(tmp_path: Path) -> None:
    if CUDA not in ort.get_available_providers():
        pytest.skip("this build of ONNX Runtime has no CUDA")
    path = place(tmp_path, doubling()) / "model.onnx"
    config = InferenceConfig(providers=("cuda", "cpu"), required="cuda")
    on_cuda = Session.open(path, threads=1, config=config)
    on_cpu = Session.open(path, threads=1, config=InferenceConfig(providers=("cpu",)))
    feeds = {"x": np.arange(12, dtype=np.float32).reshape(4, 3)}
    assert (on_cuda.provider, on_cpu.provider) == ("CUDA", "CPU")
    np.testing.assert_allclose(on_cuda.run(feeds)["y"], on_cpu.run(feeds)["y"], rtol=1e-5)
