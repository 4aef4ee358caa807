"""Backoff: full jitter under a bound that doubles up to a cap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.models import RetryPolicy
from jobs.retries import backoff_s

attempts = st.integers(1, 10_000)
draws = st.floats(0, 1, exclude_max=True)
seconds = st.floats(0, 86_400)
policies = st.builds(RetryPolicy, st.integers(1, 100), seconds, seconds)
ALMOST_ONE = 1 - 2**-53


@given(attempts, policies, draws)
def test_a_pause_is_between_nothing_and_the_cap(attempt: int, policy: RetryPolicy, draw: float) -> None:
    assert 0 <= backoff_s(attempt, policy, draw) <= policy.backoff_max_s


@given(attempts, policies, draws)
def test_the_bound_never_shrinks_from_attempt_to_attempt(attempt: int, policy: RetryPolicy, draw: float) -> None:
    assert backoff_s(attempt, policy, draw) <= backoff_s(attempt + 1, policy, draw)


@given(attempts, policies, draws, draws)
def test_a_higher_draw_is_no_shorter_pause(attempt: int, policy: RetryPolicy, one: float, two: float) -> None:
    low, high = sorted((one, two))

    assert backoff_s(attempt, policy, low) <= backoff_s(attempt, policy, high)


@given(attempts, policies)
def test_jitter_is_full(attempt: int, policy: RetryPolicy) -> None:
    bound = min(policy.backoff_max_s, policy.backoff_base_s * 2.0 ** min(attempt - 1, 32))

    assert backoff_s(attempt, policy, 0.0) == 0
    assert backoff_s(attempt, policy, ALMOST_ONE) == pytest.approx(bound)


def test_the_bound_doubles_until_the_cap() -> None:
    policy = RetryPolicy(backoff_base_s=0.5, backoff_max_s=3.0)

    assert [backoff_s(attempt, policy, 0.5) for attempt in (1, 2, 3, 4, 5)] == [0.25, 0.5, 1.0, 1.5, 1.5]


def test_a_huge_attempt_does_not_overflow() -> None:
    assert backoff_s(10**9, RetryPolicy(), 0.5) == 15.0
