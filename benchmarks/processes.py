"""Start, watch and end the processes of a run, and read the CPU seconds that they used."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock.child import tether

STOP_S = 20.0
"""How long a process may take to end by itself."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """The run cannot go on; the message says why, in one line or with the end of a log."""


@dataclass(frozen=True)
class Process:
    """A process of ours with a session of its own, so that its children end with it."""

    role: str
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.popen.poll() is None

    def tail(self, lines: int = 20) -> str:
        """Read the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """SIGTERM to the process; SIGKILL to what is left of its group."""
        if self.alive:
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()


def start(role: str, command: Sequence[str], folder: Path, log: Path, env: Mapping[str, str]) -> Process:
    """Start ``command`` in ``folder`` with ``env`` added to ours; its output goes to ``log``."""
    with log.open("ab") as out:
        popen = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=tether(),  # noqa: PLW1509 -- the runner has one thread
        )
    return Process(role, popen, log)


def cpu_seconds(roots: Mapping[str, int]) -> dict[str, float]:
    """User and system seconds used so far by each role: by the process of that id and its descendants."""
    parents, ticks = _read_proc()
    return {
        role: sum(ticks.get(pid, 0) for pid in _descendants(root, parents)) / TICKS_PER_S
        for role, root in roots.items()
    }


def _read_proc() -> tuple[dict[int, int], dict[int, int]]:
    """Parent and CPU ticks (children that have ended included) of every process."""
    parents, ticks = {}, {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = sum(int(field) for field in fields[11:15])
    return parents, ticks


def _descendants(root: int, parents: Mapping[int, int]) -> set[int]:
    tree = {root}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return tree
