"""Single flight in the scripts: what has one input is computed once, each job of it ends. On the real servers."""

from __future__ import annotations

import pytest

from jobs import commands
from jobs.commands import MicroBatch, Outcome, Taken
from jobs.records import Job
from jobs.states import Event
from tests.contract.house import DOCUMENT, FAILURE, WINDOW, House, ids

FOLLOWERS_AT_ONCE = 256


def _flight(house: House, count: int = 2, **given: object) -> tuple[Job, list[Job], MicroBatch]:
    """A job that leads, some that follow it, and its micro-batch."""
    leader, *followers = house.jobs(count + 1, **{"cache": "c", **given})
    submitted = house.write(leader, *followers)
    assert [note.verdict for note in submitted.notes.values()] == ["joined"] * count
    (microbatch,) = submitted.publish
    assert house.members(microbatch) == [leader.task_id]
    return leader, followers, microbatch


def _ids(jobs: list[Job]) -> list[str]:
    return [job.task_id for job in jobs]


def _states(house: House, jobs: list[Job]) -> list[str]:
    return [house.view(job.task_id).state for job in jobs]


def _fail(house: House, taken: Taken, code: str, document: bytes = FAILURE) -> list[str]:
    """The holder's one job fails; the jobs that ended by it."""
    (member,) = taken.members
    return ids(house.end(taken, [Outcome(member.task_id, Event.FAIL, document, code)]).ended)


# --- Joining ---


def test_a_job_that_is_under_way_already_is_joined_and_computed_once(house: House) -> None:
    leader, followers, microbatch = _flight(house)
    assert house.write(house.job(cache="c")).publish == []

    ended = house.finish(microbatch).ended

    assert len(ended) == 4
    assert _states(house, [leader, *followers]) == ["completed"] * 3


def test_followers_have_the_leader_s_document_with_their_own_head(house: House) -> None:
    _, (follower, _), microbatch = _flight(house)

    house.finish(microbatch)

    view = house.view(follower.task_id)
    assert (view.state, view.document, view.head) == ("completed", DOCUMENT, follower.head)
    assert house.client.hget(house.key(f"job:{follower.task_id}"), "document") is None


def test_other_inputs_and_models_are_other_flights(house: House) -> None:
    _flight(house)

    assert house.write(house.job(cache="d")).notes == {}
    assert house.write(house.job(cache="c", model="n")).notes == {}


def test_interactive_does_not_join_bulk(house: House) -> None:
    _flight(house, lane="bulk")

    assert house.write(house.job(cache="c")).notes == {}


def test_who_wants_a_new_answer_goes_beside_the_flight(house: House) -> None:
    leader, followers, _ = _flight(house)
    fresh, alone = house.submit_one(cache="c", refresh=True)

    assert ids(house.finish(alone).ended) == [fresh]

    assert _states(house, [leader, *followers]) == ["queued"] * 3


def test_who_wants_a_new_answer_and_is_alone_can_be_joined(house: House) -> None:
    fresh, microbatch = house.submit_one(cache="c", refresh=True)
    follower = house.job(cache="c")
    house.submit(follower)

    assert ids(house.finish(microbatch).ended) == [fresh, follower.task_id]


def test_after_the_landing_the_next_job_is_answered_from_the_cache(house: House) -> None:
    _, _, microbatch = _flight(house)
    house.finish(microbatch)

    (note,) = house.write(house.job(cache="c")).notes.values()

    assert note.verdict == "hit"


def test_an_answer_that_is_not_kept_is_shared_all_the_same(house: House) -> None:
    _, followers, microbatch = _flight(house, fresh_ms=0)

    house.finish(microbatch)

    assert _states(house, followers) == ["completed"] * 2
    assert house.write(house.job(cache="c")).notes == {}


# --- Waiting ---


