"""The store's clock, as a gateway knows it: an offset learnt from the store, carried on by the monotonic clock.

Deadlines and ids are judged on it, so that gateways with wrong clocks agree with their workers.
"""

from __future__ import annotations

import time

from jobs.clock import SKEW_S_MAX, skew_s


class StoreClock:
    """Milliseconds on the store's clock."""

    def __init__(self) -> None:
        self._offset_ms = 0.0
        self._skew_s = 0.0

    @property
    def skewed(self) -> bool:
        """Whether this machine's clock and the store's were too far apart when they were compared last."""
        return abs(self._skew_s) > SKEW_S_MAX

    def learn(self, store_ms: float, asked_s: float, answered_s: float) -> None:
        """Take over the store's instant, read between two instants of ``time.monotonic``, just now."""
        self._offset_ms = store_ms - (asked_s + answered_s) / 2 * 1000
        now_s = time.time()
        self._skew_s = skew_s(store_ms / 1000, now_s - (answered_s - asked_s), now_s)

    def now_ms(self) -> int:
        """Unix milliseconds."""
        return int(time.monotonic() * 1000 + self._offset_ms)
