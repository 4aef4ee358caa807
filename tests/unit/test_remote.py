"""A models folder that follows an object store: the real obstore, on stores in memory and on a disk."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import inference.remote
from inference.files import digests
from inference.remote import Mirror, Object, sort_out
from inference.repository import scan
from jobs.errors import SetupError
from jobs.settings import read_settings

obstore = pytest.importorskip("obstore")
from obstore.store import LocalStore, MemoryStore  # noqa: E402

GRAPH = "toy/1/model.onnx"


class Remote:
    """A store, the folder that follows it, and what was fetched."""

    def __init__(self, store: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = store
        self.folder = folder
        self.fetched: list[str] = []
        self.mirror = Mirror(store, folder)
        inner = obstore.get

        def get(store: Any, path: str) -> Any:
            self.fetched.append(path)
            return inner(store, path)

        monkeypatch.setattr(obstore, "get", get)

    def put(self, **objects: bytes) -> None:
        for name, content in objects.items():
            obstore.put(self.store, name, content)

    def sync(self) -> list[str]:
        """What a sync fetched."""
        self.fetched.clear()
        self.mirror.sync()
        return sorted(self.fetched)

    def files(self) -> dict[str, bytes]:
        """What lies in the folder now, but for what is hidden."""
        files = [each for each in self.folder.rglob("*") if each.is_file()]
        named = {each.relative_to(self.folder).as_posix(): each.read_bytes() for each in files}
        return {name: content for name, content in named.items() if "/." not in f"/{name}"}


@pytest.fixture(params=["memory", "disk"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    (tmp_path / "store").mkdir()
    store = MemoryStore() if request.param == "memory" else LocalStore(str(tmp_path / "store"))
    return Remote(store, tmp_path / "folder", monkeypatch)


def test_the_folder_becomes_what_the_store_holds(remote: Remote) -> None:
    objects = {
        GRAPH: b"g",
        "toy/1/vocab/words": b"deep",
        "toy/2/model.onnx": b"",
        "toy/model.toml": b"weight = 2.0",
        "toy/labels.txt": b"l",
        "big/7/model.onnx": bytes(range(256)) * 40_000,
    }
    remote.put(**objects)
    remote.sync()
    assert remote.files() == objects
    found = scan(remote.folder)
    assert [each[:2] for each in found.versions] == [("big", 7), ("toy", 1), ("toy", 2)]
    assert not found.faults
    assert set(digests(remote.folder / "toy" / "1", remote.folder)) == {"model.onnx", "vocab/words", "../labels.txt"}


def test_what_did_not_change_is_not_fetched_again(remote: Remote) -> None:
    remote.put(**{GRAPH: b"g", "toy/1/w": b"w", "toy/labels.txt": b"l"})
    assert remote.sync() == ["toy/1/model.onnx", "toy/1/w", "toy/labels.txt"]
    assert remote.sync() == []
    assert Mirror(remote.store, remote.folder).is_filled()
    remote.put(**{"toy/1/w": b"W"})  # as many bytes
    assert remote.sync() == ["toy/1/w"]
    assert remote.files() == {GRAPH: b"g", "toy/1/w": b"W", "toy/labels.txt": b"l"}


def test_what_is_gone_goes(remote: Remote) -> None:
    gone = {
        "toy/2/model.onnx": b"2",
        "toy/1/w": b"w",
        "toy/labels.txt": b"l",
        "old/1/model.onnx": b"o",
        "old/x": b"x",
    }
    remote.put(**{GRAPH: b"g", **gone})
    remote.sync()
    obstore.delete(remote.store, [*gone])
    remote.sync()
    assert remote.files() == {GRAPH: b"g"}
    assert not (remote.folder / "old").exists()


@pytest.mark.parametrize("left", [[], ["toy/labels.txt"]])
def test_a_store_without_any_version_removes_nothing(remote: Remote, left: list[str]) -> None:
    remote.put(**{GRAPH: b"g", "toy/labels.txt": b"l"})
    remote.sync()
    obstore.delete(remote.store, [each for each in (GRAPH, "toy/labels.txt") if each not in left])
    with pytest.raises(SetupError, match="holds no model"):
        remote.sync()
    assert remote.files() == {GRAPH: b"g", "toy/labels.txt": b"l"}


def test_a_version_whose_graph_is_not_there_yet_is_not_fetched(remote: Remote) -> None:
    remote.put(**{GRAPH: b"g", "toy/2/weights": b"w"})
    assert remote.sync() == [GRAPH]
    remote.put(**{"toy/2/model.onnx": b"2"})
    assert remote.sync() == ["toy/2/model.onnx", "toy/2/weights"]


def test_samples_hidden_names_and_what_no_model_has_are_left_where_they_are(remote: Remote) -> None:
    left = (
        "README.md",
        "toy/samples/a.png",
        "toy/_notes",
        ".git/config",
        "toy/1/.hidden",
        "Toy/1/model.onnx",
        "toy/01/x",
    )
    remote.put(**{GRAPH: b"g"}, **dict.fromkeys(left, b"x"))
    assert remote.sync() == [GRAPH]
    assert remote.files() == {GRAPH: b"g"}


def _fail(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Any], Any]) -> None:
    """Every answer of the store for version 1's weights goes wrong."""
    inner = obstore.get

    def get(store: Any, path: str) -> Any:
        answer = inner(store, path)
        return wrong(answer) if path == "toy/1/w" else answer

    monkeypatch.setattr(obstore, "get", get)


