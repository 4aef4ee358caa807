"""Fair turns in the scripts: tenants in a line, models in a lane, each by its weight. On the real servers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from jobs.commands import MicroBatch, Outcome
from jobs.records import STAGES, Job
from jobs.states import Event
from tests.contract.house import WINDOW, House

OLD_MS = 1_700_000_000_000
"""An instant, as scores were before there were turns."""


def _ids(jobs: Sequence[Job]) -> list[str]:
    return [job.task_id for job in jobs]


def _finish_all(house: House, made: Sequence[MicroBatch]) -> list[MicroBatch]:
    """Serve until nothing is left; the micro-batches that this put into the window, in their order."""
    waiting, seen = list(made), list[MicroBatch]()
    while waiting:
        new = house.finish(waiting.pop(0), cost_us=20_000).publish
        waiting += new
        seen += new
    return seen


def _served(house: House, window: Sequence[MicroBatch]) -> list[str]:
    """Jobs in the order in which they enter the window that ``window`` fills."""
    return [task_id for each in window for made in house.finish(each).publish for task_id in house.members(made)]


# --- Tenants of a line ---


def test_a_tenant_alone_is_served_first_in_first_out(house: House) -> None:
    window = house.fill_window()
    jobs = house.jobs(6)
    for job in jobs:
        house.submit(job)

    assert _served(house, window) == _ids(jobs)


def test_two_tenants_of_one_weight_take_turns(house: House) -> None:
    window = house.fill_window()
    one, two = house.jobs(3, tenant="one"), house.jobs(3, tenant="two")
    house.submit(*one)
    house.submit(*two)

    assert _served(house, window) == _ids([one[0], two[0], one[1], two[1], one[2], two[2]])


def test_a_tenant_of_weight_three_has_three_turns_for_one(house: House) -> None:
    house.set_tenant("three", weight=3)
    window = house.fill_window()
    one, three = house.jobs(3, tenant="one"), house.jobs(6, tenant="three")
    house.submit(*one, *three)

    assert _served(house, window) == _ids([one[0], *three[:3], one[1], *three[3:], one[2]])


def test_a_tenant_that_comes_late_goes_before_the_backlog_of_another(house: House) -> None:
    house.bound(jobs_max=5)
    first, *_ = house.fill_window()
    backlog, late = house.jobs(20, tenant="one"), house.job(tenant="two")
    house.submit(*backlog)
    (begun,) = house.finish(first).publish
    assert house.members(begun) == _ids(backlog[:5])

    house.submit(late)

    assert house.waiting(late)[0] == late.task_id


def test_who_paused_saved_nothing_up(house: House) -> None:
    """A tenant that was away stands where the line stands, not where it was before."""
    house.bound(jobs_max=5)
    first, *_ = house.fill_window()
    house.submit(*house.jobs(1, tenant="two"))
    house.submit(*house.jobs(20, tenant="one"))
    house.finish(first)
    before = set(house.waiting(house.job()))

    back = house.jobs(3, tenant="two")
    house.submit(*back)

    order = house.waiting(back[0])
    assert [order.index(job.task_id) for job in back] == [0, 2, 4]
    assert before < set(order)


@pytest.mark.parametrize("end", ["taken", "cancelled"])
def test_a_line_that_empties_forgets_its_tenants_turns(house: House, end: str) -> None:
    first, *_ = house.fill_window()
    job = house.job()
    house.submit(job)
    assert house.client.hkeys(house.key(f"turns:{job.line}")) == [b".now", b"acme"]

    if end == "taken":
        house.finish(first)
    else:
        house.cancel(job.task_id)

    assert not house.client.exists(house.key(f"line:{job.line}"))
    assert not house.client.exists(house.key(f"turns:{job.line}"))


def test_a_retry_goes_ahead_of_all_first_attempts(house: House) -> None:
    task_id, taken = house.processing()
    house.end(taken, [Outcome(task_id, Event.RETRY, code="internal", delay_ms=60_000)])
    house.fill_window()
    jobs = house.jobs(3)
    house.submit(*jobs)
    house.retry_is_due(task_id)

    house.sweep()

    assert house.waiting(jobs[0]) == [task_id, *_ids(jobs)]


def test_replayed_jobs_take_turns_with_what_waits(house: House) -> None:
    failed = [house.failed(tenant="one") for _ in range(3)]
    house.fill_window()
    jobs = house.jobs(3, tenant="two")
    house.submit(*jobs)

    assert house.replay(*failed) == ["replayed"] * 3

    two = _ids(jobs)
    assert house.waiting(jobs[0]) == [failed[0], two[0], failed[1], two[1], failed[2], two[2]]


def test_a_line_of_the_version_before_is_served_and_neither_side_starves(house: House) -> None:
    """Its scores are instants, of a retry 10 to the 13th less; there is no hash of turns."""
    window = house.fill_window()
    old = house.jobs(4)
    house.submit(*old)
    scores = [OLD_MS + 3, OLD_MS, OLD_MS + 1, OLD_MS - 1e13]
    house.client.zadd(house.key(f"line:{old[0].line}"), dict(zip(_ids(old), scores, strict=True)))
    house.client.delete(house.key(f"turns:{old[0].line}"))

    new = house.jobs(5, tenant="new")
    house.submit(*new)

    retry, first, second, third = (old[each].task_id for each in (3, 1, 2, 0))
    fresh = _ids(new)
    assert _served(house, window) == [retry, first, fresh[0], second, *fresh[1:3], third, *fresh[3:]]


# --- Models of a lane ---


def test_models_take_turns_by_weight(house: House) -> None:
    house.bound(jobs_max=1)
    window = house.fill_window()
    house.submit(*house.jobs(2, model="one"), *house.jobs(4, model="two", weight=2))

    models = [made.line.split("/")[2] for made in _finish_all(house, window)]

    assert models == ["one", "two", "two"] * 2


def test_a_light_line_is_not_held_up_by_the_backlog_of_one_that_computes(house: House) -> None:
    house.bound(jobs_max=1)
    house.client.hset(house.key("cost:light/1"), mapping=dict.fromkeys(STAGES, 10))
    window = house.fill_window("heavy")
    house.submit(*house.jobs(20, model="heavy"))
    house.submit(*house.jobs(2, model="light"))

    made = [new for each in window for new in house.finish(each, cost_us=20_000).publish]

    assert [each.line.split("/")[2] for each in made] == ["heavy", "light"] * 2


def test_a_model_whose_weight_is_one_again_takes_one_turn(house: House) -> None:
    house.bound(jobs_max=1)
    house.submit(house.job(weight=3))
    assert house.client.hgetall(house.key("strides")) == {b"m/1": b"0.3333333333333333"}

    house.submit(house.job())

    assert not house.client.exists(house.key("strides"))


def test_jobs_of_two_models_are_all_written_before_a_wider_window_takes_from_either(house: House) -> None:
    house.fill_window()
    house.submit(house.job(model="a"), house.job(model="b"))
    house.beat("another worker", slots=WINDOW)

    both = [house.job(model="b"), house.job(model="a")]
    made = house.submit(*both)

    assert sorted(each.line.split("/")[2] for each in made) == ["a", "b"]
    assert [len(house.members(each)) for each in made] == [2, 2]
