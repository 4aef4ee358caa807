"""The store's clock, as a gateway knows it: an offset learnt from the store, carried on by the monotonic clock.

Deadlines and ids are judged on it, so that gateways with wrong clocks agree with their workers.
"""

from __future__ import annotations

import time


class StoreClock:
    """Milliseconds on the store's clock."""

    def __init__(self) -> None:
        self._offset_ms = 0.0

    def learn(self, store_ms: float, asked_s: float, answered_s: float) -> None:
        """Take over the store's instant, read between two instants of ``time.monotonic``."""
        self._offset_ms = store_ms - (asked_s + answered_s) / 2 * 1000

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return int(time.monotonic() * 1000 + self._offset_ms)
