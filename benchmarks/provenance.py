"""Where and when a result was measured: commit, versions, machine."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.processes import BenchError
from benchmarks.sides import ROOT
from penstock.embedded import find_server

PACKAGES = ("celery", "kombu", "redis", "fastapi", "uvicorn", "onnxruntime")


def provenance() -> dict[str, Any]:
    """Collect what a reader needs to judge the figures."""
    return {
        "commit": git("rev-parse", "HEAD"),
        "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
            "redis-server": _second_word([find_server(), "--version"]).removeprefix("v="),
            "rabbitmq-server": _first_line(["dpkg-query", "-W", "-f", "${Version}", "rabbitmq-server"]),
        },
    }


def git(*arguments: str) -> str:
    """Run a git command in the repository; its output."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """Check out ``revision``, for as long as the run lasts."""
    git("worktree", "add", "--detach", str(folder), revision)
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


def _first_line(command: Sequence[str]) -> str:
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    except FileNotFoundError:
        return "unknown"
    return lines[0] if lines else "unknown"


def _second_word(command: Sequence[str]) -> str:
    return next((word for word in _first_line(command).split() if word.startswith("v=")), "unknown")
