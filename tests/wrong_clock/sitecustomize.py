"""Python imports this at its start where its folder is on PYTHONPATH: the time of day is off by what a file says."""

from __future__ import annotations

import os
import time
from pathlib import Path

READ_EVERY_S = 0.1

_file = Path(os.environ["WRONG_CLOCK"])
_true_s, _true_ns = time.time, time.time_ns
_offset_s, _read_at = 0, float("-inf")


def _offset() -> int:
    global _offset_s, _read_at
    now = time.monotonic()
    if now - _read_at > READ_EVERY_S:
        _offset_s, _read_at = int(_file.read_text()), now
    return _offset_s


def _wrong_s() -> float:
    return _true_s() + _offset()


def _wrong_ns() -> int:
    return _true_ns() + _offset() * 1_000_000_000


time.time, time.time_ns = _wrong_s, _wrong_ns