def test_followers_are_where_their_leader_is(house: House) -> None:
    house.fill_window()
    waiting = house.jobs(3)
    house.submit(*waiting)
    leader, follower = house.jobs(2, cache="c")
    house.submit(leader, follower)

    assert [house.view(each.task_id).place for each in (leader, follower)] == [3, 3]
    assert follower.task_id not in house.waiting(leader)


def test_followers_are_processing_with_their_leader(house: House) -> None:
    leader, (follower, _), microbatch = _flight(house)
    assert house.view(follower.task_id).state == "queued"
    house.hand_on(house.take(microbatch))
    house.take(microbatch, stage="inference")

    views = [house.view(each.task_id) for each in (leader, follower)]

    assert [(view.state, view.stage, view.attempt) for view in views] == [("processing", "inference", 1)] * 2
    assert views[1].head == follower.head


def test_a_follower_is_cancelled_alone(house: House) -> None:
    leader, (cancelled, other), microbatch = _flight(house)
    house.take(microbatch)

    assert house.cancel(cancelled.task_id) == "cancelled"

    assert _states(house, [leader, cancelled, other]) == ["processing", "cancelled", "processing"]
    assert house.client.zrange(house.key(f"followers:{leader.line} c"), 0, -1) == [other.task_id.encode()]


@pytest.mark.parametrize("finder", ["sweeper", "read", "cancel"])
def test_a_follower_expires_alone(house: House, finder: str) -> None:
    leader, (late, other), microbatch = _flight(house)
    house.deadline_passes(late.task_id)
    match finder:
        case "sweeper":
            house.sweep()
        case "read":
            house.view(late.task_id)
        case _:
            house.cancel(late.task_id)

    assert _states(house, [leader, late, other]) == ["queued", "expired", "queued"]
    assert ids(house.finish(microbatch).ended) == _ids([leader, other])


# --- The leader does not complete ---


@pytest.mark.parametrize("code", ["invalid-input", "model-error", "timeout", "worker-lost"])
def test_a_failure_that_the_input_is_to_blame_for_is_shared(house: House, code: str) -> None:
    leader, followers, microbatch = _flight(house)

    assert _fail(house, house.take(microbatch), code) == _ids([leader, *followers])

    for job in followers:
        view = house.view(job.task_id)
        assert (view.state, view.document, view.head) == ("failed", FAILURE, job.head)
    assert not house.client.exists(house.key("flights"))


def test_a_failure_without_a_document_says_of_each_what_it_was(house: House) -> None:
    """As when the worker died: nobody was left to write one."""
    leader, followers, microbatch = _flight(house, attempts_max=1)
    taken = house.take(microbatch)
    for _ in range(2):  # the first death charges nobody
        house.lease_runs_out(taken.number)
        swept = house.sweep()
        taken = house.take(swept.publish[0]) if swept.publish else taken

    for job in (leader, *followers):
        view = house.view(job.task_id)
        assert (view.state, view.code, view.stage, view.document) == ("failed", "worker-lost", "preprocess", b"")
        assert view.ended_at_ms


@pytest.mark.parametrize("code", ["internal", "out-of-memory", "model-unavailable"])
def test_after_any_other_failure_the_next_one_leads(house: House, code: str) -> None:
    leader, (second, third), microbatch = _flight(house)

    committed = house.end(house.take(microbatch), [Outcome(leader.task_id, Event.FAIL, FAILURE, code)])

    assert ids(committed.ended) == [leader.task_id]
    (made,) = committed.publish
    assert house.members(made) == [second.task_id]
    assert ids(house.finish(made).ended) == _ids([second, third])


def test_who_leads_next_keeps_its_own_id_deadline_and_attempts(house: House) -> None:
    leader = house.job(cache="c", attempts_max=1)
    follower = house.job(cache="c", attempts_max=4, data=b"its own")
    (microbatch,) = house.submit(leader, follower)

    (made,) = house.end(house.take(microbatch), [Outcome(leader.task_id, Event.FAIL, FAILURE, "internal")]).publish

    (member,) = house.take(made).members
    assert (member.task_id, member.head, member.attempt) == (follower.task_id, follower.head, 1)
    assert member.data == b"its own"


