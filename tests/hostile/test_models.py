"""The model repository: what is put there in bad faith is named as broken, and nobody else pays for it.

Not here: archives, for nothing takes one yet; a graph that never ends, whose trial takes two minutes
(`tests/unit/test_trial.py` has a child that hangs); names that no file system holds.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from inference.repository import scan
from jobs.errors import EXIT_CONFIG
from tests.hostile.block import LIVE_S, live_s
from tests.hostile.rows import as_json, ask, check_refusal, leaks
from tests.system import END_S, ROOT, START_S, System
from tests.unit.graphs import graph
from tests.waiting import wait_until

DEMO = ROOT / "models" / "tensor-demo" / "1" / "model.onnx"
ROW = [0.0] * 64
LINE_MAX = 1_000
READINGS = 3
"""Hashes that one refresh of the gateway reads: models, pointers, keys."""
JUNK = b"\x08\x08not a graph"


class Shelf(System):
    """A system that is ready although some of its models never will be."""

    def _is_ready(self) -> bool:
        return self.state("tensor-demo") == "ready" and {self.state(name) for name in BAD} == {"broken"}

    def version(self, model: str) -> dict[str, Any]:
        """What `GET /models` says of a model's only version; nothing while it is not known."""
        answer = self.client.get(f"/models/{model}")
        return dict(answer.json()["versions"][0]) if answer.status_code == 200 else {}

    def state(self, model: str) -> str:
        """How that version stands."""
        return str(self.version(model).get("state", ""))

    def restart_worker(self) -> None:
        """Let the worker look at its folder again."""
        self.stop_workers()
        for worker in self.workers:
            worker.start()
            wait_until(partial(worker.said, "ready"), START_S, "a worker is ready")


class Canary:
    """Whoever unpickles it leaves a file behind."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._file),)


def external(location: str) -> onnx.ModelProto:
    """A graph whose weight lies in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    made = graph([helper.make_node("Add", ["x", "w"], ["y"])], {"x": ["rows", 3]}, {"y": ["rows", 3]})
    made.graph.initializer.append(weight)
    return made


def custom_op() -> onnx.ModelProto:
    """A graph of an operator that a library of its author would bring along."""
    node = helper.make_node("Steal", ["x"], ["y"], domain="evil.example")
    made = graph([node], {"x": ["rows", 3]}, {"y": ["rows", 3]})
    made.opset_import.append(helper.make_opsetid("evil.example", 1))
    return made


def greedy() -> onnx.ModelProto:
    """A graph that wants 32 GiB for a row of one number."""
    node = helper.make_node("Expand", ["x", "shape"], ["y"])
    shape = {"shape": np.array([1, 2**33], np.int64)}
    return graph([node], {"x": ["rows", 1]}, {"y": ["rows", 2**33]}, shape)


def put(models: Path, name: str, data: bytes) -> None:
    """A model of these bytes."""
    folder = models / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(data)


def stock(folder: Path) -> list[str]:
    """Put every bad model on the shelf; their names."""
    models, secret = folder / "models", folder / "secret"
    secret.write_bytes(b"\0" * 12)
    whole = DEMO.read_bytes()
    for name, data in {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "noise": np.random.default_rng(5).bytes(4_096),
        "pickle": pickle.dumps(Canary(folder / "canary")),
        "script": b"#!/bin/sh\ntouch canary\n",
    }.items():
        put(models, name, data)
    for name, made in {
        "outside": external("../../../secret"),
        "absolute": external(str(secret)),
        "custom-op": custom_op(),
        "greedy": greedy(),
    }.items():
        put(models, name, made.SerializeToString())
    return sorted(path.name for path in models.iterdir())


BAD = ("absolute", "custom-op", "empty", "greedy", "noise", "outside", "pickle", "script", "truncated")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    folder = tmp_path_factory.mktemp("shelf")
    assert stock(folder) == [*BAD]
    with Shelf("redis", folder) as system:
        yield system


@pytest.mark.parametrize("name", BAD)
def test_a_bad_graph_is_broken_and_its_reason_tells_nothing_of_the_machine(shelf: Shelf, name: str) -> None:
    version = shelf.version(name)
    assert version["state"] == "broken"
    assert version["reason"]
    assert set(leaks(version["reason"].encode())) <= {"a library"}, version["reason"]
    answer = ask(shelf, as_json(f"/predict/{name}", '{"input": [0]}'))
    check_refusal(answer, 503, "model-loading")


