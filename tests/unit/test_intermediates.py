"""Intermediates: inside the record, a file on tmpfs, or a key of the store; each may be gone."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from jobs.commands import Command
from jobs.errors import StoreUnavailableError
from jobs.settings import read_settings
from jobs.store import JobStore
from tasks import intermediates
from tasks.intermediates import INLINE_BYTES_MAX, TTL_S, Intermediates, mount_id

PREFIX = "t:"
LARGE = b"x" * (INLINE_BYTES_MAX + 1)


class Keys:
    """The few commands of Redis that are used; ``away`` makes each of them fail."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.ttl_s: dict[bytes, int] = {}
        self.away = False

    def keep(self, name: str, ttl_s: int, data: bytes) -> None:
        self._answer()
        key = f"{PREFIX}intermediate:{name}".encode()
        self.kept[key], self.ttl_s[key] = data, ttl_s

    def get(self, key: bytes) -> bytes | None:
        self._answer()
        return self.kept.get(key)

    def unlink(self, key: bytes) -> None:
        self._answer()
        self.kept.pop(key, None)

    def _answer(self) -> None:
        if self.away:
            raise redis.ConnectionError


class Store:
    """A job store that knows one script."""

    prefix = PREFIX

    def __init__(self, keys: Keys) -> None:
        self.client = keys

    def run(self, command: Command[Any]) -> None:
        assert command.script == "keep"
        try:
            self.client.keep(*command.arguments)
        except redis.ConnectionError as error:
            raise StoreUnavailableError("away") from error


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def kept(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Intermediates:
    monkeypatch.setattr(intermediates, "_TMPFS", tmp_path)
    return Intermediates(cast("JobStore", Store(keys)), read_settings(namespace="t"))


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("shared", [True, False])
def test_a_small_one_lies_in_the_record_itself(kept: Intermediates, keys: Keys, tmp_path: Path, shared: Any) -> None:
    kept.shared = shared
    data = b"x" * INLINE_BYTES_MAX

    reference = kept.put("1-preprocess-1", data)

    assert (reference[:1], kept.get(reference)) == (b"i", data)
    assert (keys.kept, _files(tmp_path)) == ({}, [])


def test_a_large_one_is_a_file_while_all_workers_share_the_tmpfs(
    kept: Intermediates, keys: Keys, tmp_path: Path
) -> None:
    kept.shared = True

    reference = kept.put("1-preprocess-1", LARGE)

    assert (reference[:1], kept.get(reference)) == (b"f", LARGE)
    (file,) = _files(tmp_path)
    assert (file.name.startswith("1-preprocess-1-"), keys.kept) == (True, {})


def test_two_installations_that_count_the_same_numbers_never_share_a_file(kept: Intermediates) -> None:
    kept.shared = True
    mine, theirs = kept.put("1-preprocess-1", LARGE), kept.put("1-preprocess-1", LARGE[::-1] + b"!")

    assert (kept.get(mine), kept.get(theirs)) == (LARGE, LARGE[::-1] + b"!")


def test_the_folder_of_files_is_ours_alone(kept: Intermediates, tmp_path: Path) -> None:
    kept.shared = True
    kept.put("name", LARGE)

    (folder,) = tmp_path.iterdir()

    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_large_one_is_a_key_with_a_ttl_elsewhere(kept: Intermediates, keys: Keys, tmp_path: Path) -> None:
    reference = kept.put("1-preprocess-1", LARGE)

    assert (reference, kept.get(reference)) == (b"kt:intermediate:1-preprocess-1", LARGE)
    assert (list(keys.ttl_s.values()), _files(tmp_path)) == ([TTL_S], [])


def test_a_tmpfs_that_takes_no_file_leaves_the_store(kept: Intermediates, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    kept.shared = True
    monkeypatch.setattr(Path, "write_bytes", full)

    assert kept.get(kept.put("name", LARGE)) == LARGE


def test_what_is_dropped_is_gone(kept: Intermediates, keys: Keys, tmp_path: Path) -> None:
    key = kept.put("key", LARGE)
    kept.shared = True
    file = kept.put("file", LARGE)

    for reference in (key, file, file, b"i" + b"small"):
        kept.drop(reference)

    assert [kept.get(key), kept.get(file)] == [None, None]
    assert (keys.kept, _files(tmp_path)) == ({}, [])


def test_a_file_of_another_host_cannot_be_read_here(kept: Intermediates, tmp_path: Path) -> None:
    kept.shared = True
    kept.put("name", LARGE)
    foreign = b"fanother-boot-id-27/name"

    kept.drop(foreign)

    assert kept.get(foreign) is None
    assert len(_files(tmp_path)) == 1


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc/passwd", "", ".", "..", "a\0b"])
def test_a_reference_leads_to_no_file_but_ours(kept: Intermediates, tmp_path: Path, name: str) -> None:
    kept.shared = True
    kept.put("name", LARGE)
    (tmp_path / "secret").write_bytes(b"secret")
    reference = f"f{kept.mount}/{name}".encode()

    assert kept.get(reference) is None
    kept.drop(reference)
    assert len(_files(tmp_path)) == 2


@pytest.mark.parametrize("reference", [b"", b"x", b"f", b"f\xff\xfe/name", b"kt:intermediate:none"])
def test_a_reference_that_means_nothing_reads_as_gone(kept: Intermediates, reference: bytes) -> None:
    assert kept.get(reference) is None
    kept.drop(reference)


def test_files_that_nobody_fetched_are_removed_after_their_ttl(kept: Intermediates, tmp_path: Path) -> None:
    kept.shared = True
    kept.put("old", LARGE)
    kept.put("young", LARGE)
    past = time.time() - TTL_S - 1
    os.utime(next(path for path in _files(tmp_path) if path.name.startswith("old-")), (past, past))

    kept.clean()

    assert [path.name.partition("-")[0] for path in _files(tmp_path)] == ["young"]


def test_there_is_nothing_to_clean_before_the_first_file(kept: Intermediates) -> None:
    kept.clean()


def test_a_store_that_is_away_is_our_own_error_and_a_drop_is_left_to_the_ttl(kept: Intermediates, keys: Keys) -> None:
    reference = kept.put("name", LARGE)
    keys.away = True

    with pytest.raises(StoreUnavailableError):
        kept.put("another", LARGE)
    with pytest.raises(StoreUnavailableError):
        kept.get(reference)
    kept.drop(reference)


def test_a_machine_without_a_tmpfs_has_no_mount(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert mount_id()
    monkeypatch.setattr(intermediates, "_TMPFS", tmp_path / "none")

    assert mount_id() == ""
