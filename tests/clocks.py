"""A process whose clock is wrong: environments to start it with.

Only the time of day is shifted, as Python sees it; monotonic clocks, on which waits and timeouts run, stay true. Not
by libfaketime: where that leaves the monotonic clock alone, ``time.sleep`` fails (EINVAL), and a gateway crawls.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from tests import wrong_clock


class Clock:
    """A clock that may be set while the processes that were started with it run."""

    def __init__(self, file: Path, offset_s: int = 0) -> None:
        self._file = file
        self.set(offset_s)

    def set(self, offset_s: int) -> Self:
        """Let it be wrong by so much: those who read it know within a fraction of a second."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(offset_s))
        fresh.rename(self._file)  # nobody reads half of it
        return self

    @property
    def environment(self) -> dict[str, str]:
        """What a process is started with so that it reads this clock."""
        folders = [wrong_clock.__path__[0], os.environ.get("PYTHONPATH", "")]
        return {"PYTHONPATH": os.pathsep.join(filter(None, folders)), "WRONG_CLOCK": str(self._file)}
