"""Sessions and the engine: right rows for each item, and no item sinks another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from inference.engine import Engine
from inference.session import Halt, Session
from jobs.errors import (
    CancelledError,
    DeviceLostError,
    ModelError,
    ModelUnavailableError,
    OutOfMemoryError,
    PenstockError,
    SetupError,
    StageTimeoutError,
)
from jobs.models import InferenceConfig, ModelConfig, ModelRecord, TensorSpec
from jobs.tensors import DTYPES, Tensors, rows_of
from tests.unit.graphs import doubling, graph, picky, place, placed_record, spinning


class Bench:
    """An engine with one graph in its folder, and the rows of every call of the session."""

    def __init__(self, models: Path, model: onnx.ModelProto, batch_max: int = 64) -> None:
        folder = place(models, model)
        signature = Session.open(folder / "model.onnx", threads=1).signature
        config = ModelConfig(inference=InferenceConfig(batch_max=batch_max))
        self.record = placed_record(folder, signature, config)
        self.engine = Engine(models, 1)
        self.calls: list[int] = []

    def watch(self, monkeypatch: pytest.MonkeyPatch, fail: Callable[[Tensors], None] = lambda _: None) -> None:
        """Count calls; ``fail`` may raise in the place of one."""
        self.engine.warm(self.record)
        inner = Session.run

        def run(session: Session, feeds: Tensors, halt: Halt | None = None) -> Tensors:
            self.calls.append(rows_of(feeds))
            fail(feeds)
            return inner(session, feeds, halt)

        monkeypatch.setattr(Session, "run", run)

    def run(self, items: list[Tensors]) -> list[Any]:
        return self.engine.run(self.record, items)


def rows(*counts: int, width: int = 3) -> list[Tensors]:
    """Items with these numbers of rows, every number different."""
    numbers = iter(range(sum(counts) * width))
    return [
        {"x": np.array([[next(numbers) for _ in range(width)] for _ in range(count)], np.float32)} for count in counts
    ]


def assert_doubled(items: list[Tensors], outcomes: list[Any]) -> None:
    assert len(outcomes) == len(items)
    for item, outcome in zip(items, outcomes, strict=True):
        np.testing.assert_array_equal(outcome["y"], item["x"] * 2)


# --- Sessions ---


def test_a_session_knows_its_signature_and_provider(tmp_path: Path) -> None:
    session = Session.open(place(tmp_path, doubling()) / "model.onnx", threads=1)
    assert session.provider == "CPU"
    assert session.signature.inputs == (TensorSpec("x", "float32", (None, 3)),)
    assert session.signature.outputs == (TensorSpec("y", "float32", (None, 3)),)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_that_we_carry_runs(tmp_path: Path, name: str) -> None:
    proto = helper.np_dtype_to_tensor_dtype(DTYPES[name])
    node = helper.make_node("Identity", ["x"], ["y"])
    model = graph([node], {"x": ["n", 2]}, {"y": ["n", 2]}, dtype=proto)
    session = Session.open(place(tmp_path, model) / "model.onnx", threads=1)
    array = np.array([[0, 1]], DTYPES[name])
    assert session.signature.inputs[0].dtype == name
    np.testing.assert_array_equal(session.run({"x": array})["y"], array)


def test_types_that_we_do_not_carry_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    model = graph([node], {"x": ["n"]}, {"y": ["n"]}, dtype=TensorProto.STRING)
    with pytest.raises(SetupError, match=r"x is a tensor\(string\); only tensors of float16"):
        Session.open(place(tmp_path, model) / "model.onnx", threads=1)


def test_a_scalar_has_no_row_axis(tmp_path: Path) -> None:
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)
    with pytest.raises(SetupError, match="y is a scalar"):
        Session.open(place(tmp_path, graph([node], {"x": ["n", 2]}, {"y": []})) / "model.onnx", threads=1)


def test_bytes_that_are_no_graph_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x80\x04junk")
    with pytest.raises(SetupError, match="cannot load the graph"):
        Session.open(tmp_path / "model.onnx", threads=1)


def test_a_graph_that_loses_rows_does_not_pass_its_warm_up(tmp_path: Path) -> None:
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)
    session = Session.open(place(tmp_path, graph([node], {"x": ["n", 2]}, {"y": [1, 1]})) / "model.onnx", threads=1)
    with pytest.raises(SetupError, match=r"at 8 rows failed: output y has shape \[1, 1\] for 8 rows"):
        session.warm(InferenceConfig(batch_max=8))


def test_a_guess_at_open_dimensions_that_fails_is_not_held_against_the_graph(tmp_path: Path) -> None:
    node = helper.make_node("Slice", ["x", "starts", "ends", "axes"], ["part"])
    square = helper.make_node("Reshape", ["part", "shape"], ["y"])
    weights = {key: np.array([value], np.int64) for key, value in {"starts": 0, "ends": 4, "axes": 1}.items()}
    model = graph([node, square], {"x": ["n", "m"]}, {"y": ["n", 4]}, weights | {"shape": np.array([-1, 4])})
    session = Session.open(place(tmp_path, model) / "model.onnx", threads=1)
    session.warm(InferenceConfig(batch_max=3))
    assert session.run({"x": np.zeros((2, 9), np.float32)})["y"].shape == (2, 4)


def test_texts_of_the_runtime_do_not_reach_clients(tmp_path: Path) -> None:
    session = Session.open(place(tmp_path, doubling()) / "model.onnx", threads=1)
    with pytest.raises(ModelError) as caught:
        session.run({"x": np.zeros((1, 4), np.float32)})
    assert caught.value.detail == "ONNX Runtime failed on this input (InvalidArgument)"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("std::bad_alloc"),
        RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 1"),
        RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
    ],
)
def test_want_of_memory_is_told_apart(tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session.open(place(tmp_path, doubling()) / "model.onnx", threads=1)

    class Broken:
        def run(self, *_: object) -> None:
            raise error

    monkeypatch.setattr(session, "_inner", Broken())
    with pytest.raises(OutOfMemoryError):
        session.run({"x": np.zeros((1, 3), np.float32)})


# --- The engine ---


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(1, 9), max_size=12), batch_max=st.integers(1, 5))
def test_each_item_gets_its_own_rows_back(tmp_path: Path, counts: list[int], batch_max: int) -> None:
    items = rows(*counts)
    assert_doubled(items, Bench(tmp_path, doubling(), batch_max).run(items))


def test_items_share_calls_of_at_most_batch_max_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, doubling(), batch_max=4)
    bench.watch(monkeypatch)
    items = rows(1, 1, 2, 3, 2, 9)
    assert_doubled(items, bench.run(items))
    assert bench.calls == [4, 3, 2, 4, 4, 1]


def test_items_of_different_makes_run_in_calls_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, doubling(width="m"))
    bench.watch(monkeypatch)
    items = [*rows(1, width=2), *rows(2, width=3), *rows(1, width=2)]
    assert_doubled(items, bench.run(items))
    assert bench.calls == [2, 2]


def test_a_bad_item_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, picky())
    bench.watch(monkeypatch)
    items = [{"x": np.array([[99 if number == 5 else number % 4]], np.int64)} for number in range(16)]
    outcomes = bench.run(items)
    assert isinstance(outcomes.pop(5), ModelError)
    assert [int(each["y"].item()) for each in outcomes] == [n % 4 * 10 for n in range(16) if n != 5]
    assert len(bench.calls) == 9  # the whole, then two halves at each of four levels


def test_an_item_of_a_wrong_shape_or_name_fails_alone(tmp_path: Path) -> None:
    good = rows(1)[0]
    outcomes = Bench(tmp_path, doubling()).run([good, *rows(1, width=4), {"z": good["x"]}, good])
    assert [isinstance(each, ModelError) for each in outcomes] == [False, True, True, False]


def test_want_of_memory_above_eight_rows_is_bisected_at_less_than_twice_the_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(feeds: Tensors) -> None:
        if rows_of(feeds) > 8:
            raise OutOfMemoryError("no memory")

    bench = Bench(tmp_path, doubling())
    bench.watch(monkeypatch, fail)
    items = rows(*[1] * 64)
    assert_doubled(items, bench.run(items))
    assert len(bench.calls) < 2 * 64 / 8


def test_one_item_too_large_for_the_memory_runs_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(feeds: Tensors) -> None:
        if rows_of(feeds) > 3:
            raise OutOfMemoryError("no memory")

    bench = Bench(tmp_path, doubling())
    bench.watch(monkeypatch, fail)
    items = rows(16)
    assert_doubled(items, bench.run(items))


def test_want_of_memory_at_one_row_is_the_items_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Tensors) -> None:
        raise OutOfMemoryError("no memory")

    bench = Bench(tmp_path, doubling())
    bench.watch(monkeypatch, fail)
    assert [type(each) for each in bench.run(rows(2, 1))] == [OutOfMemoryError, OutOfMemoryError]


@pytest.mark.parametrize("fixed", [1, 4])
def test_a_graph_with_a_fixed_number_of_rows_serves_any(
    tmp_path: Path, fixed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, doubling(rows=fixed))
    bench.watch(monkeypatch)
    items = rows(1, 2, 1, 7)
    assert_doubled(items, bench.run(items))
    assert set(bench.calls) == {fixed}


def test_no_items_are_no_outcomes(tmp_path: Path) -> None:
    assert Bench(tmp_path, doubling()).run([]) == []


def test_a_version_is_opened_once_however_many_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, doubling())
    opened: list[Path] = []
    inner = Session.open.__func__  # type: ignore[attr-defined]  # the function under the classmethod

    def opening(cls: type[Session], /, path: Path, **options: Any) -> Session:
        opened.append(path)
        session: Session = inner(cls, path, **options)
        return session

    monkeypatch.setattr(Session, "open", classmethod(opening))
    barrier = threading.Barrier(4)
    results: list[list[Any]] = []

    def work() -> None:
        barrier.wait()
        results.append(bench.run(rows(2)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert len(results) == 4
    for outcomes in results:
        assert_doubled(rows(2), outcomes)


def test_loaded_turns_true_when_warm(tmp_path: Path) -> None:
    bench = Bench(tmp_path, doubling())
    assert not bench.engine.loaded(bench.record)
    bench.engine.warm(bench.record)
    assert bench.engine.loaded(bench.record)
    assert bench.engine.provider(bench.record) == "CPU"


def unavailable(engine: Engine, record: ModelRecord) -> str:
    """The text of every way to ask for a version that cannot be loaded."""
    with pytest.raises(ModelUnavailableError) as caught:
        engine.warm(record)
    outcomes = engine.run(record, rows(1, 1))
    assert [isinstance(each, ModelUnavailableError) for each in outcomes] == [True, True]
    assert not engine.loaded(record)
    return caught.value.detail


def test_a_changed_file_is_not_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, doubling())
    place(tmp_path, doubling(width=4))
    assert "not the one that was verified" in unavailable(bench.engine, bench.record)


def test_a_missing_file_names_no_path(tmp_path: Path) -> None:
    bench = Bench(tmp_path, doubling())
    (tmp_path / "toy" / "1" / "model.onnx").unlink()
    assert str(tmp_path) not in unavailable(bench.engine, bench.record)


def test_a_file_that_comes_back_is_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, doubling())
    graph_file = tmp_path / "toy" / "1" / "model.onnx"
    data = graph_file.read_bytes()
    graph_file.unlink()
    unavailable(bench.engine, bench.record)
    graph_file.write_bytes(data)
    assert_doubled(rows(1), bench.run(rows(1)))


def test_a_record_with_another_digest_opens_the_new_file(tmp_path: Path) -> None:
    bench = Bench(tmp_path, doubling())
    bench.engine.warm(bench.record)
    node = helper.make_node("Neg", ["x"], ["y"])
    folder = place(tmp_path, graph([node], {"x": ["rows", 3]}, {"y": ["rows", 3]}))
    fresh = placed_record(folder, bench.record.signature)
    assert not bench.engine.loaded(fresh)
    (outcome,) = bench.engine.run(fresh, rows(1))
    assert not isinstance(outcome, PenstockError)
    assert outcome["y"].tolist() == [[0, -1, -2]]


# --- Runs that are ended ---


FOR_EVER = 1e12
"""Turns of the spinning graph; a run of them takes hours."""


def _soon(call: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(0.2, call)
    timer.start()
    return timer


def test_a_run_under_way_is_ended_with_the_error_that_was_given(tmp_path: Path) -> None:
    bench = Bench(tmp_path, spinning())
    halt = Halt()
    timer = _soon(lambda: halt.now(CancelledError("cancelled")))
    items = [{"x": np.full((1, 4), FOR_EVER, np.float32)} for _ in range(4)]

    outcomes = bench.engine.run(bench.record, items, halt)

    timer.join()
    assert [type(each) for each in outcomes] == [CancelledError] * 4


def test_a_run_that_was_ended_before_it_began_does_not_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, spinning())
    halt = Halt()
    halt.now(StageTimeoutError("first"))
    halt.now(CancelledError("too late"))

    (outcome,) = bench.engine.run(bench.record, [{"x": np.full((1, 4), FOR_EVER, np.float32)}], halt)

    assert isinstance(outcome, StageTimeoutError)


def test_other_runs_of_the_session_go_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path, spinning())
    ended = Halt()
    ended.now(CancelledError("cancelled"))
    item = {"x": np.full((1, 4), 3, np.float32)}

    bench.engine.run(bench.record, [item], ended)
    (outcome,) = bench.run([item])

    assert (outcome["y"] == item["x"]).all()


STICKY = "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; hostname=h"


@pytest.fixture
def _device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is this process's alone; it is whole again after the test."""
    monkeypatch.setattr(Session, "device_lost", False)


