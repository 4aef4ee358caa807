"""How far two clocks are apart, as far as one question and its answer can tell.

Deadlines and leases are judged on the store's clock. A process whose own clock is far from it still stamps logs and
metrics wrongly, and one of the two is not to be trusted: beyond ``SKEW_S_MAX`` it does not serve.
"""

from __future__ import annotations

SKEW_S_MAX = 2.0


def skew_s(store_s: float, asked_s: float, answered_s: float) -> float:
    """The store's instant less ours, at the least: 0 if it may lie between our two (all Unix seconds)."""
    return max(0.0, store_s - answered_s) or min(0.0, store_s - asked_s)
