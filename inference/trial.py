"""A first load where nothing can be hurt: a throw-away child loads, warms and runs a graph under limits.

``trial`` is the parent's side and never imports ONNX Runtime, which a crafted graph can crash or hang. The
child is ``python -m inference.trial <version folder> [options [timeout_s [library...]]]``, the options being
``[inference]`` of ``model.toml`` as JSON, and prints one JSON line. It runs on the CPU only: a GPU would reserve more
address space than any sensible limit.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import IO

import msgspec
from msgspec.structs import replace

from inference.external import check_external
from inference.files import digest_of, digests, paths, without_root
from inference.options import on_cpu
from inference.repository import GRAPH, read_config
from jobs.errors import SetupError
from jobs.models import InferenceConfig, ModelConfig, ModelRecord, Signature

log = logging.getLogger(__name__)

_MEMORY_BYTES = 4 * 1024**3
"""Address space of the child, besides four times the folder's files: an empty session maps about 1 GB."""
_OUTPUT_BYTES = 1024 * 1024
PR_SET_PDEATHSIG = 1
"""``linux/prctl.h``: the signal that a process gets when its parent dies."""
_COMMAND = (sys.executable, "-m", "inference.trial")
_ROOT = Path(__file__).resolve().parents[1]


class Verdict(msgspec.Struct, frozen=True):
    """What the child prints: a signature, or why there is none."""

    signature: Signature | None = None
    reason: str = ""


def trial(folder: Path, config: ModelConfig, timeout_s: float, libraries: Sequence[Path] = ()) -> ModelRecord:
    """Try ``<models>/<name>/<version>``: the record is ``ready``, or ``broken`` with a reason.

    ``libraries`` are those of its custom operators; the child loads them.
    """
    record = ModelRecord(folder.parent.name, int(folder.name), "broken", config)
    models = folder.parents[1]
    try:
        files = digests(folder, models)
        if GRAPH not in files:
            raise SetupError(f"{folder / GRAPH}: no such file")  # noqa: TRY301 - as the others are
    except SetupError as error:
        return replace(record, reason=without_root(error, models))
    record = replace(record, digest=files[GRAPH], files=files, files_digest=digest_of(files))
    verdict = _ask(folder, config.inference, timeout_s, libraries)
    if verdict.signature is None:
        return replace(record, reason=verdict.reason)
    return replace(record, state="ready", signature=verdict.signature)


def _ask(folder: Path, config: InferenceConfig, timeout_s: float, libraries: Sequence[Path]) -> Verdict:
    """Run the child to its end and read what it says; nothing that it does can raise here."""
    told = [str(folder.resolve()), msgspec.json.encode(config).decode(), str(timeout_s)]
    command = [*_COMMAND, *told, *map(str, libraries)]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            done = subprocess.run(
                command,
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Verdict(reason=f"the trial load took longer than {timeout_s:g} s")
        verdict = _verdict(output, done.returncode)
        if verdict.signature is None:
            log.warning("trial load of %s: %s\n%s", folder, verdict.reason, _tail(errors))
        return verdict


def _verdict(output: IO[bytes], returncode: int) -> Verdict:
    if returncode < 0:
        return Verdict(reason=f"the trial load crashed (signal {-returncode})")
    output.seek(0)
    try:
        return msgspec.json.decode(output.read(_OUTPUT_BYTES), type=Verdict)
    except msgspec.DecodeError:
        return Verdict(reason=f"the trial load ended with status {returncode} and no verdict")


def _tail(errors: IO[bytes]) -> str:
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2_000))
    return errors.read().decode("utf-8", "replace")


# --- The child ---


def _tether() -> None:
    """Die with the parent, however that ends (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _limit(folder: Path, timeout_s: float) -> None:
    """Bound address space, processor time, file sizes and core dumps of this process."""
    files = sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
    memory = _MEMORY_BYTES + 4 * files
    seconds = max(1, round(timeout_s * (os.cpu_count() or 1)))
    for what, bound in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, _OUTPUT_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (bound, bound))


def _load(folder: Path, config: InferenceConfig, libraries: Sequence[Path]) -> Verdict:
    """Load, warm and run; the import stands here so that the parent's process stays free of ONNX Runtime."""
    try:
        check_external(folder, GRAPH, paths(folder, folder.parents[1]))
        session = import_module("inference.session")
        opened = session.Session.open(folder / GRAPH, threads=1, config=on_cpu(config), custom_ops=libraries)
        opened.warm(config)
    except SetupError as error:
        return Verdict(reason=without_root(error, folder.parents[1]))
    return Verdict(opened.signature)


def main(arguments: list[str]) -> int:
    """``<version folder> [options] [timeout_s] [library...]``; 0 where the graph is sound, 1 where it is not."""
    _tether()
    folder = Path(arguments[0])
    given = len(arguments) > 1
    config = msgspec.json.decode(arguments[1], type=InferenceConfig) if given else read_config(folder).inference
    _limit(folder, float(arguments[2]) if len(arguments) > 2 else 120.0)  # noqa: PLR2004
    verdict = _load(folder, config, [Path(each) for each in arguments[3:]])
    sys.stdout.buffer.write(msgspec.json.encode(verdict) + b"\n")
    return 0 if verdict.signature else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
