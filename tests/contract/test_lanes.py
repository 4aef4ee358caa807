"""Lanes in the scripts: interactive and bulk, the floor under bulk, suspects, paused models. On the real servers."""

from __future__ import annotations

import pytest

from jobs.commands import MicroBatch, Outcome
from jobs.states import Event
from tests.contract.house import POOL, WINDOW, House, ids

COST_US = 20_000
"""Of a stage that computes: such a line has no light micro-batches."""


def _suspects(house: House, count: int, **given: object) -> list[str]:
    """Jobs that ran when their worker died, but for the one that runs now."""
    (microbatch,) = house.submit(*house.jobs(count, **given))
    members = house.members(microbatch)
    house.lease_runs_out(house.take(microbatch).number)
    return members


def _models(made: list[MicroBatch]) -> list[str]:
    return [each.line.split("/")[2] for each in made]


# --- Interactive and bulk ---


def test_interactive_never_waits_for_room_that_bulk_holds(house: House) -> None:
    house.fill_window(lane="bulk")

    made = [house.submit(house.job()) for _ in range(WINDOW + 1)]

    assert [len(each) for each in made] == [1] * WINDOW + [0]


def test_bulk_gets_the_room_that_interactive_leaves(house: House) -> None:
    for _ in range(WINDOW - 1):
        house.submit_one()

    assert [len(house.submit(house.job(lane="bulk"))) for _ in range(2)] == [1, 0]


def test_bulk_fills_a_window_that_nobody_else_wants(house: House) -> None:
    assert [len(house.submit(house.job(lane="bulk"))) for _ in range(WINDOW + 1)] == [1] * WINDOW + [0]


def test_a_bulk_micro_batch_gives_its_room_back_at_its_end(house: House) -> None:
    first, *_ = house.fill_window(lane="bulk")
    waiting = house.job(lane="bulk")
    house.submit(waiting)

    (made,) = house.finish(first, COST_US).publish

    assert house.members(made) == [waiting.task_id]
    assert house.client.scard(house.key(f"bulk-live:{POOL}")) == WINDOW


def _flood(house: House, bulk: int, interactive: int) -> list[MicroBatch]:
    """A full window of interactive jobs of one each, more of these behind it, and bulk jobs."""
    house.bound(jobs_max=1)
    window = house.fill_window("m")
    house.submit(*house.jobs(bulk, lane="bulk"), *house.jobs(interactive))
    return window


def test_every_tenth_micro_batch_is_bulk_while_interactive_floods(house: House) -> None:
    waiting = _flood(house, bulk=5, interactive=100)
    lanes = list[str]()
    while len(lanes) < 40:
        made = house.finish(waiting.pop(0), COST_US).publish
        waiting += made
        lanes += [each.lane for each in made]

    assert lanes[:40] == [*["interactive"] * 9, "bulk"] * 4


def test_bulk_is_owed_nothing_more_while_one_of_its_micro_batches_is_there(house: House) -> None:
    waiting, lanes = _flood(house, bulk=5, interactive=100), list[str]()
    for _ in range(40):
        made = house.finish(waiting.pop(0), COST_US).publish
        waiting += [each for each in made if each.lane == "interactive"]  # a bulk one never ends
        lanes += [each.lane for each in made]

    assert lanes.count("bulk") == 1


def test_nothing_is_owed_to_bulk_that_came_after_the_flood(house: House) -> None:
    waiting = _flood(house, bulk=0, interactive=100)
    for _ in range(20):
        waiting += house.finish(waiting.pop(0), COST_US).publish
    house.submit(house.job(lane="bulk"))

    (made,) = house.finish(waiting.pop(0), COST_US).publish

    assert made.lane == "interactive"


def test_a_record_that_is_gone_holds_no_room_of_bulk(house: House) -> None:
    _, microbatch = house.submit_one(lane="bulk")
    house.client.delete(house.key(f"microbatch:{microbatch.number}"))
    house.look_is_due(microbatch.number)

    house.sweep()

    assert not house.client.exists(house.key(f"bulk-live:{POOL}"))


# --- Suspects ---


def test_a_suspect_goes_before_all_that_waits(house: House) -> None:
    guilty, _ = _suspects(house, 2)
    for _ in range(WINDOW - 1):
        house.submit_one()
    house.submit(house.job(model="x"), house.job(model="y"))

    first, *others = house.sweep().publish

    assert (house.members(first), others) == ([guilty], [])


def test_a_bulk_suspect_takes_no_room_from_interactive(house: House) -> None:
    _suspects(house, 1, lane="bulk")
    house.sweep()

    assert [len(house.submit(house.job())) for _ in range(WINDOW)] == [1] * WINDOW


# --- Paused models ---


def test_jobs_of_a_paused_model_wait_and_the_sweeper_lets_them_go_once_it_is_resumed(house: House) -> None:
    house.pause("m")
    job = house.job()
    assert house.submit(job) == []
    assert house.sweep().publish == []

    house.resume("m")

    (made,) = house.sweep().publish
    assert house.members(made) == [job.task_id]


def test_a_paused_model_passes_its_turns_to_the_others(house: House) -> None:
    house.bound(jobs_max=1)
    house.pause("a")

    made = house.submit(*house.jobs(2, model="a"), *house.jobs(3, model="b"))

    assert _models(made) == ["b"] * 3


def test_a_model_that_is_resumed_does_not_catch_up_at_the_cost_of_the_others(house: House) -> None:
    house.bound(jobs_max=1)
    window = house.fill_window()
    house.submit(*house.jobs(20, model="a"), *house.jobs(20, model="b"))
    house.pause("a")
    waiting = [made for each in window for made in house.finish(each, COST_US).publish]
    for _ in range(8):
        waiting += house.finish(waiting.pop(0), COST_US).publish

    house.resume("a")

    models = _models([made for each in waiting for made in house.finish(each, COST_US).publish])
    assert models == ["a", "a", "b", "a"]  # beside the turn that was served last, so one ahead


def test_what_runs_when_its_model_is_paused_runs_to_its_end(house: House) -> None:
    task_id, microbatch = house.submit_one()
    house.pause("m")

    assert ids(house.finish(microbatch).ended) == [task_id]


def test_suspects_of_a_paused_model_wait_and_hold_up_no_others(house: House) -> None:
    paused = _suspects(house, 30, model="a")
    other = _suspects(house, 1, model="b")
    house.pause("a")

    made = [microbatch for _ in range(5) for microbatch in house.sweep().publish]

    assert [house.members(each) for each in made] == [other]
    house.finish(made[0])
    house.resume("a")
    (suspect,) = house.sweep().publish
    assert house.members(suspect)[0] in paused


def test_a_retry_of_a_paused_model_waits_in_its_line(house: House) -> None:
    job = house.job()
    (microbatch,) = house.submit(job)
    taken = house.take(microbatch)
    house.end(taken, [Outcome(job.task_id, Event.RETRY, code="internal", delay_ms=60_000)])
    house.pause("m")
    house.retry_is_due(job.task_id)

    assert house.sweep().publish == []

    assert house.waiting(job) == [job.task_id]
    house.resume("m")
    assert [house.members(each) for each in house.sweep().publish] == [[job.task_id]]


@pytest.mark.parametrize("end", ["cancelled", "expired"])
def test_a_job_of_a_paused_model_can_still_end(house: House, end: str) -> None:
    house.pause("m")
    job = house.job()
    house.submit(job)

    if end == "cancelled":
        house.cancel(job.task_id)
    else:
        house.deadline_passes(job.task_id)
        house.sweep()

    assert house.view(job.task_id).state == end
    house.resume("m")
    assert house.sweep().publish == []
