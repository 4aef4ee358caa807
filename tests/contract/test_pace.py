"""How fast a line moves, as the scripts measure it, and what a gateway sees of it all. On the real servers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from random import Random
from typing import NamedTuple

import pytest

from jobs import commands
from jobs.commands import Handover, MicroBatch, Outcome, Taken
from jobs.estimates import SIZES_S, START_P90, Pace, Told, estimate, pace_of, verdict
from jobs.looks import LINES_MAX
from jobs.records import STAGES
from jobs.states import Event
from tests.contract.house import DOCUMENT, POOL, WINDOW, House

LINE = f"{POOL}/interactive/m/1"
COST_US = 20_000


def _pace(house: House, line: str = LINE) -> dict[str, float]:
    return house.look().lines[line].pace


def _last_end_was(house: House, ago_ms: int, line: str = LINE) -> None:
    house.client.hset(house.key(f"pace:{line}"), "last", house.now_ms - ago_ms)


def _made_ago(house: House, microbatch: MicroBatch, ms: int) -> None:
    house.client.hset(house.key(f"microbatch:{microbatch.number}"), "made", house.now_ms - ms)


# --- Rate, service, fill ---


def test_a_line_where_nobody_waited_has_no_rate(house: House) -> None:
    house.completed()
    _last_end_was(house, 1_000)
    house.completed()

    pace = _pace(house)

    assert (pace["n"], pace["t"], pace["busy"]) == (0, 0, 0)


def test_the_rate_is_measured_from_one_end_to_the_next_while_more_waits(house: House) -> None:
    house.bound(jobs_max=10)
    window = house.fill_window("m")
    house.submit(*house.jobs(60))
    (full,) = house.finish(window[0], COST_US).publish  # two jobs, as the cost allows
    house.finish(window[1], COST_US)
    _last_end_was(house, 1_000)
    before = _pace(house)

    house.finish(full, COST_US)

    pace = _pace(house)
    assert before["busy"] == 1
    assert 2.8 < pace["n"] < 3.0  # the one before fades
    assert WINDOW * 1_000 <= pace["t"] < WINDOW * 1_200
    seen = house.look().lines[LINE]
    often = {"n": pace["n"] * 10, "t": pace["t"] * 10}  # a rate needs some jobs before it is taken for one
    known = pace_of({**seen.pace, **often}, seen.costs_us, WINDOW, 64, 50_000)
    assert known.jobs_per_s == pytest.approx(pace["n"] / pace["t"] * WINDOW * 1_000)


def test_a_pause_counts_for_five_seconds_at_most(house: House) -> None:
    window = house.fill_window("m")
    house.submit(*house.jobs(60))
    house.finish(window[0], COST_US)
    _last_end_was(house, 3_600_000)

    house.finish(window[1], COST_US)

    assert _pace(house)["t"] == WINDOW * 5_000


def test_the_end_of_the_last_one_that_waited_begins_a_time_that_does_not_count(house: House) -> None:
    window = house.fill_window("m")
    house.submit(house.job())
    for each in window:
        house.finish(each, COST_US)
    assert _pace(house)["busy"] == 0
    before = _pace(house)["t"]
    _last_end_was(house, 4_000)

    house.completed()

    assert _pace(house)["t"] == before


def test_service_is_the_time_from_the_window_to_the_end_smoothed(house: House) -> None:
    for ms in (1_000, 2_000):
        _, microbatch = house.submit_one()
        _made_ago(house, microbatch, ms)
        house.finish(microbatch)

    assert _pace(house)["service"] == pytest.approx(1_200, abs=50)


def test_fill_is_the_number_of_jobs_in_a_micro_batch_smoothed(house: House) -> None:
    for count in (1, 6):
        (microbatch,) = house.submit(*house.jobs(count))
        house.finish(microbatch)

    assert _pace(house)["fill"] == 2.0


def test_each_line_has_a_pace_of_its_own(house: House) -> None:
    house.completed()
    house.completed(lane="bulk")
    house.completed(model="n")

    assert {LINE, f"{POOL}/bulk/m/1", f"{POOL}/interactive/n/1"} == set(house.look().lines)


# --- Factors of estimates ---


def _commit_last(house: House, taken: Taken, held: str) -> None:
    """The holder's last stage, at which estimates are seen to have held or not."""
    outcomes = [Outcome(member.task_id, Event.COMPLETE, DOCUMENT) for member in taken.members]
    house.store.run(commands.commit(taken, Handover(None, [], b"", b"stages", 10, held), outcomes))


def _runs(house: House, held: Iterable[str], model: str = "m") -> None:
    """One micro-batch after the other, each with its verdict on the estimates of its jobs."""
    for each in held:
        _commit_last(house, house.processing(model=model)[1], each)