@pytest.mark.usefixtures("_device")
@pytest.mark.parametrize(
    "text",
    [
        *(STICKY, STICKY.replace("700", "719"), "CUDA error 716: misaligned address"),
        "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=h",
        "CUDNN failure 5000: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=h",
    ],
)
def test_a_sticky_cuda_error_says_that_the_device_is_lost_and_is_not_bisected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    bench = Bench(tmp_path, doubling())
    runs: list[int] = []

    def fail(*_: object) -> Any:
        runs.append(1)
        raise RuntimeError(text)

    bench.engine.warm(bench.record)
    monkeypatch.setattr(Halt, "run", fail)

    with pytest.raises(DeviceLostError):
        bench.run(rows(1, 1, 1))
    assert runs == [1]


@pytest.mark.usefixtures("_device")
def test_whatever_fails_after_the_device_was_lost_fails_of_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, doubling())
    bench.engine.warm(bench.record)
    for text in (STICKY, "an error like any other"):
        monkeypatch.setattr(Halt, "run", Mock(side_effect=RuntimeError(text)))
        with pytest.raises(DeviceLostError):
            bench.run(rows(1))


@pytest.mark.usefixtures("_device")
@pytest.mark.parametrize("text", ["CUDA failure 2: out of memory", "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"])
def test_cuda_s_want_of_memory_loses_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    bench = Bench(tmp_path, doubling())
    bench.engine.warm(bench.record)
    monkeypatch.setattr(Halt, "run", Mock(side_effect=RuntimeError(text)))

    assert [type(each) for each in bench.run(rows(1))] == [OutOfMemoryError]
