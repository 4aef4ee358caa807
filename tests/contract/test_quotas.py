"""Quotas of tenants in the scripts: a rate with a burst, and a bound of open jobs. On the real servers."""

from __future__ import annotations

import pytest

from jobs.commands import Outcome
from jobs.states import Event
from jobs.submits import Left, Note, Submitted
from tests.contract.house import House


def _refused(submitted: Submitted) -> list[int]:
    """Places of the jobs that were refused."""
    return [place for place, note in submitted.notes.items() if note.verdict in {"rate", "open"}]


def _time_passes(house: House, ms: float, tenant: str = "acme") -> None:
    """As far as the tenant's rate can tell."""
    whole_at = float(house.client.hget(house.key("rates"), tenant))
    house.client.hset(house.key("rates"), tenant, repr(whole_at - ms))


def _open(house: House) -> dict[str, int]:
    return house.look().open_by_tenant


# --- Rate ---


@pytest.mark.parametrize("rate", [0.1, 1.5, 3.0, 6.0, 7.0, 99.0])
@pytest.mark.parametrize("burst", [1, 3, 50])
def test_a_burst_is_let_in_whole_and_not_one_more(house: House, rate: float, burst: int) -> None:
    house.set_tenant("acme", rate=rate, burst=burst)

    submitted = house.write(*house.jobs(burst + 2))

    assert _refused(submitted) == [burst, burst + 1]
    assert house.look().open_jobs == burst


def test_a_burst_one_by_one_is_let_in_as_far_as_time_brings_no_more(house: House) -> None:
    house.set_tenant("acme", rate=0.001, burst=5)

    assert [_refused(house.write(house.job())) for _ in range(7)] == [[]] * 5 + [[0]] * 2


def test_who_is_refused_is_told_how_long_to_wait_and_let_in_then(house: House) -> None:
    house.set_tenant("acme", rate=0.01, burst=2)
    house.write(*house.jobs(2))

    (note,) = house.write(house.job()).notes.values()

    assert note.verdict == "rate"
    assert 99_000 < note.wait_ms <= 100_000
    _time_passes(house, note.wait_ms - 20_000)
    assert _refused(house.write(house.job())) == [0]
    _time_passes(house, 20_000)
    assert _refused(house.write(house.job(), house.job())) == [1]


def test_a_refusal_costs_nothing(house: House) -> None:
    house.set_tenant("acme", rate=0.01, burst=1)
    house.write(*house.jobs(20))

    _time_passes(house, 100_000)

    assert _refused(house.write(house.job())) == []


def test_a_tenant_that_is_given_a_greater_rate_owes_nothing_of_the_smaller_one(house: House) -> None:
    house.set_tenant("acme", rate=0.001, burst=5)
    house.write(*house.jobs(5))

    house.set_tenant("acme", rate=1_000.0, burst=1)

    (note,) = house.write(house.job()).notes.values() or (None,)
    assert note is None or note.wait_ms <= 1


def test_time_brings_back_the_burst_and_no_more(house: House) -> None:
    house.set_tenant("acme", rate=0.01, burst=3)
    house.write(*house.jobs(3))

    _time_passes(house, 10_000_000)

    assert _refused(house.write(*house.jobs(5))) == [3, 4]


def test_what_is_left_is_told_with_every_submit(house: House) -> None:
    house.set_tenant("acme", rate=0.006, burst=3)

    first = house.write(house.job()).left
    second = house.write(*house.jobs(3)).left

    assert first == {"acme": Left(2, 166_667)}
    assert second["acme"].jobs == 0
    assert 499_000 < second["acme"].whole_in_ms <= 500_000


def test_a_tenant_without_a_rate_is_told_nothing(house: House) -> None:
    house.set_tenant("acme", open_max=5)

    assert house.write(house.job()).left == {}
    assert not house.client.exists(house.key("rates"))