def _held(size: int, log: float, above90: int, jobs: int = 10) -> str:
    """The verdict on so many jobs alike."""
    return " ".join([f"{size}:{log:.4f}:{above90}"] * jobs)


def _keep(house: House, **factors: float) -> None:
    """Put factors in the store as earlier micro-batches might have left them; their names are ``f50_1`` for f50:1."""
    kept = {name.replace("_", ":"): value for name, value in factors.items()}
    house.client.hset(house.key(f"pace:{LINE}"), mapping=kept)


RAW_S = 0.12
"""Of every estimate here: ten jobs ahead at 100 a second, and 20 ms from the window to the end."""


def _known(house: House) -> Pace:
    seen = house.look().lines[LINE]
    return pace_of({**seen.pace, "n": 100.0, "t": 1_000.0, "service": 20.0}, seen.costs_us, 1, 64, 50_000)


def test_estimates_that_were_exceeded_grow_and_ones_that_held_shrink(house: House) -> None:
    _runs(house, [_held(1, 2.0, 1), _held(2, -2.0, 0)])

    pace = _pace(house)

    assert pace["f50:1"] > 0 > pace["f50:2"]
    assert pace["f50:1"] == -pace["f50:2"]
    assert pace["f90:1"] > START_P90 > pace["f90:2"]
    assert pace["f90:1"] - START_P90 == pytest.approx(9 * (START_P90 - pace["f90:2"]), rel=1e-3)
    assert "f50:0" not in pace


def test_a_job_is_above_the_median_as_it_is_now_whatever_it_was_told(house: House) -> None:
    _runs(house, [""])
    _keep(house, f50_1=1.0, f50_2=1.0, f50_3=1.0)

    _runs(house, [f"{_held(1, 0.9, 0)} {_held(2, 1.1, 0)} {_held(3, 1.1, 0, jobs=5)} {_held(3, 0.9, 0, jobs=5)}"])

    pace = _pace(house)
    assert pace["f50:1"] < 1 < pace["f50:2"]
    assert pace["f50:3"] == 1


def test_the_90th_percentile_is_never_below_the_median(house: House) -> None:
    _runs(house, [""])
    _keep(house, f50_1=-1.0, f90_1=0.005)

    _runs(house, [_held(1, -2.0, 0)] * 3)

    median, p90 = _known(house).factors[1]
    assert _pace(house)["f90:1"] == 0
    assert p90 == median < 1
    _runs(house, [_held(1, 2.0, 1)])
    assert _pace(house)["f90:1"] > 0


def test_a_micro_batch_of_one_job_moves_them_less_than_one_of_many(house: House) -> None:
    _runs(house, [_held(1, 2.0, 1, jobs=1), _held(2, 2.0, 1, jobs=60)])

    pace = _pace(house)

    assert 0 < pace["f50:1"] < pace["f50:2"] / 3
    assert 0 < pace["f90:1"] - START_P90 < (pace["f90:2"] - START_P90) / 3


TURNS = 700
QUEUE = 20
"""Micro-batches that end between what a job is told and its end."""
SWING_MAX = 0.5
"""Between the highest and the lowest median factor, as logarithms. What chance does to eight jobs a micro-batch makes
0.3 of it; a median that followed what jobs were told would swing by more than 2, once they wait a whole queue."""
JOBS = 8


class _Course(NamedTuple):
    """Of the second half: the shares of jobs above what they were told, and how far the median's factor moved."""

    above50: float
    above90: float
    swing: float


def _course(house: House, slower: float, queue: int) -> _Course:
    """Jobs take about ``slower`` times the raw estimate, and were told theirs ``queue`` micro-batches before."""
    random = Random(7)  # noqa: S311 - no secret
    waiting: deque[Told] = deque()
    above50: list[bool] = []
    above90: list[bool] = []
    f50: list[float] = []
    _runs(house, [""])
    for turn in range(TURNS + queue):
        known = _known(house)
        found = estimate(10.0, known)
        assert found is not None
        waiting.append(found.told())
        if turn < queue:
            continue
        told = waiting.popleft()
        took_ms = [int(RAW_S * slower * random.lognormvariate(0, 0.5) * 1_000) for _ in range(JOBS)]
        _runs(house, [verdict((told, each) for each in took_ms)])
        if turn - queue >= TURNS // 2:
            above50 += [each > told.median_ms for each in took_ms]
            above90 += [each > told.p90_ms for each in took_ms]
            f50.append(math.log(known.factors[told.size][0]))
    return _Course(sum(above50) / len(above50), sum(above90) / len(above90), max(f50) - min(f50))