def test_bad_graphs_cost_neither_worker_nor_gateway(shelf: Shelf) -> None:
    assert not (shelf.folder / "canary").exists(), "a pickle was loaded"
    assert all(role.running for role in shelf.roles)
    assert live_s(shelf) < LIVE_S
    assert shelf.ended(shelf.submit())["status"] == "completed"
    assert "Traceback" not in shelf.gateway.errors()


@pytest.mark.slow
def test_a_graph_that_changed_after_it_was_verified_is_not_run(shelf: Shelf) -> None:
    graph_file = shelf.models / "fragile" / "1" / "model.onnx"
    verified = shelf.ended(shelf.submit("fragile", ROW))["result"]
    digest = shelf.version("fragile")["digest"]

    graph_file.write_bytes(JUNK)
    assert shelf.ended(shelf.submit("fragile", ROW))["result"] == verified, "the session that was verified answers"
    shelf.restart_worker()
    wait_until(lambda: shelf.state("fragile") == "broken", END_S, "the change is seen")
    assert shelf.version("fragile")["digest"] != digest
    check_refusal(ask(shelf, as_json("/predict/fragile", f'{{"input": {ROW}}}')), 503, "model-loading")
    assert shelf.ended(shelf.submit())["status"] == "completed"

    shutil.copy(DEMO, graph_file)
    shelf.restart_worker()
    wait_until(lambda: shelf.state("fragile") == "ready", END_S, "the verified graph is back")
    assert shelf.ended(shelf.submit("fragile", ROW))["result"] == verified


@pytest.mark.parametrize("pointer", ["latest", "-1", "99", "9" * 5_000])
def test_a_pointer_to_no_version_points_nowhere(shelf: Shelf, pointer: str) -> None:
    shelf.redis.hset(f"{shelf.namespace}:active", "tensor-demo", pointer)
    try:
        until = _readings(shelf) + 2 * READINGS
        wait_until(lambda: _readings(shelf) >= until, END_S, "the gateway has read the pointers again")
        assert shelf.client.get("/models/tensor-demo").json()["active_version"] == 1
        assert shelf.ended(shelf.submit())["version"] == 1
        assert "Traceback" not in shelf.gateway.errors()
    finally:
        shelf.redis.hdel(f"{shelf.namespace}:active", "tensor-demo")


@pytest.mark.parametrize(
    ("path", "data", "says"),
    [
        ("T\u043ey/1/model.onnx", b"", "not a model name"),
        ("TENSOR-DEMO/1/model.onnx", b"", "not a model name"),
        ("toy/9223372036854775808/model.onnx", b"", "not a version"),
        ("toy/00/model.onnx", b"", "not a version"),
        ("toy/model.toml", b"a = " + b"[" * 100_000, "nested too deeply"),
        ("toy/model.toml", b"[inference]\nbatch_max = " + b"9" * 5_000, "a number is too long"),
        ("toy/model.toml", b"[limits]\nrows_max = 1e999", "Expected `int`, got `float`"),
        ("toy/model.toml", b"\0", "not valid TOML"),
        ("toy/model.toml", b"#" * 2_000_000, "larger than"),
    ],
    ids=lambda value: ascii(value[:24]),
)
def test_what_could_never_be_served_is_named_in_one_line(tmp_path: Path, path: str, data: bytes, says: str) -> None:
    put(tmp_path, "toy", DEMO.read_bytes())
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_bytes(data)
    found = scan(tmp_path)
    texts = [str(fault) for fault in found.faults.values()]
    assert [text for text in texts if says in text]
    assert not [text for text in texts if "\n" in text or len(text) >= LINE_MAX]


def test_a_worker_of_such_a_folder_stops_with_that_line(shelf: Shelf, tmp_path: Path) -> None:
    put(tmp_path, "toy", DEMO.read_bytes())
    (tmp_path / "toy" / "model.toml").write_text("a = " + "[" * 100_000)
    given = shelf.environment() | {"PENSTOCK_NAMESPACE": "other", "PENSTOCK_MODELS": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, "-m", "penstock", "worker"],
        env={**os.environ, **given},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert ended.returncode == EXIT_CONFIG
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("penstock:")]
    assert "nested too deeply" in line
    assert "Traceback" not in ended.stderr


def _readings(shelf: Shelf) -> int:
    """How many hashes have been read of the store; a refresh of the gateway reads some."""
    return int(shelf.redis.info("commandstats")["cmdstat_hgetall"]["calls"])
