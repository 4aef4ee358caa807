"""Retry policy as pure functions: Celery's own retries are off, this is the one counter."""

from __future__ import annotations

from jobs.models import RetryPolicy


def backoff_s(attempt: int, policy: RetryPolicy, draw: float) -> float:
    """Seconds to wait after failed ``attempt`` (from 1): full jitter below a doubling, capped bound.

    ``draw`` is uniform in [0, 1). Full jitter: Brooker, "Exponential Backoff And Jitter", AWS, 2015.
    """
    doublings = min(attempt - 1, 32)
    return draw * min(policy.backoff_max_s, policy.backoff_base_s * 2.0**doublings)