def test_two_tenants_in_one_call_have_each_its_own(house: House) -> None:
    house.set_tenant("one", rate=0.01, burst=2)
    house.set_tenant("two", open_max=1)
    tenants = ["one", "two", "one", "two", "one", "three"]

    submitted = house.write(*(house.job(tenant=each) for each in tenants))

    assert {place: note.verdict for place, note in submitted.notes.items()} == {3: "open", 4: "rate"}
    assert list(submitted.left) == ["one"]
    assert _open(house) == {"one": 2, "two": 1, "three": 1}


# --- Open jobs ---


def test_so_many_jobs_may_be_open_at_once(house: House) -> None:
    house.set_tenant("acme", open_max=3)
    house.write(*house.jobs(2))

    assert house.write(*house.jobs(3)).notes == {1: Note("open"), 2: Note("open")}

    assert _open(house) == {"acme": 3}


def test_one_refused_for_its_open_jobs_spends_no_rate(house: House) -> None:
    house.set_tenant("acme", rate=0.01, burst=10, open_max=1)

    submitted = house.write(*house.jobs(5))

    assert submitted.left["acme"].jobs == 9


@pytest.mark.parametrize("event", [Event.COMPLETE, Event.FAIL])
def test_a_job_that_a_worker_ends_is_open_no_more(house: House, event: Event) -> None:
    task_id, taken = house.processing()
    assert _open(house) == {"acme": 1}

    house.end(taken, [Outcome(task_id, event, b"{}", "internal")])

    assert _open(house) == {}


@pytest.mark.parametrize("finder", ["sweeper", "read", "cancel", "worker"])
def test_a_job_that_expires_is_open_no_more(house: House, finder: str) -> None:
    task_id, microbatch = house.submit_one()
    house.deadline_passes(task_id)
    match finder:
        case "sweeper":
            house.sweep()
        case "read":
            house.view(task_id)
        case "cancel":
            house.cancel(task_id)
        case _:
            house.take(microbatch)

    assert _open(house) == {}


def test_a_job_that_is_cancelled_is_open_until_its_end(house: House) -> None:
    waiting, _ = house.submit_one()
    house.cancel(waiting)
    assert _open(house) == {}

    running, taken = house.processing()
    house.cancel(running)
    assert _open(house) == {"acme": 1}
    house.end(taken)
    assert _open(house) == {}


def test_a_job_that_is_retried_or_comes_back_stays_open(house: House) -> None:
    task_id, taken = house.processing()
    house.end(taken, [Outcome(task_id, Event.RETRY, code="internal", delay_ms=1_000)])
    _, other = house.processing()
    house.release(other, "failed")

    assert _open(house) == {"acme": 2}


def test_a_replayed_job_is_open_again(house: House) -> None:
    task_id = house.failed()
    assert _open(house) == {}

    house.replay(task_id)

    assert _open(house) == {"acme": 1}
    (made,) = house.sweep().publish
    house.finish(made)
    assert _open(house) == {}


def test_a_job_of_the_version_before_that_is_replayed_is_counted_by_nobody(house: House) -> None:
    task_id = house.failed()
    house.client.hdel(house.key(f"job:{task_id}"), "tenant")
    house.replay(task_id)
    (made,) = house.sweep().publish
    house.finish(made)

    assert _open(house) == {}


def test_a_gateway_that_asks_again_pays_once(house: House) -> None:
    house.set_tenant("acme", rate=0.01, burst=5)
    job = house.job()
    house.write(job)

    assert house.write(job).left["acme"].jobs == 4
    assert _open(house) == {"acme": 1}


def test_what_runs_nothing_costs_nothing(house: House) -> None:
    house.set_tenant("acme", rate=0.01, burst=2, open_max=1)
    house.completed(key="k", cache="c")

    submitted = house.write(*house.jobs(5, key="k"), *house.jobs(5, cache="c"))

    assert [note.verdict for note in submitted.notes.values()] == ["replayed"] * 5 + ["hit"] * 5
    assert submitted.left["acme"].jobs == 1
    assert _open(house) == {}


def test_a_follower_counts_as_any_job(house: House) -> None:
    house.set_tenant("acme", open_max=2)

    submitted = house.write(*house.jobs(3, cache="c"))

    assert [note.verdict for note in submitted.notes.values()] == ["joined", "open"]
    assert _open(house) == {"acme": 2}
