"""Optimised graphs on disk: the same outputs, dropped when damaged, bounded, kept only where that pays."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

import inference.graphcache
from inference import providers
from inference.engine import Engine
from inference.graphcache import NODES_MIN, GraphCache, processor
from inference.session import Session
from jobs.errors import PenstockError, SetupError
from jobs.models import InferenceConfig
from tests.unit.graphs import chain, doubling, graph, place, placed_record

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(4, 3)


class Shelf:
    """A models folder with one version, and a cache; ``opened`` lists the files that sessions were made of."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, model: onnx.ModelProto | None = None) -> None:
        self.version = place(folder / "models", model or chain(2 * NODES_MIN))
        self.path = self.version / "model.onnx"
        self.cache = GraphCache(folder / "graphs", 2**20)
        self.opened: list[Path] = []
        inner = providers.load

        def load(path: Path, options: Any, config: InferenceConfig) -> Any:
            self.opened.append(path)
            return inner(path, options, config)

        monkeypatch.setattr(providers, "load", load)

    def open(self, config: InferenceConfig | None = None) -> Session:
        config = config or InferenceConfig()
        return Session.open(
            self.path,
            threads=1,
            config=config,
            slot=self.cache.slot(self.path, hashlib.sha256(self.path.read_bytes()).hexdigest()),
        )

    def kept(self) -> list[Path]:
        return sorted(self.cache.folder.glob("*.onnx"))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    return Shelf(tmp_path, monkeypatch)


def expected() -> Any:
    array = X
    for _ in range(2 * NODES_MIN):
        array = np.tanh(array)
    return array


def test_the_second_start_opens_the_kept_graph_and_it_says_the_same(shelf: Shelf) -> None:
    first, second = shelf.open(), shelf.open()
    (kept,) = shelf.kept()
    assert shelf.opened == [shelf.path, kept]
    assert second.signature == first.signature
    np.testing.assert_array_equal(second.run({"x": X})["y"], first.run({"x": X})["y"])
    np.testing.assert_allclose(second.run({"x": X})["y"], expected(), rtol=1e-4)
    assert [each.name for each in shelf.cache.folder.iterdir()] == [kept.name]


