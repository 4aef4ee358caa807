"""Optimised graphs on disk, so that the next start need not optimise them again.

ONNX Runtime's optimiser costs time by the node; a kept graph is read and checked at some 0.5 ms a MiB. Measured on
one core (ONNX Runtime 1.31, milliseconds of processor time to open, source and kept, check included): a transformer
of 6 layers (198 nodes, 2.6 MiB) 47 and 20; 16 convolutions (33 nodes, 8.5 MiB) 44 and 15; 12 layers (396 nodes,
81 MiB) 219 and 180; an MLP of 7 layers (14 nodes, 81 MiB) 114 and 155. So a graph is kept only where its nodes
outweigh its bytes; where they do not, an empty marker says so and the next start asks no further.

Kept at the level that the model asks for, so a file holds this processor's layouts: its key covers the processor's
flags, the runtime's version, the graph's digest, the other files of its folder and the level. Only for graphs that
run on the CPU alone: CUDA's start is another matter, and TensorRT and OpenVINO keep caches of their own. A graph with
external data cannot be kept: ONNX Runtime writes it with paths that are not there. A file is written aside, flushed
and renamed, and its name holds its checksum: what is damaged is dropped, never run.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import mmap
import os
import platform
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import onnxruntime as ort

from inference import providers
from jobs.errors import SetupError
from jobs.models import InferenceConfig

log = logging.getLogger(__name__)

NODES_MIN = 32
"""Below, a start gains a few milliseconds at best."""
NODE_BYTES_MAX = 256 * 1024
"""Above, reading and checking the file costs more than optimising the graph did."""
SOURCE_BYTES_MAX = 256 * 1024 * 1024
"""Larger graphs are mostly weights, and are not written even once."""
_STALE_S = 3600.0
"""A file written aside that is older was left by a process that died."""


class GraphCache:
    """A folder of at most ``bytes_max`` bytes; the graph that was not opened for longest leaves first.

    Several processes may share it. ``engines`` of TensorRT and OpenVINO lie in it too, and are not counted.
    """

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self.folder = folder
        self.bytes_max = bytes_max

    def slot(self, graph: Path, digest: str) -> Slot:
        """Where the graph with this SHA-256 is kept."""
        return Slot(self, graph, digest)

    def prune(self) -> None:
        """Remove what is too much, and what dead processes left."""
        kept = sorted(self._files("*.onnx"), key=lambda each: each[0], reverse=True)
        total = 0
        for _, size, file in kept:
            total += size
            if total > self.bytes_max:
                file.unlink(missing_ok=True)
        for used_at, _, file in self._files(".aside-*"):
            if used_at < time.time() - _STALE_S:
                file.unlink(missing_ok=True)

    def _files(self, pattern: str) -> Iterator[tuple[float, int, Path]]:
        for file in self.folder.glob(pattern):
            try:
                known = file.stat()
            except FileNotFoundError:  # another process was quicker
                continue
            yield known.st_mtime, known.st_size, file


class Slot:
    """The place of one graph in the cache."""

    def __init__(self, cache: GraphCache, graph: Path, digest: str) -> None:
        self._cache = cache
        self._graph = graph
        self._digest = digest
        self.engines = cache.folder / f"{digest[:16]}-engines"
        """Folder for the caches that providers keep themselves."""

    def load(self, options: Callable[[], Any], config: InferenceConfig) -> Any:
        """Open the kept graph, else the graph itself, which is then kept if that is worth it."""
        name = self._name(config.graph_optimization)
        return self._kept(name, options, config) or self._fresh(name, options, config)

    def _name(self, level: str) -> str:
        """What the kept file's name begins with; differs where the file would."""
        others = sorted(
            (each.name, each.stat().st_size, each.stat().st_mtime_ns)
            for each in self._graph.parent.iterdir()
            if each.is_file() and each != self._graph
        )
        key = msgspec.json.encode((self._digest, others, ort.get_version_string(), processor(), level))
        return f"{self._digest[:16]}-{ort.get_version_string()}-{hashlib.sha256(key).hexdigest()[:16]}"

    def _kept(self, name: str, options: Callable[[], Any], config: InferenceConfig) -> Any | None:
        file = self._whole(name)
        if file is None:
            return None
        given = options()
        given.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            return providers.load(file, given, config)
        except SetupError:
            log.warning("a kept graph cannot be loaded, and is dropped", extra={"file": file.name})
            if file.exists():  # not taken away meanwhile by another process
                self._mark(name)
            return None

    def _whole(self, name: str) -> Path | None:
        """The kept file, if its bytes are those that were written; else it is removed."""
        for file in self._cache.folder.glob(f"{name}-*.onnx"):
            try:
                if checksum(file) == file.stem.rpartition("-")[2]:
                    os.utime(file)
                    return file
                log.warning("a kept graph is damaged, and is dropped", extra={"file": file.name})
                file.unlink(missing_ok=True)
            except OSError:
                log.warning("a kept graph cannot be read", extra={"file": file.name}, exc_info=True)
        return None

    def _fresh(self, name: str, options: Callable[[], Any], config: InferenceConfig) -> Any:
        aside = self._aside(name)
        if aside is None:
            return providers.load(self._graph, options(), config)
        given = options()
        given.optimized_model_filepath = str(aside)
        try:
            inner = providers.load(self._graph, given, config)
            self._keep(name, aside, inner)
        except (SetupError, OSError):
            log.warning("an optimised graph cannot be kept", extra={"file": aside.name}, exc_info=True)
            inner = providers.load(self._graph, options(), config)
        finally:
            aside.unlink(missing_ok=True)
        return inner

    def _aside(self, name: str) -> Path | None:
        """Where to write the optimised graph first; None where that is not worth it or not possible."""
        folder = self._cache.folder
        try:
            if self._graph.stat().st_size > SOURCE_BYTES_MAX or (folder / f"{name}.not").exists():
                return None
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError:
            _say_once(str(folder))
            return None
        return folder / f".aside-{secrets.token_hex(8)}.onnx"

    def _keep(self, name: str, aside: Path, inner: Any) -> None:
        size = aside.stat().st_size
        if not worth(providers.nodes(inner), size) or size > self._cache.bytes_max:
            self._mark(name)
            return
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.rename(aside.with_name(f"{name}-{checksum(aside)}.onnx"))
        self._cache.prune()

    def _mark(self, name: str) -> None:
        """Say that this graph is not to be kept."""
        for file in self._cache.folder.glob(f"{name}-*.onnx"):
            file.unlink(missing_ok=True)
        (self._cache.folder / f"{name}.not").touch()


def worth(nodes: int, size: int) -> bool:
    """Whether a graph opens faster from ``size`` bytes on disk than by optimising it again."""
    return nodes >= NODES_MIN and size <= nodes * NODE_BYTES_MAX


def checksum(file: Path) -> str:
    """CRC-32 of the file in hex: against accidents, at a fortieth of the cost of SHA-256."""
    with file.open("rb") as opened:
        if not file.stat().st_size:
            return ""
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return f"{zlib.crc32(data):08x}"


@functools.cache
def processor() -> str:
    """What the optimiser may have chosen layouts by."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()} {flags}"


@functools.cache
def _say_once(folder: str) -> None:
    log.warning("optimised graphs are not kept: the folder cannot be made", extra={"folder": folder})
