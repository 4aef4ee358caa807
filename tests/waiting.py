"""Bounded waits for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

STEP_S = 0.02


def wait_until(predicate: Callable[[], object], timeout_s: float, what: str = "") -> None:
    """Return as soon as ``predicate()`` is true; AssertionError after ``timeout_s``, naming ``what``."""
    give_up_at = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < give_up_at, f"not within {timeout_s:g} s: {what or predicate}"
        time.sleep(STEP_S)