class Answer:
    def __init__(self, meta: Any, *chunks: bytes) -> None:
        self.meta = meta
        self.chunks = chunks

    def stream(self, **_: Any) -> Any:
        return iter(self.chunks)


def _raise(_: Any) -> Any:
    raise OSError("the network")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda answer: Answer(answer.meta, b"W", b"W"),
        lambda answer: Answer(answer.meta),
        lambda answer: Answer({**answer.meta, "e_tag": "another"}, b"W"),
        _raise,
    ],
    ids=["too many bytes", "too few", "changed meanwhile", "no answer"],
)
def test_a_version_that_cannot_be_fetched_whole_stays_as_it_was_and_the_others_are_followed(
    remote: Remote, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Any], Any]
) -> None:
    remote.put(**{GRAPH: b"g", "toy/1/w": b"w"})
    remote.sync()
    before = remote.files()
    remote.put(**{GRAPH: b"G", "toy/1/w": b"W", "toy/2/model.onnx": b"2"})
    with monkeypatch.context() as patch:
        _fail(patch, wrong)
        remote.sync()
        assert remote.files() == {**before, "toy/2/model.onnx": b"2"}
    remote.sync()
    assert remote.files() == {GRAPH: b"G", "toy/1/w": b"W", "toy/2/model.onnx": b"2"}
    assert not [*(remote.folder / ".temp").iterdir()]


def test_a_file_that_a_reader_holds_is_not_written_into(remote: Remote) -> None:
    remote.put(**{GRAPH: b"old", "toy/labels.txt": b"old"})
    remote.sync()
    with (remote.folder / GRAPH).open("rb") as graph, (remote.folder / "toy" / "labels.txt").open("rb") as labels:
        remote.put(**{GRAPH: b"new", "toy/labels.txt": b"new"})
        remote.sync()
        assert (graph.read(), labels.read()) == (b"old", b"old")


def test_a_disk_without_room_fetches_nothing(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.put(**{GRAPH: bytes(1_000)})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1_050))
    assert remote.sync() == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 1_200))
    assert remote.sync() == [GRAPH]


def test_a_listing_without_end_is_refused(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference.remote, "OBJECTS_MAX", 3)
    remote.put(**{f"toy/{number}/model.onnx": b"" for number in range(1, 5)})
    with pytest.raises(SetupError, match="more than 3 objects"):
        remote.sync()


@pytest.mark.parametrize(
    "path",
    [
        *("../toy/1/model.onnx", "toy/1/../../../x", "/etc/passwd", "toy//1/x", "toy/1/./x", "toy/1/a\0b", ".."),
        *("toy/1/" + "x" * 256, "toy/1/" + "a/" * 20 + "x", "toy/1/", "toy/1", "..\\..\\x", "", "/"),
    ],
)
def test_names_that_would_leave_the_folder_are_refused(path: str) -> None:
    models, versions = sort_out([Object(path, "t", 1), Object(GRAPH, "t", 1)])
    assert list(versions) == ["toy/1"]
    assert list(versions["toy/1"]) == ["model.onnx"]
    assert not {each for unit in models.values() for each in unit} - {"1"}


NAMES = st.text("ab1./\\\0_\n\u00e9", max_size=12).map(lambda text: f"toy/1/{text}")


@given(st.lists(NAMES | st.text(max_size=20), max_size=8))
def test_whatever_a_store_lists_lands_inside_its_version(paths: list[str]) -> None:
    models, versions = sort_out([Object(path, "t", 1) for path in (*paths, GRAPH)])
    for place, unit in (*models.items(), *versions.items()):
        root = Path("/folder") / place
        for name in unit:
            landed = Path(os.path.normpath(root / name))
            assert landed.is_relative_to(root)
            assert landed != root
            assert "\0" not in name


def test_a_file_that_is_a_folder_too_spoils_its_version_alone() -> None:
    objects = [Object(path, "t", 1) for path in ("toy/1/a", "toy/1/a/b", GRAPH, "toy/2/model.onnx")]
    assert list(sort_out(objects)[1]) == ["toy/2"]


def test_a_url_is_followed_and_needs_obstore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "store" / "toy" / "1").mkdir(parents=True)
    (tmp_path / "store" / GRAPH).write_bytes(b"g")
    settings = read_settings(models=f"file://{tmp_path}/store", data=tmp_path / "data")
    mirror = Mirror.open(settings.models_url, settings.models_folder)
    assert not mirror.is_filled()
    mirror.sync()
    assert (settings.models_folder / GRAPH).read_bytes() == b"g"
    assert settings.models_folder.is_relative_to(tmp_path / "data")

    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(SetupError, match=r"pip install penstock\[remote\]"):
        Mirror.open(settings.models_url, settings.models_folder)


def test_a_store_that_is_away_is_said_in_one_line(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    with pytest.raises(SetupError) as caught:
        Mirror.open(url, tmp_path / "folder")
    assert "\n" not in str(caught.value)
    (tmp_path / "store").mkdir()
    mirror = Mirror.open(url, tmp_path / "folder")
    (tmp_path / "store").rmdir()
    with pytest.raises(SetupError) as caught:
        mirror.sync()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("models", ["ftp://host/models", "s3:/bucket://x", "memory://"])
def test_only_stores_that_we_know_are_settings(models: str) -> None:
    with pytest.raises(SetupError, match="PENSTOCK_MODELS"):
        read_settings(models=models)


def test_a_folder_is_no_url() -> None:
    assert (read_settings().models_url, read_settings().models_folder) == ("", Path("models"))
