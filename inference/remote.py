"""A models folder that follows an object store (``s3://``, ``gs://``, ``az://``, ``file://``), through obstore.

``Mirror.sync`` makes the folder what the store holds: versions as whole folders, each moved into place when all its
objects are there; the files beside them one by one, before. Only what can be of a model is fetched, only what changed
(ETag and size; where there is no ETag, the time), and never more bytes than the listing said or the disk has room
for. Several processes may share the folder: one syncs at a time. Not promised: that a version and a file beside it
change at the same instant.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec

from inference.files import FILES_MAX, is_passed_over
from inference.repository import GRAPH, is_model, is_version
from jobs.errors import SetupError

log = logging.getLogger(__name__)

OBJECTS_MAX = 50_000
"""Most objects of a listing."""
CHUNK_BYTES = 4 * 1024 * 1024
ROOM = 1.1
"""Room on the disk for a fetch, as a multiple of its bytes."""
_NAME_BYTES_MAX = 255
_PARTS_MAX = 12
_MANIFEST = ".objects.json"
"""In each folder: what its files are copies of."""
_TEMP = ".temp"
_LOCK = ".lock"


class Object(NamedTuple):
    """One object as it was listed: where it lies, and what changes with its content."""

    path: str
    tag: str
    size: int


Unit: TypeAlias = dict[str, Object]
"""The objects of one folder by the name of their file in it."""


class Mirror:
    """A local ``folder`` that follows ``store``, any store of obstore."""

    def __init__(self, store: Any, folder: Path) -> None:
        self._store = store
        self._folder = folder

    @classmethod
    def open(cls, url: str, folder: Path) -> Mirror:
        """Follow the store at ``url``; credentials come from the surroundings, as obstore reads them.

        SetupError where obstore is not installed or cannot make a store of the URL.
        """
        try:
            from obstore.exceptions import BaseError  # noqa: PLC0415 - an optional extra
            from obstore.store import from_url  # noqa: PLC0415
        except ImportError:
            raise SetupError("PENSTOCK_MODELS is a URL, which needs obstore: pip install penstock[remote]") from None
        try:
            return cls(from_url(url), folder)
        except (BaseError, ValueError) as error:
            raise SetupError(f"PENSTOCK_MODELS: {_one_line(error)}") from None

    def sync(self) -> None:
        """Make the folder what the store holds; what fails of one version leaves that one as it was.

        SetupError where the store cannot be listed, or lists nothing of a model: then nothing is removed.
        """
        with self._alone():
            models, versions = sort_out(self._listed())
            if not versions:
                raise SetupError(
                    "the store at PENSTOCK_MODELS holds no model (NAME/1/model.onnx): nothing is changed"
                )
            shutil.rmtree(self._folder / _TEMP, ignore_errors=True)
            for name, unit in models.items():
                self._try(self._follow_model, name, unit)
            for place, unit in versions.items():
                self._try(self._follow_version, place, unit)
            self._remove(models, versions)

    def is_filled(self) -> bool:
        """Whether an earlier sync left a version here."""
        return any(self._folder.glob(f"*/*/{_MANIFEST}"))

    # --- What there is ---

    def _listed(self) -> list[Object]:
        from obstore import list as list_objects  # noqa: PLC0415 - an optional extra

        found: list[Object] = []
        try:
            for chunk in list_objects(self._store):
                found += [_object(each) for each in chunk]
                if len(found) > OBJECTS_MAX:
                    break
        except Exception as error:  # noqa: BLE001 - obstore raises classes of its own and Python's
            raise SetupError(f"the store at PENSTOCK_MODELS cannot be listed: {_one_line(error)}") from None
        if len(found) > OBJECTS_MAX:
            raise SetupError(f"the store at PENSTOCK_MODELS lists more than {OBJECTS_MAX} objects")
        return found

    # --- One folder ---

    def _try(self, follow: Any, place: str, unit: Unit) -> None:
        try:
            follow(place, unit)
        except SetupError as error:
            log.error("model not fetched: %s", error, extra={"version": place})  # noqa: TRY400 - it says it all
        except Exception:  # obstore raises classes of its own and Python's; the other versions are followed
            log.exception("model not fetched", extra={"version": place})

    def _follow_version(self, place: str, unit: Unit) -> None:
        target = self._folder / place
        if _manifest(target) == unit:
            return
        with self._temp() as temp:
            self._fetch(unit, target, temp / "new")
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rename(temp / "old")
            (temp / "new").rename(target)
        log.info("model fetched", extra={"version": place})

    def _follow_model(self, name: str, unit: Unit) -> None:
        target = self._folder / name
        before = _manifest(target)
        if before == unit:
            return
        with self._temp() as temp:
            self._fetch(unit, target, temp / "new")
            target.mkdir(parents=True, exist_ok=True)
            for file in (*unit, _MANIFEST):
                (temp / "new" / file).replace(target / file)
        for file in before.keys() - unit.keys():
            (target / file).unlink(missing_ok=True)

    def _fetch(self, unit: Unit, had: Path, to: Path) -> None:
        """Fill the new folder ``to``: from ``had`` where that has the same, else from the store."""
        before = _manifest(had)
        missing = {name: each for name, each in unit.items() if before.get(name) != each}
        self._check_room(sum(each.size for each in missing.values()))
        to.mkdir()
        for name, each in unit.items():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            if name in missing:
                self._download(each, to / name)
            else:
                os.link(had / name, to / name)
        (to / _MANIFEST).write_bytes(msgspec.json.encode(unit))

    def _download(self, wanted: Object, to: Path) -> None:
        from obstore import get  # noqa: PLC0415 - an optional extra

        answer = get(self._store, wanted.path)
        if _object(answer.meta) != wanted:
            raise SetupError(f"{wanted.path!a} changed while it was fetched; it is tried again")
        left = wanted.size
        with to.open("xb") as file:
            for chunk in answer.stream(min_chunk_size=CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    break
                file.write(chunk)
        if left:
            raise SetupError(f"{wanted.path!a} has not the {wanted.size} bytes that were listed")

    def _check_room(self, size: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if size * ROOM > free:
            raise SetupError(f"{size} bytes to fetch and {free} free: make room in {self._folder}")

    def _remove(self, models: Mapping[str, Unit], versions: Mapping[str, Unit]) -> None:
        """Remove versions and models that are gone; files beside versions go with ``_follow_model``."""
        kept = {place.partition("/")[0] for place in (*models, *versions)}
        for model in [each for each in self._folder.iterdir() if each.is_dir() and not is_passed_over(each.name)]:
            gone = [each for each in model.iterdir() if each.is_dir() and f"{model.name}/{each.name}" not in versions]
            for each in gone if model.name in kept else [model]:
                with self._temp() as temp:
                    each.rename(temp / "old")
            if model.name in kept and model.name not in models:
                self._try(self._follow_model, model.name, {})

    # --- The folder as a whole ---

    @contextmanager
    def _temp(self) -> Iterator[Path]:
        """A folder on the same disk that is gone afterwards."""
        (self._folder / _TEMP).mkdir(exist_ok=True)
        temp = Path(tempfile.mkdtemp(dir=self._folder / _TEMP))
        try:
            yield temp
        finally:
            shutil.rmtree(temp, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process syncs this folder."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def sort_out(objects: Iterable[Object]) -> tuple[dict[str, Unit], dict[str, Unit]]:
    """The files beside versions, by model, and those of versions, by place (``name/version``).

    What is of neither is left out (``NAME/samples/...``, hidden names), and so is a version without its graph. What
    could not be a file of a folder is refused, and a folder of too many: both are logged.
    """
    models: defaultdict[str, Unit] = defaultdict(dict)
    versions: defaultdict[str, Unit] = defaultdict(dict)
    for each in objects:
        parts = each.path.split("/")
        if not _is_safe(parts):
            log.error("an object that could not be a file of a models folder is passed over: %a", each.path[:200])
        elif any(is_passed_over(part) for part in parts) or not is_model(parts[0]):
            continue
        elif len(parts) == 2:  # noqa: PLR2004 - NAME/FILE
            models[parts[0]][parts[1]] = each
        elif is_version("/".join(parts[:2])):
            versions["/".join(parts[:2])]["/".join(parts[2:])] = each
    for place in [place for place, unit in versions.items() if GRAPH not in unit]:  # its upload goes on
        del versions[place]
    for units in (models, versions):
        for place in [place for place, unit in units.items() if _is_odd(unit)]:
            log.error("model passed over: more than %d files, or a file that is a folder, too: %s", FILES_MAX, place)
            del units[place]
    return dict(models), dict(versions)


def _is_safe(parts: list[str]) -> bool:
    """Whether a name of these parts stays in the folder, on any file system of ours."""
    if not 1 < len(parts) <= _PARTS_MAX:
        return len(parts) == 1
    return all(
        part not in ("", ".", "..") and "\0" not in part and len(part.encode(errors="replace")) <= _NAME_BYTES_MAX
        for part in parts
    )


def _is_odd(unit: Unit) -> bool:
    folders = {name[:at] for name in unit for at, letter in enumerate(name) if letter == "/"}
    return len(unit) > FILES_MAX or bool(folders & unit.keys())


def _object(meta: Any) -> Object:
    return Object(meta["path"], meta["e_tag"] or meta["last_modified"].isoformat(), meta["size"])


def _manifest(folder: Path) -> Unit:
    """What the folder holds copies of; nothing where that is not known."""
    try:
        return msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=dict[str, Object])
    except (OSError, msgspec.DecodeError):
        return {}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n\nDebug source", maxsplit=1)[0].split())[:300]
