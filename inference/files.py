"""The files that make a version: their digests, and a cheap stamp that tells whether they may have changed.

Of a version are: every regular file in its folder and the folders below, and those directly in its model's folder
(``tokenizer.json``, labels, a user's steps), named ``../tokenizer.json``. ``model.toml`` is not one of them (what it
says stands in the record), nor is what begins with ``.`` or ``_``.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from jobs.errors import SetupError

CONFIG = "model.toml"
FILES_MAX = 1_000
"""Most files of a version: their digests stand in its record, which every gateway keeps."""
DEPTH_MAX = 8
NAME_BYTES_MAX = 1_024

Stamp: TypeAlias = tuple[tuple[str, int, int, int, int], ...]
"""For each file: name, size, mtime, ctime (ns) and inode."""

_SETTLED_NS = 2 * 10**9
"""A file that changed this lately may change again within one tick of its file system's clock."""
_KNOWN_MAX = 10_000
_known: OrderedDict[tuple[str, int, int, int, int], str] = OrderedDict()
"""Digests of files by path and what changes with their content, so that a look at an unchanged folder is cheap."""
_lock = threading.Lock()


def digests(folder: Path, root: Path) -> dict[str, str]:
    """SHA-256 in hex of each file of the version in ``folder``, by its name there; ``root`` is the models folder.

    SetupError where there are too many, one cannot be read, or a link leaves ``root``.
    """
    try:
        return {name: _digest(path) for name, path in sorted(paths(folder, root).items())}
    except OSError as error:
        raise SetupError(f"{_shown(error.filename or folder)}: cannot be read: {error.strerror}") from None


def digest_of(files: Mapping[str, str]) -> str:
    """One SHA-256 over the names and digests of a version's files: that of the output of ``sha256sum``, by name."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def stamp(folder: Path, root: Path) -> Stamp:
    """What changes when a file of the version does, its ``model.toml`` included; SetupError as ``digests``."""
    named = paths(folder, root) | {CONFIG: folder / CONFIG, f"../{CONFIG}": folder.parent / CONFIG}
    return tuple((name, *found[1:]) for name, path in sorted(named.items()) if (found := _facts(path)))


def paths(folder: Path, root: Path) -> dict[str, Path]:
    """The files of the version in ``folder`` by name; SetupError as ``digests``."""
    found: dict[str, Path] = {}
    for name, path in (*_below(folder, root, ""), *_beside(folder, root)):
        if len(found) == FILES_MAX:
            raise SetupError(
                f"{folder}: more than {FILES_MAX} files; a version holds what it runs with, nothing else"
            )
        found[name] = path
    return found


def check_inside(path: Path, root: Path) -> None:
    """SetupError where ``path`` is, or lies behind, a link that leaves ``root``."""
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a link that leads to itself
        inside = False
    if not inside:
        raise SetupError(f"{path}: a link that leaves the models folder; copy the files into it")


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name counts for nothing."""
    return name.startswith((".", "_"))


def without_root(error: SetupError, root: Path) -> str:
    """The text of an error as others may see it: it names files by their place in the models folder."""
    text = str(error)
    for prefix in {f"{root}/", f"{root.resolve()}/"}:
        text = text.replace(prefix, "")
    return text


def _below(folder: Path, root: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    if prefix.count("/") > DEPTH_MAX:
        raise SetupError(f"{folder}: more than {DEPTH_MAX} folders deep; move the files up")
    for each in _entries(folder):
        if each.is_dir():
            if each.is_symlink():
                raise SetupError(f"{each.path}: a link to a folder; copy the folder")
            yield from _below(Path(each.path), root, f"{prefix}{each.name}/")
        elif each.is_file() and (prefix or each.name != CONFIG):
            yield prefix + each.name, _checked(each, root)


def _beside(folder: Path, root: Path) -> Iterator[tuple[str, Path]]:
    for each in _entries(folder.parent):
        if each.name != CONFIG and each.is_file():
            yield f"../{each.name}", _checked(each, root)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (each for each in entries if not is_passed_over(each.name))


def _checked(entry: os.DirEntry[str], root: Path) -> Path:
    path = Path(entry.path)
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise SetupError(f"{_shown(entry.path)}: its name is not UTF-8; rename it") from None
    if entry.is_symlink():
        check_inside(path, root)
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise SetupError(f"{path}: not a plain file any more")
        key = _key(path, facts)
        with _lock:
            if key in _known:
                return _known[key]
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) > _SETTLED_NS:
        with _lock:
            _known[key] = sha256
            if len(_known) > _KNOWN_MAX:
                _known.popitem(last=False)
    return sha256


def _facts(path: Path) -> tuple[str, int, int, int, int] | None:
    try:
        return _key(path, path.stat())
    except OSError:
        return None


def _key(path: Path, facts: os.stat_result) -> tuple[str, int, int, int, int]:
    return str(path), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


def _shown(name: object) -> str:
    return str(name).encode(errors="backslashreplace").decode()
