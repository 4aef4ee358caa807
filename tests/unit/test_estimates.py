"""When a job will have ended: from the pace of its line, corrected by how earlier estimates held."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.estimates import HOPS_S, SERVICE_S, SIZES_S, START_P90, Estimate, Pace, Told, estimate, pace_of, verdict

PLAIN = tuple((1.0, 2.0) for _ in range(len(SIZES_S) + 1))
COUNTS = st.floats(0, 1e6)


def _pace(jobs_per_s: float | None = 10.0, factors: tuple[tuple[float, float], ...] = PLAIN) -> Pace:
    return Pace(jobs_per_s, 0.5, 1.0, factors)


# --- The pace of a line ---


def test_a_line_moves_as_fast_as_was_measured_by_all_slots_that_serve_it_now() -> None:
    fields = {"n": 300.0, "t": 6_000.0}  # 300 jobs in 6,000 slot-milliseconds

    assert pace_of(fields, [], slots=1, jobs_max=64, slice_us=50_000).jobs_per_s == 50.0
    assert pace_of(fields, [], slots=4, jobs_max=64, slice_us=50_000).jobs_per_s == 200.0


def test_a_line_that_was_never_full_moves_as_the_costs_of_its_stages_say() -> None:
    pace = pace_of({}, [1_000, 8_000, 1_000], slots=4, jobs_max=64, slice_us=40_000)

    assert pace.jobs_per_s == pytest.approx(5 / (5 * 0.010 + HOPS_S))  # five jobs of 8 ms in a slice of 40 ms


def test_a_micro_batch_is_never_taken_for_less_than_one_job_or_more_than_it_may_hold() -> None:
    slow = pace_of({}, [2_000_000], slots=1, jobs_max=64, slice_us=50_000)
    free = pace_of({}, [0, 0, 0], slots=1, jobs_max=64, slice_us=50_000)

    assert slow.jobs_per_s == pytest.approx(1 / (2 + HOPS_S))
    assert free.jobs_per_s == pytest.approx(64 / HOPS_S)


@pytest.mark.parametrize(
    ("fields", "costs", "slots"),
    [({"n": 300.0, "t": 6_000.0}, [1_000.0], 0), ({}, [], 4), ({"n": 0.0, "t": 6_000.0}, [], 0)],
    ids=["nobody works", "it never ran", "neither"],
)
def test_a_pace_that_cannot_be_known_is_none(fields: dict[str, float], costs: list[float], slots: int) -> None:
    pace = pace_of(fields, costs, slots, jobs_max=64, slice_us=50_000)

    assert pace.jobs_per_s is None
    assert estimate(0, pace) is None


def test_a_line_in_which_nothing_ended_gives_no_estimate() -> None:
    pace = pace_of({"n": 0.0, "t": 6_000.0}, [], slots=2, jobs_max=64, slice_us=50_000)

    assert estimate(3, pace) is None


def test_what_was_not_measured_has_defaults() -> None:
    pace = pace_of({}, [], slots=1, jobs_max=64, slice_us=50_000)

    assert (pace.service_s, pace.fill) == (SERVICE_S, 0.0)
    assert [each for pair in pace.factors for each in pair] == pytest.approx([1.0, 2.0] * (len(SIZES_S) + 1))


def test_service_is_told_in_seconds_and_fill_in_jobs() -> None:
    pace = pace_of({"service": 250.0, "fill": 12.5}, [], slots=1, jobs_max=64, slice_us=50_000)

    assert (pace.service_s, pace.fill) == (0.25, 12.5)


def test_the_factors_are_logarithms_in_the_store_one_pair_for_each_size() -> None:
    fields = {"f50:1": math.log(3), "f90:1": math.log(5), "f50:2": math.log(3), "f90:5": 0.0}

    pace = pace_of(fields, [], 1, 64, 50_000)

    assert list(pace.factors[1]) == pytest.approx([3, 15])  # the 90th percentile stands on the median
    assert list(pace.factors[2]) == pytest.approx([3, 3 * math.exp(START_P90)])
    assert list(pace.factors[5]) == pytest.approx([1, 1])
    assert list(pace.factors[0]) == pytest.approx([1, 2])


# --- The estimate of a job ---


def test_a_job_has_ended_when_all_before_it_have_and_its_own_service_is_over() -> None:
    assert estimate(10, _pace()) == Estimate(3, 1.5, 1.5, 3.0)


def test_a_job_with_none_before_it_takes_the_service() -> None:
    assert estimate(0, _pace()) == Estimate(2, 0.5, 0.5, 1.0)


@pytest.mark.parametrize(
    ("raw_s", "size"), [(0.0, 0), (0.049, 0), (0.05, 1), (0.25, 2), (1, 3), (5, 4), (30, 5), (1e9, 5)]
)
def test_the_size_of_an_estimate_says_which_factors_make_it(raw_s: float, size: int) -> None:
    factors = tuple((1.0 + each, 10.0 + each) for each in range(len(SIZES_S) + 1))

    found = estimate(raw_s, Pace(1.0, 0.0, 1.0, factors))

    assert found == Estimate(size, raw_s, raw_s * (1 + size), raw_s * (10 + size))


@given(COUNTS, st.floats(-5, 5), st.floats(0, 5))
def test_nine_in_ten_never_end_before_half_do(ahead: float, f50: float, f90: float) -> None:
    """The store keeps no ``f90`` below 0 (tests/contract/test_pace.py)."""
    kept = {f"f{share}:{size}": f for size in range(len(PLAIN)) for share, f in ((50, f50), (90, f90))}

    found = estimate(ahead, pace_of({"n": 10.0, "t": 1_000.0, **kept}, [], 1, 64, 50_000))

    assert found is not None
    assert found.p90_finish_in_s >= found.finish_in_s >= 0


@given(COUNTS, COUNTS, st.floats(0.1, 10))
def test_who_has_more_before_it_ends_later(one: float, other: float, factor: float) -> None:
    few, many = (estimate(each, _pace(factors=((factor, 2 * factor),) * len(PLAIN))) for each in sorted((one, other)))

    assert few is not None
    assert many is not None
    assert few.finish_in_s <= many.finish_in_s
    assert few.p90_finish_in_s <= many.p90_finish_in_s


@given(COUNTS, st.floats(0.001, 1e6), st.floats(1, 100))
def test_a_faster_line_ends_a_job_no_later(ahead: float, jobs_per_s: float, times: float) -> None:
    slow, fast = estimate(ahead, _pace(jobs_per_s)), estimate(ahead, _pace(jobs_per_s * times))

    assert slow is not None
    assert fast is not None
    assert fast.finish_in_s <= slow.finish_in_s


def test_a_head_keeps_an_estimate_in_whole_milliseconds() -> None:
    assert Estimate(3, 0.9999, 1.2345, 2.0).told() == Told(size=3, raw_ms=999, median_ms=1_234, p90_ms=2_000)


# --- How estimates held ---

TOLD = Told(size=2, raw_ms=100, median_ms=300, p90_ms=400)


def test_no_jobs_have_no_verdict() -> None:
    assert verdict([]) == ""


def test_each_job_says_by_its_size_what_it_took_by_the_raw_estimate_and_whether_that_was_above_the_p90() -> None:
    small = Told(size=0, raw_ms=10, median_ms=10, p90_ms=20)

    assert verdict([(TOLD, 50), (small, 15), (TOLD, 401)]) == "2:-0.6931:0 0:0.4055:0 2:1.3888:1"


@pytest.mark.parametrize(("took_ms", "held"), [(399, "2:1.3838:0"), (400, "2:1.3863:0"), (401, "2:1.3888:1")])
def test_a_job_that_takes_exactly_its_90th_percentile_is_not_above_it(took_ms: int, held: str) -> None:
    assert verdict([(TOLD, took_ms)]) == held


def test_the_median_that_a_job_was_told_does_not_matter() -> None:
    other = Told(TOLD.size, TOLD.raw_ms, 3 * TOLD.median_ms, TOLD.p90_ms)

    assert verdict([(other, 250)]) == verdict([(TOLD, 250)])


@pytest.mark.parametrize(
    ("raw_ms", "took_ms", "held"), [(0, 0, "0:0.0000:0"), (0, 100, "0:4.6052:1"), (100, -5, "0:-4.6052:0")]
)
def test_what_took_no_time_or_less_by_another_clock_counts_as_a_millisecond(
    raw_ms: int, took_ms: int, held: str
) -> None:
    assert verdict([(Told(0, raw_ms, raw_ms, raw_ms), took_ms)]) == held