@pytest.mark.parametrize("harm", ["flip", "cut", "empty"])
def test_a_damaged_file_is_dropped_and_the_graph_itself_opened(
    shelf: Shelf, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.open()
    (kept,) = shelf.kept()
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    harmed = {"flip": bytes(data), "cut": bytes(data[: len(data) // 2]), "empty": b""}
    kept.write_bytes(harmed[harm])
    np.testing.assert_allclose(shelf.open().run({"x": X})["y"], expected(), rtol=1e-4)
    assert "a kept graph is damaged, and is dropped" in caplog.messages
    shelf.open()
    assert shelf.opened == [shelf.path, shelf.path, kept]  # it was kept anew, with the same bytes


def test_a_kept_file_that_onnx_runtime_refuses_is_dropped_for_good(shelf: Shelf) -> None:
    shelf.open()
    (kept,) = shelf.kept()
    kept.write_bytes(b"junk")
    refused = kept.with_name(f"{kept.stem.rpartition('-')[0]}-{inference.graphcache.checksum(kept)}.onnx")
    kept.rename(refused)
    for _ in range(2):
        np.testing.assert_allclose(shelf.open().run({"x": X})["y"], expected(), rtol=1e-4)
    assert shelf.opened == [shelf.path, refused, shelf.path, shelf.path]
    assert shelf.kept() == []


def test_another_graph_level_file_or_processor_is_kept_apart(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.open()
    shelf.open(InferenceConfig(graph_optimization="basic"))
    assert len(shelf.kept()) == 2
    (shelf.version / "weights.bin").write_bytes(b"1")
    shelf.open()
    assert len(shelf.kept()) == 3
    monkeypatch.setattr(inference.graphcache, "processor", lambda: processor() + " amx")
    shelf.open()
    assert len(shelf.kept()) == 4
    place(shelf.version.parents[1], chain(2 * NODES_MIN, width=4))
    assert shelf.open().signature.inputs[0].shape == (None, 4)
    assert set(shelf.opened) == {shelf.path}


def test_a_small_graph_is_not_kept_and_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Shelf(tmp_path, monkeypatch, doubling())
    for _ in range(2):
        shelf.open()
    (marker,) = shelf.cache.folder.iterdir()
    assert (marker.suffix, marker.stat().st_size) == (".not", 0)
    monkeypatch.setattr(shelf.cache.__class__, "prune", None)  # nobody may want it
    shelf.open()
    assert caplog.records == []


def test_a_graph_of_few_nodes_and_many_bytes_is_not_worth_it() -> None:
    assert inference.graphcache.worth(198, 2_700_000)
    assert inference.graphcache.worth(396, 85_000_000)
    assert not inference.graphcache.worth(14, 84_500_000)
    assert not inference.graphcache.worth(3, 5_000)


def test_external_data_is_not_kept_and_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["h"]), *chain(2 * NODES_MIN).graph.node]
    nodes[1].input[0] = "h"
    shelf = Shelf(
        tmp_path, monkeypatch, graph(nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, {"w": np.ones(3, np.float32)})
    )
    proto = onnx.load(shelf.path)
    onnx.save(proto, shelf.path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    outputs = [shelf.open().run({"x": X})["y"] for _ in range(3)]
    assert shelf.kept() == []
    for output in outputs[1:]:
        np.testing.assert_array_equal(output, outputs[0])


def test_what_was_not_opened_for_longest_leaves_first(tmp_path: Path) -> None:
    cache = GraphCache(tmp_path, 250)
    for age, name in enumerate(("new", "mid", "old")):
        (tmp_path / f"{name}.onnx").write_bytes(b"x" * 100)
        os.utime(tmp_path / f"{name}.onnx", (1_000_000 - age, 1_000_000 - age))
    (tmp_path / ".aside-dead.onnx").write_bytes(b"x")
    os.utime(tmp_path / ".aside-dead.onnx", (1_000_000, 1_000_000))
    (tmp_path / ".aside-live.onnx").write_bytes(b"x")
    cache.prune()
    assert {each.name for each in tmp_path.iterdir()} == {"new.onnx", "mid.onnx", ".aside-live.onnx"}


def test_opening_a_kept_graph_makes_it_the_youngest(shelf: Shelf) -> None:
    shelf.open()
    (kept,) = shelf.kept()
    os.utime(kept, (1_000_000, 1_000_000))
    shelf.open()
    assert kept.stat().st_mtime > 1_000_000


def test_a_graph_larger_than_the_whole_cache_is_not_kept(shelf: Shelf) -> None:
    shelf.cache.bytes_max = 10
    shelf.open()
    assert shelf.kept() == []


def test_a_folder_that_cannot_be_made_costs_nothing_but_a_line(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    inference.graphcache._say_once.cache_clear()
    shelf.cache.folder.write_bytes(b"a file in its place")
    for _ in range(2):
        np.testing.assert_allclose(shelf.open().run({"x": X})["y"], expected(), rtol=1e-4)
    assert len(caplog.records) == 1


def test_a_graph_that_is_broken_is_refused_as_without_a_cache(shelf: Shelf) -> None:
    shelf.path.write_bytes(b"\x80\x04junk")
    with pytest.raises(SetupError, match="cannot load the graph"):
        shelf.open()
    assert list(shelf.cache.folder.iterdir()) == []


def test_a_write_that_fails_costs_no_start(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(shelf.open().run({"x": X})["y"], expected(), rtol=1e-4)
    assert caplog.messages == ["an optimised graph cannot be kept"]
    assert list(shelf.cache.folder.iterdir()) == []


def test_an_engine_keeps_the_graphs_of_its_models(shelf: Shelf) -> None:
    record = placed_record(shelf.version, shelf.open().signature)
    for _ in range(2):
        (outcome,) = Engine(shelf.version.parents[1], 1, shelf.cache).run(record, [{"x": X}])
        assert not isinstance(outcome, PenstockError)
        np.testing.assert_allclose(outcome["y"], expected(), rtol=1e-4)
    assert len(shelf.kept()) == 1
    assert shelf.opened[-1] == shelf.kept()[0]
