"""One process of `penstock up`: its command, its log, its session, its end.

A child has a session of its own, so a terminal's Ctrl-C reaches the supervisor only, and whatever a child
starts can be killed as one group. The kernel kills it when the supervisor dies in any way, even by
``kill -9`` (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""``linux/prctl.h``: the signal that a process gets when its parent dies."""
LOG_BYTES_MAX = 20 * 1024 * 1024
TAIL_BYTES = 8192


def last_line(log: str) -> str:
    """Why a process ended, as far as its log tells."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "its log is empty"


@dataclass(frozen=True)
class Role:
    """What a child is to do, and how it is started and ended.

    ``needs`` names roles that must answer before this one starts; ``answers`` tells whether this one does (a
    role without it counts as answering while it runs). A ``vital`` role must answer within ``start_s`` at its
    first start, without dying; another that is late is only said to be. ``drain_s`` bounds SIGTERM until
    SIGKILL. A ``replaced`` role is started again however often a signal or its own wish (exit 75) ended it: a job may
    do that to a worker several times, and the other jobs still want one. ``complaint`` finds the telling
    line in its log.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    answers: Callable[[], bool] | None = None
    vital: bool = False
    start_s: float = 60.0
    drain_s: float = 10.0
    replaced: bool = False
    complaint: Callable[[str], str] = last_line


class Child:
    """A started process of a role."""

    def __init__(self, role: Role, log: Path) -> None:
        self.role = role
        self.log = log
        self._log_from = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                role.command,
                env={**os.environ, **role.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=tether(),  # noqa: PLW1509 -- the supervisor has one thread
            )
        self.pid = self._process.pid

    def ended(self) -> int | None:
        """Exit code (negative: the signal that ended it), or None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to end; its own children are its business."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        """End it at once with all that it started, and what it left behind if it has ended already."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM of a zombie's group
            os.killpg(self.pid, signal.SIGKILL)

    def complaint(self) -> str:
        """Read the telling line of its log, from its own start on."""
        with self.log.open("rb") as log:
            log.seek(max(self._log_from, self.log.stat().st_size - TAIL_BYTES))
            return self.role.complaint(log.read().decode(errors="replace"))


def tether() -> Callable[[], None] | None:
    """Make a ``preexec_fn`` that ties a child's life to this process's; None where the kernel cannot."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def tie() -> None:
        libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)

    return tie


def rotate(log: Path) -> None:
    """Set a large log aside, in place of the one set aside before."""
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(log.suffix + ".1"))