@pytest.mark.parametrize("queue", [0, QUEUE], ids=["told at once", "told a whole queue ago"])
@pytest.mark.parametrize("slower", [0.3, 1.0, 6.0])
def test_half_of_all_jobs_exceed_the_median_and_a_tenth_the_90th_percentile(
    house: House, slower: float, queue: int
) -> None:
    """Whatever the load is like, and however long ago jobs were told; and the median does not swing."""
    course = _course(house, slower, queue)

    assert course.above50 == pytest.approx(0.5, abs=0.05)
    assert course.above90 == pytest.approx(0.1, abs=0.03)
    assert course.swing < SWING_MAX


def test_estimates_of_other_sizes_have_factors_of_their_own(house: House) -> None:
    _runs(house, [f"{_held(0, 2.0, 1)} {_held(5, -2.0, 0)}"] * 5)

    factors = _known(house).factors

    assert len(factors) == len(SIZES_S) + 1
    assert factors[0] > factors[1] > factors[5]
    assert list(factors[1:5]) == [pytest.approx((1.0, 2.0))] * 4


def test_the_jobs_of_one_size_count_the_same_whatever_others_a_micro_batch_holds(house: House) -> None:
    apart = [f"{_held(1, 2.0, 1, jobs=3)} {_held(1, -2.0, 0, jobs=4)}"] * 5
    mixed = [f"1:2.0:1 3:9.0:1 1:2.0:1 1:2.0:1 {_held(4, -9.0, 0)} {_held(1, -2.0, 0, jobs=4)}"] * 5

    _runs(house, apart, "m")
    _runs(house, mixed, "n")

    one, other = _pace(house), _pace(house, f"{POOL}/interactive/n/1")
    assert (one["f50:1"], one["f90:1"]) == (other["f50:1"], other["f90:1"])
    assert "f50:3" not in one
    assert other["f50:3"] > 0 > other["f50:4"]


# --- What a gateway sees ---


def test_a_look_tells_everything_at_one_moment(house: House) -> None:
    house.beat("worker", slots=2)
    house.store.run(commands.starting("another", 60_000))
    house.pause("m")
    house.completed(model="n", cache="c", tenant="two")
    house.submit(*house.jobs(3))
    _, running = house.submit_one(model="n", lane="bulk", tenant="two")
    house.take(running)

    seen = house.look()

    assert abs(seen.now_ms - house.now_ms) < 1_000
    assert (seen.open_jobs, seen.open_by_tenant) == (4, {"acme": 3, "two": 1})
    assert (seen.paused, seen.starting, seen.cached, seen.evicted) == (frozenset({"m"}), 1, 1, 0)
    pool = seen.pools[POOL]
    assert (pool.workers, pool.slots, pool.live, pool.bulk) == (2, WINDOW + 2, 1, 1)
    line = seen.lines[LINE]
    assert (line.waiting, line.now, line.turns, line.pace) == (3, 0, {"acme": 3}, {})
    assert seen.lines[f"{POOL}/interactive/n/1"].costs_us == [10] * len(STAGES)


def test_a_look_at_an_empty_store_sees_nothing(house: House) -> None:
    seen = house.look()

    assert (seen.open_jobs, seen.open_by_tenant, seen.pools, seen.lines) == (0, {}, {}, {})


def test_a_worker_that_has_loaded_its_models_or_left_or_is_too_late_starts_no_more(house: House) -> None:
    for holder in ("ready", "left"):
        house.store.run(commands.starting(holder, 60_000))
    house.store.run(commands.starting("late", -1))
    assert house.look().starting == 2

    house.beat("ready", slots=1)
    house.store.run(commands.leave("left"))

    assert house.look().starting == 0
    house.sweep()
    assert not house.client.exists(house.key("starting"))


def test_a_sign_of_life_before_the_models_are_loaded_does_not_end_the_start(house: House) -> None:
    house.store.run(commands.starting("worker", 60_000))

    house.beat("worker")

    assert house.look().starting == 1


def test_of_more_lines_than_it_tells_a_look_tells_those_where_jobs_wait(house: House) -> None:
    house.client.sadd(house.key("paced"), *(f"{POOL}/interactive/old-{each}/1" for each in range(LINES_MAX + 50)))
    house.fill_window()
    waiting = house.job()
    house.submit(waiting)

    seen = house.look()

    assert len(seen.lines) == LINES_MAX
    assert seen.lines[waiting.line].waiting == 1


def test_of_more_tenants_than_it_tells_a_look_tells_some(house: House) -> None:
    many = {f"tenant-{each}": 1 for each in range(12_000)}
    house.client.hset(house.key("open"), mapping=many)
    house.client.hset(house.key(f"turns:{LINE}"), mapping=many)
    house.client.sadd(house.key("paced"), LINE)

    seen = house.look()

    assert 9_000 < len(seen.open_by_tenant) < 12_000
    assert 900 < len(seen.lines[LINE].turns) < 2_000
