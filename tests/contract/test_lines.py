"""Natural batching in the scripts: lines, lanes, the window, the size of a micro-batch. On the real servers."""

from __future__ import annotations

from jobs import commands
from jobs.records import LANES, STAGES
from tests.contract.house import POOL, WINDOW, House


def test_on_an_idle_system_a_job_leaves_at_once_and_alone(house: House) -> None:
    task_id, microbatch = house.submit_one()

    assert house.members(microbatch) == [task_id]


def test_jobs_wait_while_the_window_is_full_and_then_leave_together_in_order(house: House) -> None:
    first, *_ = house.fill_window("m")
    waiting = [house.job() for _ in range(5)]
    assert [house.submit(job) for job in waiting] == [[]] * 5

    (microbatch,) = house.finish(first, cost_us=8_000).publish

    assert house.members(microbatch) == [job.task_id for job in waiting]


def test_a_light_line_has_one_micro_batch_for_each_worker(house: House) -> None:
    """Its stages cost less than the hops between them, so a second one would only share fewer jobs a hop."""
    *others, last = house.fill_window("m")
    waiting = [house.job() for _ in range(5)]
    for job in waiting:
        house.submit(job)
    assert [house.finish(each).publish for each in others] == [[]] * len(others)

    (microbatch,) = house.finish(last).publish

    assert house.members(microbatch) == [job.task_id for job in waiting]


def test_a_line_that_computes_leaves_while_a_light_one_waits(house: House) -> None:
    first, *_ = house.fill_window("light")
    waiting, computing = house.job(model="light"), house.job(model="heavy")
    house.client.hset(house.key("cost:heavy/1"), mapping=dict.fromkeys(STAGES, 20_000))
    house.submit(waiting)
    house.submit(computing)

    (microbatch,) = house.finish(first).publish

    assert house.members(microbatch) == [computing.task_id]


def test_a_job_leaves_at_once_before_any_worker_is_known(house: House) -> None:
    house.client.delete(house.key(f"slots:{POOL}"))

    assert len(house.submit(house.job())) == 1


def test_slots_of_workers_widen_the_window_until_they_leave(house: House) -> None:
    house.beat("one", slots=1)
    house.beat("two", slots=2)
    assert [len(house.submit(house.job())) for _ in range(WINDOW + 4)] == [1] * (WINDOW + 3) + [0]

    house.store.run(commands.leave("two"))

    assert house.client.hget(house.key(f"slots:{POOL}"), "one") == b"1"
    assert house.client.hget(house.key(f"slots:{POOL}"), "two") is None
    assert house.client.hkeys(house.key("workers")) == [b"one"]
    assert house.client.zrange(house.key("workers-seen"), 0, -1) == [b"one"]


def test_slots_of_a_worker_that_is_no_longer_seen_do_not_count(house: House) -> None:
    house.beat("dead", slots=3)
    house.client.zadd(house.key("workers-seen"), {"dead": house.now_ms - 15_001})

    house.sweep()
    house.sweep()

    assert house.client.hget(house.key(f"slots:{POOL}"), "dead") is None
    assert house.client.hgetall(house.key("workers")) == {}


def test_lines_take_turns(house: House) -> None:
    house.bound(jobs_max=1)
    window = house.fill_window()
    house.submit(*(house.job(model="a") for _ in range(3)))
    house.submit(*(house.job(model="b") for _ in range(3)))

    lines = [made.line for each in window for made in house.finish(each).publish]

    assert [line.split("/")[2] for line in lines] == ["a", "b", "a", "b"]


def test_interactive_goes_before_bulk(house: House) -> None:
    first, second, *_ = house.fill_window()
    house.submit(house.job(lane="bulk"))
    house.submit(house.job(lane="interactive"))

    lanes = [made.lane for each in (first, second) for made in house.finish(each).publish]

    assert lanes == ["interactive", "bulk"]


def test_a_micro_batch_holds_jobs_of_one_line_alone(house: House) -> None:
    jobs = [house.job(model=model, lane=lane) for model in "ab" for lane in LANES]

    made = house.submit(*jobs)

    assert sorted(each.line for each in made) == sorted(job.line for job in jobs)


def test_a_micro_batch_is_bounded_by_jobs(house: House) -> None:
    house.bound(jobs_max=2)

    made = house.submit(*(house.job() for _ in range(5)))

    assert [len(house.members(each)) for each in made] == [2, 2, 1]


def test_a_micro_batch_is_bounded_by_bytes_but_one_job_always_goes(house: House) -> None:
    house.bound(bytes_max=100)

    made = house.submit(*(house.job(data=b"x" * size) for size in (50, 50, 500, 10)))

    assert [len(house.members(each)) for each in made] == [2, 1, 1]


def test_a_micro_batch_is_bounded_by_the_slowest_stage_s_cost(house: House) -> None:
    house.client.hset(house.key("cost:m/1"), mapping={"preprocess": 100, "inference": 20_000})

    made = house.submit(*(house.job() for _ in range(5)))

    assert [len(house.members(each)) for each in made] == [2, 2, 1]


def test_a_stage_slower_than_the_slice_runs_one_job_at_a_time(house: House) -> None:
    house.client.hset(house.key("cost:m/1"), "inference", 9_000_000)

    assert [len(house.members(each)) for each in house.submit(house.job(), house.job())] == [1, 1]


def test_the_cost_of_a_stage_follows_what_is_measured(house: House) -> None:
    for cost_us in (1_000, 2_000):
        house.hand_on(house.processing()[1], cost_us=cost_us)

    assert house.client.hget(house.key("cost:m/1"), "preprocess") == b"1200"
