"""The files of a version: which count, what their digests are, and when they are read again."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import inference.files
from inference.files import digest_of, digests, stamp
from jobs.errors import SetupError

LONG_AGO_S = 1_000_000_000


def put(root: Path, **files: bytes | str) -> Path:
    """A version's folder with a graph and these files beside it, ``__`` for ``/``; a text is a link's target."""
    folder = root / "toy" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"model.onnx": b"graph", **{k.replace("__", "/"): v for k, v in files.items()}}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            (folder / name).symlink_to(content)
        else:
            (folder / name).write_bytes(content)
    return folder


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_every_file_of_the_versions_folder_and_beside_it_counts_but_model_toml(tmp_path: Path) -> None:
    folder = put(tmp_path, weights=b"w", vocab__a__b=b"deep", model__toml=b"in a folder called model")
    for name in ("model.toml", "../model.toml"):
        (folder / name).write_bytes(b"")
    (folder / "../labels.txt").write_bytes(b"l")
    (folder / "../samples").mkdir()
    (folder / "../samples/a.png").write_bytes(b"not ours")
    assert digests(folder, tmp_path) == {
        "model.onnx": sha256(b"graph"),
        "weights": sha256(b"w"),
        "vocab/a/b": sha256(b"deep"),
        "model/toml": sha256(b"in a folder called model"),
        "../labels.txt": sha256(b"l"),
    }


def test_hidden_files_and_what_is_no_file_are_passed_over(tmp_path: Path) -> None:
    folder = put(tmp_path)
    for name in (".git", "_old", "__pycache__"):
        (folder / name).mkdir()
        (folder / name / "x").write_bytes(b"x")
        (folder / f"{name}.bin").write_bytes(b"x")
    os.mkfifo(folder / "pipe")
    assert set(digests(folder, tmp_path)) == {"model.onnx"}


def test_the_one_digest_is_that_of_sha256sum_s_own_lines(tmp_path: Path) -> None:
    folder = put(tmp_path, weights=b"w" * 100_000, b__c=b"")
    listed = subprocess.run(
        ["sh", "-c", "LC_ALL=C; sha256sum $(find . -type f | sed 's|^./||' | sort) | sha256sum"],
        cwd=folder,
        capture_output=True,
        check=True,
        text=True,
    )
    assert digest_of(digests(folder, tmp_path)) == listed.stdout.split()[0]


def test_links_inside_the_models_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "shared").write_bytes(b"s")
    folder = put(tmp_path, weights="../../shared")
    assert digests(folder, tmp_path)["weights"] == sha256(b"s")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "w").symlink_to("/etc/passwd"), "1/w: a link that leaves the models folder"),
        (lambda folder: (folder / "w").symlink_to("../../../secret"), "1/w: a link that leaves the models folder"),
        (lambda folder: (folder.parent / "l").symlink_to("/etc/passwd"), "toy/l: a link that leaves"),
        (lambda folder: (folder / "w").symlink_to("."), "1/w: a link to a folder; copy the folder"),
        (lambda folder: [(folder / f"f{i}").touch() for i in range(1_000)], "more than 1000 files"),
        (lambda folder: (folder / "/".join("abcdefghij")).mkdir(parents=True), "more than 8 folders deep"),
        (lambda folder: Path(os.fsdecode(bytes(folder / "w") + b"\xff")).touch(), "its name is not UTF-8"),
    ],
)
def test_what_cannot_be_vouched_for_is_refused(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    models = tmp_path / "models"
    (tmp_path / "secret").write_bytes(b"")
    folder = put(models)
    spoil(folder)
    with pytest.raises(SetupError) as caught:
        digests(folder, models)
    assert says in str(caught.value)
    str(caught.value).encode()


def test_a_file_that_did_not_change_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(tmp_path, weights=b"w")
    monkeypatch.setattr(inference.files, "_SETTLED_NS", -(10**18))
    first = digests(folder, tmp_path)
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert digests(folder, tmp_path) == first


def test_a_file_that_changed_lately_is_read_again(tmp_path: Path) -> None:
    """Within one tick of the file system's clock, a second change of the same size shows in no stamp."""
    folder = put(tmp_path, weights=b"w")
    digests(folder, tmp_path)
    assert not [key for key in inference.files._known if key[0].startswith(str(tmp_path))]


@pytest.mark.parametrize("name", ["model.onnx", "deep/er", "../labels.txt", "model.toml", "../model.toml"])
def test_a_change_that_keeps_size_and_mtime_shows_in_the_stamp_and_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(inference.files, "_SETTLED_NS", -(10**18))
    folder = put(tmp_path, deep__er=b"1")
    file = folder / name
    file.write_bytes(b"one")
    os.utime(file, (LONG_AGO_S, LONG_AGO_S))
    before, digest_before = stamp(folder, tmp_path), digest_of(digests(folder, tmp_path))

    (folder / "_new").write_bytes(b"two")
    (folder / "_new").replace(file)
    os.utime(file, (LONG_AGO_S, LONG_AGO_S))

    assert stamp(folder, tmp_path) != before
    assert (digest_of(digests(folder, tmp_path)) != digest_before) == (not name.endswith("model.toml"))


def test_looking_changes_no_stamp(tmp_path: Path) -> None:
    folder = put(tmp_path, weights=b"w")
    before = stamp(folder, tmp_path)
    digests(folder, tmp_path)
    assert stamp(folder, tmp_path) == before


def test_a_file_that_goes_changes_the_stamp(tmp_path: Path) -> None:
    folder = put(tmp_path, weights=b"w")
    before = stamp(folder, tmp_path)
    (folder / "weights").unlink()
    assert stamp(folder, tmp_path) != before
