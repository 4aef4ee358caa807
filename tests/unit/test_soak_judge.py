"""What the soak is judged by, on made-up series: it must see what grows, and be silent about what only wavers."""

from __future__ import annotations

import os
import socket
from collections import Counter
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.servers import LOOPBACK
from tests.soak import judge
from tests.soak.judge import Level
from tests.soak.keys import PAGE, allowed_for_ever
from tests.soak.mix import SHAPES, SHARES, STRETCH, Mix
from tests.soak.vitals import look_at

MB = 1e6
ARENA = 2.0**20
HELD = 90 * MB
BALLAST_BYTES = 16_000_000


def _at(seconds: float, every_s: float = 1.0) -> NDArray[np.float64]:
    return np.arange(0.0, seconds, every_s)


def _wavering(at: NDArray[np.float64], by: float = 0.05 * MB) -> NDArray[np.float64]:
    return HELD + np.random.default_rng(1).normal(0, by, len(at))


def _steps(at: NDArray[np.float64], *when: float, size: float = ARENA) -> NDArray[np.float64]:
    return HELD + size * np.searchsorted(np.sort(when), at, side="right").astype(float)


def test_the_slope_is_not_moved_by_outliers() -> None:
    at = _at(100)
    held = 5.0 * at
    held[[3, 40, 77]] += 1e9
    assert judge.theil_sen(at, held) == pytest.approx(5.0, rel=0.02)


@pytest.mark.parametrize(("seconds", "every_s"), [(24, 0.5), (400, 1.0), (2400, 5.0)])
def test_one_kilobyte_a_job_is_a_leak(seconds: float, every_s: float) -> None:
    at = _at(seconds, every_s)
    found = judge.growth(at, _wavering(at) + 1024 * 200 * at)
    assert found.is_leak
    assert found.low_bytes_s < 1024 * 200 < found.high_bytes_s


def test_memory_that_wavers_is_no_leak() -> None:
    at = _at(400)
    assert not judge.growth(at, _wavering(at, MB)).is_leak


@pytest.mark.parametrize("when", [(200,), (50, 300), (30, 170, 180), (10, 20, 390)])
def test_a_few_steps_of_an_allocator_are_no_leak(when: tuple[float, ...]) -> None:
    at = _at(400)
    assert not judge.growth(at, _steps(at, *when)).is_leak


def test_a_saw_tooth_is_no_leak() -> None:
    at = _at(400)
    assert not judge.growth(at, HELD + 8 * MB * (at % 130) / 130).is_leak


def test_steps_that_come_in_every_block_are_a_leak() -> None:
    at = _at(400)
    assert judge.growth(at, _steps(at, *range(0, 400, 15))).is_leak


def test_one_jump_above_what_a_day_may_bring_is_a_leak() -> None:
    at = _at(400)
    assert judge.growth(at, _steps(at, 200, size=25 * MB)).is_leak
    assert not judge.growth(at, _steps(at, 200, size=15 * MB)).is_leak


def test_a_large_process_may_grow_by_its_share() -> None:
    at = _at(400)
    assert not judge.growth(at, 1e9 + _steps(at, 200, size=45 * MB)).is_leak


def test_what_could_hide_is_told_truly() -> None:
    at = _at(400)
    quiet = judge.growth(at, _wavering(at))
    more = judge.growth(at, _wavering(at) + 1.5 * quiet.unnoticed_bytes_s * at)
    assert more.is_leak
    assert not judge.growth(at, _wavering(at) + 0.3 * quiet.unnoticed_bytes_s * at).is_leak


def test_memory_is_not_judged_by_a_handful_of_samples() -> None:
    with pytest.raises(AssertionError, match="too few"):
        judge.growth([1.0, 2.0], [HELD, HELD])


@pytest.mark.parametrize(
    ("before", "after", "flat"), [(25, 25, True), (25, 27, True), (25, 28, False), (100, 105, True), (30, 3, True)]
)
def test_a_count_is_flat_where_it_rises_by_no_more_than_two_or_a_twentieth(
    before: float, after: float, *, flat: bool
) -> None:
    assert Level(before, after).is_flat is flat


def test_a_count_that_wavers_with_the_load_is_flat() -> None:
    at = _at(400)
    counts = 25.0 + np.random.default_rng(3).poisson(3, len(at))
    assert judge.trend(at, counts).is_flat
    assert judge.trend(at, counts + 12 * ((at > 120) & (at < 200))).is_flat


