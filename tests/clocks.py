"""A process whose clock is wrong, by Debian's libfaketime: environments to start it with.

Only the time of day is shifted; monotonic clocks, on which waits and timeouts run, stay true.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import pytest

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


class Clock:
    """A clock that may be set while the processes that were started with it run."""

    def __init__(self, file: Path, offset_s: int = 0) -> None:
        if not LIBRARY.exists():
            pytest.skip("libfaketime is not installed (Debian: apt install faketime)")
        self._file = file
        self.set(offset_s)

    def set(self, offset_s: int) -> Self:
        """Let it be wrong by so much from now on."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{offset_s:+d}\n")
        fresh.rename(self._file)  # nobody reads half of it
        return self

    @property
    def environment(self) -> dict[str, str]:
        """What a process is started with so that it reads this clock."""
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