def test_when_the_leader_is_cancelled_the_next_one_leads(house: House) -> None:
    leader, (second, third), _ = _flight(house)

    assert house.cancel(leader.task_id) == "cancelled"

    (made,) = house.sweep().publish
    assert ids(house.finish(made).ended) == _ids([second, third])


def test_when_the_leader_is_cancelled_while_it_runs_its_answer_is_not_shared(house: House) -> None:
    leader, (second, third), microbatch = _flight(house)
    taken = house.take(microbatch)
    assert house.cancel(leader.task_id) == "cancelling"

    committed = house.end(taken)

    assert ids(committed.ended) == [leader.task_id]
    assert [house.members(made) for made in committed.publish] == [[second.task_id]]
    assert house.view(third.task_id).state == "queued"


@pytest.mark.parametrize("finder", ["sweeper", "read", "worker"])
def test_when_the_leader_expires_the_next_one_leads(house: House, finder: str) -> None:
    leader, (second, third), microbatch = _flight(house)
    house.deadline_passes(leader.task_id)
    match finder:
        case "sweeper":
            made = house.sweep().publish
        case "read":
            house.view(leader.task_id)
            made = house.sweep().publish
        case _:
            made = list(house.take(microbatch).publish)

    assert [house.members(each) for each in made] == [[second.task_id]]
    assert _states(house, [leader, second, third]) == ["expired", "queued", "queued"]


def test_a_leader_that_is_retried_goes_on_leading(house: House) -> None:
    leader, followers, microbatch = _flight(house)
    house.end(house.take(microbatch), [Outcome(leader.task_id, Event.RETRY, code="internal", delay_ms=60_000)])
    assert house.view(followers[0].task_id).place == commands.IN_RETRY
    house.retry_is_due(leader.task_id)

    (made,) = house.sweep().publish

    assert ids(house.finish(made).ended) == _ids([leader, *followers])


def test_a_leader_that_comes_back_as_a_suspect_goes_on_leading(house: House) -> None:
    leader, followers, microbatch = _flight(house)

    (suspect,) = house.release(house.take(microbatch), "failed")

    assert ids(house.finish(suspect).ended) == _ids([leader, *followers])


def test_who_leads_next_goes_ahead_of_what_waits(house: House) -> None:
    leader, (second, _), microbatch = _flight(house)
    for _ in range(WINDOW - 1):
        house.submit_one(model="x")
    others = house.jobs(3)
    house.submit(*others)

    house.cancel(leader.task_id)

    assert house.waiting(leader) == _ids([second, *others])
    assert house.take(microbatch).verdict == "empty"


# --- After the end ---


def test_followers_of_a_failure_are_dead_letters_and_run_again_each_by_itself(house: House) -> None:
    leader, followers, microbatch = _flight(house)
    _fail(house, house.take(microbatch), "model-error")
    letters = house.store.run(commands.dead_letters(most=10)).letters
    assert {each.task_id for each in letters} == set(_ids([leader, *followers]))

    assert house.replay(*_ids(followers)) == ["replayed"] * 2

    (made,) = house.sweep().publish
    assert ids(house.finish(made).ended) == _ids(followers)
    view = house.view(followers[0].task_id)
    assert (view.state, view.document, view.head) == ("completed", DOCUMENT, None)


def test_a_failure_s_followers_keep_what_they_were_told_when_the_leader_is_run_again(house: House) -> None:
    leader, followers, microbatch = _flight(house)
    _fail(house, house.take(microbatch), "model-error")
    house.replay(leader.task_id)
    (made,) = house.sweep().publish
    house.finish(made)

    assert house.view(leader.task_id).document == DOCUMENT
    assert house.view(followers[0].task_id).document == FAILURE


