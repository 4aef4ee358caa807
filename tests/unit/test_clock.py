"""How far two clocks are apart: what cannot be told is not held against anybody."""

from __future__ import annotations

import time

import pytest

from api.clock import StoreClock
from jobs.clock import skew_s


@pytest.mark.parametrize(
    ("store_s", "expected_s"),
    [(100.0, 0.0), (105.0, 0.0), (110.0, 0.0), (113.0, 3.0), (97.0, -3.0)],
)
def test_the_skew_is_the_distance_from_the_time_of_the_question(store_s: float, expected_s: float) -> None:
    assert skew_s(store_s, 100.0, 110.0) == pytest.approx(expected_s)


@pytest.mark.parametrize(("ahead_s", "skewed"), [(0.0, False), (1.5, False), (3600.0, True), (-3600.0, True)])
def test_a_gateway_knows_that_its_clock_is_wrong(ahead_s: float, *, skewed: bool) -> None:
    clock = StoreClock()
    now_s = time.monotonic()

    clock.learn((time.time() + ahead_s) * 1000, now_s, now_s)

    assert clock.skewed == skewed
    assert clock.now_ms() == pytest.approx((time.time() + ahead_s) * 1000, abs=500)
