"""The trial load: whatever a graph does to the child, the parent says ``ready`` or ``broken`` and lives on."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper

import inference.trial
from inference.files import digest_of
from inference.trial import trial
from jobs.models import InferenceConfig, ModelConfig, TensorSpec
from tests.unit.graphs import doubling, graph, place

TIMEOUT_S = 60.0


def test_a_sound_graph_is_ready_with_signature_and_digest(tmp_path: Path) -> None:
    folder = place(tmp_path, doubling(), version=7)
    config = ModelConfig(inference=InferenceConfig(batch_max=3))
    record = trial(folder, config, TIMEOUT_S)
    assert (record.name, record.version, record.state, record.config) == ("toy", 7, "ready", config)
    sha256 = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    assert (record.digest, record.files) == (sha256, {"model.onnx": sha256})
    assert record.files_digest == digest_of(record.files)
    assert record.signature.inputs == (TensorSpec("x", "float32", (None, 3)),)
    assert record.signature.outputs == (TensorSpec("y", "float32", (None, 3)),)


@pytest.mark.parametrize("data", [b"", b"\x80\x04junk", b"\x08\x08" * 100, b"x" * 10_000])
def test_bytes_that_are_no_graph_are_broken(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "toy" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(data)
    record = trial(folder, ModelConfig(), TIMEOUT_S)
    assert record.state == "broken"
    assert any(words in record.reason for words in ("cannot load the graph", "no inputs", "not an ONNX graph"))
    assert str(tmp_path) not in record.reason


def test_a_truncated_graph_is_broken(tmp_path: Path) -> None:
    folder = place(tmp_path, doubling())
    data = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(data[: len(data) // 2])
    assert trial(folder, ModelConfig(), TIMEOUT_S).state == "broken"


def test_weights_outside_the_folder_are_broken(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["x", "w"], ["y"])
    weight = onnx.TensorProto(name="w", data_type=1, dims=[3], data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../../secret")
    (tmp_path / "secret").write_bytes(b"\0" * 12)
    model = graph([node], {"x": ["n", 3]}, {"y": ["n", 3]})
    model.graph.initializer.append(weight)
    folder = tmp_path / "toy" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    assert trial(folder, ModelConfig(), TIMEOUT_S).state == "broken"


def test_a_graph_that_fails_on_zeros_is_broken_and_says_so(tmp_path: Path) -> None:
    node = helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)
    folder = place(tmp_path, graph([node], {"x": ["n", 2]}, {"y": [1, 1]}))
    record = trial(folder, ModelConfig(), TIMEOUT_S)
    sha256 = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    assert (record.state, record.digest) == ("broken", sha256)
    assert "output y has shape [1, 1] for 64 rows" in record.reason


def test_a_missing_graph_is_broken(tmp_path: Path) -> None:
    folder = place(tmp_path, doubling())
    (folder / "model.onnx").unlink()
    record = trial(folder, ModelConfig(), TIMEOUT_S)
    assert (record.state, record.reason) == ("broken", "toy/1/model.onnx: no such file")


def test_a_folder_that_is_gone_is_broken(tmp_path: Path) -> None:
    record = trial(tmp_path / "toy" / "1", ModelConfig(), TIMEOUT_S)
    assert (record.state, record.reason) == ("broken", "toy/1: cannot be read: No such file or directory")


@pytest.mark.parametrize(
    ("program", "timeout_s", "reason"),
    [
        ("import os; os.abort()", TIMEOUT_S, "the trial load crashed (signal 6)"),
        ("import ctypes; ctypes.string_at(0)", TIMEOUT_S, "the trial load crashed (signal 11)"),
        ("import threading; threading.Event().wait()", 0.5, "the trial load took longer than 0.5 s"),
        ("print('{}garbage')", TIMEOUT_S, "the trial load ended with status 0 and no verdict"),
        ("print('[1]')", TIMEOUT_S, "the trial load ended with status 0 and no verdict"),
        ("raise SystemExit(3)", TIMEOUT_S, "the trial load ended with status 3 and no verdict"),
        ("print('x' * 3_000_000)", TIMEOUT_S, "the trial load ended with status 0 and no verdict"),
    ],
)
def test_a_child_that_crashes_hangs_or_babbles_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, timeout_s: float, reason: str
) -> None:
    monkeypatch.setattr(inference.trial, "_COMMAND", (sys.executable, "-c", program))
    record = trial(place(tmp_path, doubling()), ModelConfig(), timeout_s)
    assert (record.state, record.reason) == ("broken", reason)


def test_the_child_cannot_take_more_memory_than_its_limit(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from inference.trial import _limit; "
        f"_limit(Path({str(tmp_path)!r}), 60); bytearray(5 * 1024**3)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, text=True)
    assert "MemoryError" in done.stderr


def test_the_parent_never_imports_onnx_runtime(tmp_path: Path) -> None:
    folder = place(tmp_path, doubling())
    program = (
        "import sys; from pathlib import Path; from inference.trial import trial; "
        "from jobs.models import ModelConfig; "
        f"state = trial(Path({str(folder)!r}), ModelConfig(), 60).state; "
        "print(state, 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["ready", "False"]
