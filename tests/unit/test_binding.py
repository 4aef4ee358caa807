"""IO binding gives what a plain run gives, in arrays that nobody else writes to. Held on the CPU."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from inference.session import Halt, Session
from jobs.errors import CancelledError, ModelError
from jobs.models import InferenceConfig
from tests.unit.graphs import Dims, doubling, graph, place, spinning


def bound(tmp_path: Path, model: onnx.ModelProto) -> Session:
    """A session on the CPU that binds as one on a GPU does."""
    session = Session.open(place(tmp_path, model) / "model.onnx", threads=1)
    session._bound = True
    return session


def rows(count: int, width: int = 3, start: int = 0) -> Any:
    return np.arange(start, start + count * width, dtype=np.float32).reshape(count, width)


@pytest.mark.parametrize("width", [3, "m"], ids=["known shape", "open shape"])
@pytest.mark.parametrize("count", [1, 5])
def test_the_outputs_are_those_of_a_plain_run(tmp_path: Path, width: str | int, count: int) -> None:
    session = bound(tmp_path, doubling(width=width))
    np.testing.assert_array_equal(session.run({"x": rows(count)})["y"], rows(count) * 2)


def test_outputs_of_known_and_of_open_shape_keep_their_order(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "x"], ["double"]),
        helper.make_node("Neg", ["x"], ["minus"]),
        helper.make_node("Mul", ["x", "x"], ["square"]),
    ]
    outputs: dict[str, Dims] = {"double": ["n", "m"], "minus": ["n", 3], "square": ["n", "m"]}
    session = bound(tmp_path, graph(nodes, {"x": ["n", "m"]}, outputs))
    got = session.run({"x": rows(2)})
    assert list(got) == ["double", "minus", "square"]
    np.testing.assert_array_equal(got["double"], rows(2) * 2)
    np.testing.assert_array_equal(got["minus"], -rows(2))
    np.testing.assert_array_equal(got["square"], rows(2) ** 2)


def test_an_input_that_is_not_contiguous_is_read_right(tmp_path: Path) -> None:
    session = bound(tmp_path, doubling())
    np.testing.assert_array_equal(session.run({"x": rows(6)[::2]})["y"], rows(6)[::2] * 2)


def test_an_output_is_not_written_to_by_later_runs(tmp_path: Path) -> None:
    session = bound(tmp_path, doubling())
    first = session.run({"x": rows(4)})["y"]
    session.run({"x": rows(4, start=100)})
    np.testing.assert_array_equal(first, rows(4) * 2)


def test_an_output_of_known_shape_is_written_straight_into_the_array_that_is_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pointers: list[int] = []
    inner = ort.IOBinding.bind_output

    def bind_output(binding: Any, *given: Any) -> None:
        pointers.append(given[-1])
        inner(binding, *given)

    monkeypatch.setattr(ort.IOBinding, "bind_output", bind_output)
    output = bound(tmp_path, doubling()).run({"x": rows(4)})["y"]
    assert pointers == [output.ctypes.data]


@pytest.mark.parametrize("width", [3, "m"])
def test_many_threads_share_a_session(tmp_path: Path, width: str | int) -> None:
    session = bound(tmp_path, doubling(width=width))
    got: dict[int, list[Any]] = {number: [] for number in range(4)}

    def work(number: int) -> None:
        for turn in range(50):
            got[number].append(session.run({"x": rows(3, start=1000 * number + turn)})["y"])

    threads = [threading.Thread(target=work, args=(number,)) for number in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, outputs in got.items():
        for turn, output in enumerate(outputs):
            np.testing.assert_array_equal(output, rows(3, start=1000 * number + turn) * 2)


def test_a_bound_run_is_ended_like_another(tmp_path: Path) -> None:
    session = bound(tmp_path, spinning())
    halt = Halt()
    timer = threading.Timer(0.2, lambda: halt.now(CancelledError("cancelled")))
    timer.start()
    with pytest.raises(CancelledError):
        session.run({"x": np.full((1, 4), 1e12, np.float32)}, halt)
    timer.join()
    np.testing.assert_array_equal(session.run({"x": np.zeros((1, 4), np.float32)})["y"], np.zeros((1, 4)))


@pytest.mark.parametrize("feeds", [{"x": rows(1, 4)}, {"z": rows(1)}, {"x": rows(1).astype(np.float64)}])
def test_a_wrong_input_is_an_error_of_the_model(tmp_path: Path, feeds: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="ONNX Runtime failed on this input"):
        bound(tmp_path, doubling()).run(feeds)


def test_a_graph_whose_outputs_are_not_as_declared_writes_nowhere_else(tmp_path: Path) -> None:
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=0)
    model = graph([node], {"x": ["n", 3]}, {"y": ["n", 3]}, dtype=TensorProto.FLOAT)
    with pytest.raises(ModelError):
        bound(tmp_path, model).run({"x": rows(4)})


@pytest.mark.gpu
def test_on_a_gpu_bound_runs_agree_with_the_cpu(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this build of ONNX Runtime has no CUDA")
    config = InferenceConfig(providers=("cuda", "cpu"), required="cuda")
    session = Session.open(place(tmp_path, doubling()) / "model.onnx", threads=1, config=config)
    assert session._bound
    np.testing.assert_array_equal(session.run({"x": rows(64)})["y"], rows(64) * 2)