@pytest.mark.parametrize("seconds", [30, 400])
def test_a_descriptor_that_leaks_now_and_then_is_no_flat_count(seconds: float) -> None:
    at = _at(seconds)
    wavering = np.random.default_rng(3).poisson(1, len(at))
    assert not judge.trend(at, 25 + wavering + np.floor(10 * at / seconds)).is_flat


def _p95s(middle_s: float, windows: int, seed: int) -> NDArray[np.float64]:
    return middle_s * np.random.default_rng(seed).lognormal(0, 0.1, windows)


def test_latency_that_stays_is_not_worse_though_one_window_was_bad() -> None:
    last = _p95s(0.1, 20, 2)
    last[4] = 3.0
    assert not judge.latency(_p95s(0.1, 10, 1), last).is_worse


def test_latency_that_rose_by_half_is_worse() -> None:
    found = judge.latency(_p95s(0.1, 10, 1), _p95s(0.15, 20, 2))
    assert found.is_worse
    assert found.low < found.ratio


def test_latency_is_not_judged_by_few_windows() -> None:
    with pytest.raises(AssertionError, match="too few"):
        judge.latency([0.1] * 4, [0.1] * 20)


def test_windows_are_whole_and_hold_a_job() -> None:
    at = [0.0, 0.5, 1.0, 3.2, 3.9, 4.5]
    seconds = [1.0, 3.0, 7.0, 2.0, 2.0, 9.0]
    assert judge.window_p95s(at, seconds, 0.0, 4.4, 1.0) == pytest.approx([2.9, 7.0, 2.0])


def test_keys_that_are_new_grown_or_for_ever_are_told() -> None:
    before = {"models": 3, "cost:a/1": 3, "seen": 6}
    after = {"models": 3, "cost:a/1": 2, "seen": 7, "left:1": 1}
    told = judge.key_breaches(before, after, ["left:1"])
    assert told == ["new: left:1", "grown from 6 to 7: seen", "without TTL: left:1"]
    assert judge.key_breaches(before, {"models": 3}, []) == []


def test_the_pace_of_a_line_may_fill_up_to_its_form_and_no_further() -> None:
    name = "pace:default/interactive/m/1"
    assert judge.key_breaches({name: 12}, {name: 18}, []) == []
    assert judge.key_breaches({name: 12}, {name: 19}, []) == [f"grown from 12 to 19: {name}"]
    assert judge.key_breaches({name: 19}, {name: 19}, []) == []


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("sequence", True),
        ("cost:digits/1", True),
        ("broker:_kombu.binding.penstock", True),
        ("workers-seen", True),
        ("slots:default", True),
        ("job:0123", False),
        ("microbatch:7", False),
        ("deadlines", False),
        ("sweeper", False),
        ("line:default/interactive/digits/1", False),
        ("left:50", False),
    ],
)
def test_the_page_says_which_keys_may_live_for_ever(name: str, *, allowed: bool) -> None:
    patterns = allowed_for_ever(PAGE.read_text())
    assert any(each.fullmatch(name) for each in patterns) is allowed


def test_a_hundred_jobs_have_the_shares_of_the_mix_and_all_shapes_come() -> None:
    mix = Mix()
    jobs = [mix.job(number) for number in range(1_000)]
    assert Counter(job.kind for job in jobs[:100]) == SHARES
    stretched = [job.request.expected for job in jobs if job.request.path.endswith(STRETCH)]
    assert len({expected.shape for expected in stretched if expected is not None}) == SHAPES


def test_a_process_is_seen_as_it_is() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        before = look_at(os.getpid(), port)
        ballast = mmap(-1, BALLAST_BYTES, flags=MAP_PRIVATE | MAP_ANONYMOUS)  # fresh, unlike what an allocator has
        ballast.write(b"x" * BALLAST_BYTES)
        with socket.create_connection((LOOPBACK, port)), server.accept()[0]:
            after = look_at(os.getpid(), port)
        ballast.close()
        assert after.own_bytes - before.own_bytes >= BALLAST_BYTES * 0.9
        assert (after.clients - before.clients, after.descriptors - before.descriptors) == (1, 1)
        assert after.threads >= 1