def test_a_replayed_job_leads_nobody_and_follows_nobody(house: House) -> None:
    failed = house.failed(cache="c")
    leader, _, _ = _flight(house)

    house.replay(failed)

    assert house.client.hvals(house.key("flights")) == [leader.task_id.encode()]
    (made,) = house.sweep().publish
    assert house.members(made) == [failed]
    house.finish(made)
    assert house.view(leader.task_id).state == "queued"


def test_records_of_followers_go_when_the_document_goes(house: House) -> None:
    leader, followers, microbatch = _flight(house, count=FOLLOWERS_AT_ONCE + 1)
    house.finish(microbatch)
    house.client.pexpire(house.key(f"job:{leader.task_id}"), 60_000)
    house.sweep()

    last = house.client.pttl(house.key(f"job:{followers[-1].task_id}"))

    assert 0 < last <= 60_000
    assert 0 < house.client.pttl(house.key(f"job:{followers[0].task_id}")) <= 3_600_000


# --- Big flights ---


def _landed(house: House, count: int) -> tuple[Job, list[Job]]:
    """A flight that has landed, too big for one script."""
    leader, followers, microbatch = _flight(house, count)
    assert len(house.finish(microbatch).ended) == 1 + FOLLOWERS_AT_ONCE
    return leader, followers


def test_the_sweeper_finishes_a_following_that_is_too_big_for_one_script(house: House) -> None:
    _, followers = _landed(house, FOLLOWERS_AT_ONCE + 300)

    assert [len(house.sweep(most=200).ended) for _ in range(3)] == [200, 100, 0]

    assert set(_states(house, followers)) == {"completed"}
    assert house.look().open_jobs == 0
    assert not any(key.startswith(("landed", "followers", "flights")) for key in house.left_over())


def test_two_big_flights_of_one_micro_batch_share_what_one_script_may_tell(house: House) -> None:
    jobs = [house.job(cache=cache) for cache in "cd" for _ in range(201)]
    (microbatch,) = house.submit(*jobs)

    assert len(house.finish(microbatch).ended) == 2 + FOLLOWERS_AT_ONCE

    house.sweep()
    assert house.look().open_jobs == 0


def test_who_asks_while_the_following_is_told_is_answered_from_the_cache(house: House) -> None:
    _landed(house, FOLLOWERS_AT_ONCE + 10)

    (note,) = house.write(house.job(cache="c")).notes.values()

    assert note.verdict == "hit"


def test_one_that_ended_before_it_was_told_and_runs_again_is_not_ended_by_its_old_flight(house: House) -> None:
    _, followers = _landed(house, FOLLOWERS_AT_ONCE + 10)
    last = followers[-1]
    house.deadline_passes(last.task_id)
    assert house.view(last.task_id).state == "expired"
    house.replay(last.task_id)

    assert last.task_id not in ids(house.sweep().ended)

    assert house.view(last.task_id).state == "queued"


def test_a_shared_failure_of_a_big_following_is_met_by_the_next_leader_again(house: House) -> None:
    leader, followers, microbatch = _flight(house, FOLLOWERS_AT_ONCE + 5)
    outcome = Outcome(leader.task_id, Event.FAIL, FAILURE, "model-error")
    committed = house.end(house.take(microbatch), [outcome])
    assert len(committed.ended) == 1 + FOLLOWERS_AT_ONCE

    (made,) = committed.publish

    assert house.members(made) == [followers[FOLLOWERS_AT_ONCE].task_id]
    assert len(_fail(house, house.take(made), "model-error")) == 5
    assert house.look().open_jobs == 0


# --- What remains ---


def test_nothing_of_a_flight_remains_when_all_have_ended(house: House) -> None:
    before = house.left_over()
    _, followers, microbatch = _flight(house, count=3)
    house.cancel(followers[0].task_id)
    house.deadline_passes(followers[1].task_id)
    house.sweep()
    house.finish(microbatch)

    assert house.left_over() - before == {
        *("sequence", "pools", "seen", "cost:m/1", "paced", "pace:default/interactive/m/1"),
        *("cache", "cache-ends"),
    }
