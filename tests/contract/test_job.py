"""The life of one job in the scripts: submit, leases and epochs, expiry, retries. On the real servers."""

from __future__ import annotations

import pytest

from jobs import commands
from jobs.commands import Outcome
from jobs.records import STAGES
from jobs.states import Event
from tests.contract.house import DOCUMENT, LEASE_MS, POOL, House, ids

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
    bad, taken = house.processing()
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
    task_id, taken = house.processing()
    assert house.hand_on(taken).held

    again = house.hand_on(taken)

    assert (again.held, again.publish, again.goes_on) == (False, [], False)
    assert house.view(task_id).state == "processing"


def test_a_zombie_s_commit_is_refused_once_another_holds_the_lease(house: House) -> None:
    task_id, zombie = house.processing()
    house.lease_runs_out(zombie.number)
    (suspect,) = house.sweep().publish
    house.take(suspect, "another")

    committed = house.end(zombie)

    assert (committed.held, committed.ended) == (False, [])
    assert house.view(task_id).state == "processing"


def test_a_stale_epoch_is_refused_for_the_same_micro_batch(house: House) -> None:
    task_id, stale = house.processing()
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
    task_id, taken = house.processing()
    house.release(taken)

    assert not house.end(taken).held
    assert house.release(taken) == []
    assert house.view(task_id).state != "completed"


def test_nothing_is_released_by_whoever_has_lost_the_lease(house: House) -> None:
    _, taken = house.processing()
    house.hand_on(taken)

    assert house.release(taken) == []


def test_a_sign_of_life_extends_leases_and_names_those_that_are_lost(house: House) -> None:
    _, taken = house.processing()
    key = house.key(f"microbatch:{taken.number}")
    before = int(house.client.hget(key, "lease"))

    held = [(taken.number, taken.epoch), ("4711", 1), (taken.number, taken.epoch + 1)]
    beaten = house.beat("worker", held, lease_ms=10 * LEASE_MS)

    assert beaten.lost == ["4711", taken.number]
    assert abs(beaten.now_ms - house.now_ms) < 1_000
    assert int(house.client.hget(key, "lease")) > before
    assert house.client.zscore(house.key(f"live:{POOL}"), taken.number) == float(house.client.hget(key, "lease"))


def test_another_worker_s_sign_of_life_does_not_extend_a_lease(house: House) -> None:
    _, taken = house.processing()

    assert house.beat("another", [(taken.number, taken.epoch)]).lost == [taken.number]


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
    task_id, taken = house.processing()
    house.deadline_passes(task_id)
    house.sweep()
    before = house.client.hgetall(house.key(f"job:{task_id}"))

    committed = house.end(taken)

    assert (committed.held, committed.ended) == (True, [])
    assert house.client.hgetall(house.key(f"job:{task_id}")) == before


@pytest.mark.parametrize("event", [Event.COMPLETE, Event.FAIL, Event.RETRY])
def test_no_outcome_leaves_a_terminal_state(house: House, event: Event) -> None:
    task_id, taken = house.processing()
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
    task_id, taken = house.processing()
    committed = house.end(taken, [Outcome(task_id, Event.RETRY, code="internal", delay_ms=30_000)])
    assert (committed.ended, committed.goes_on) == ([], False)
    assert (house.view(task_id).state, house.view(task_id).attempt) == ("queued", 2)
    assert (house.sweep().retried, house.sweep().publish) == (0, [])

    house.retry_is_due(task_id)
    swept = house.sweep()

    assert swept.retried == 1
    assert [member.attempt for member in house.take(swept.publish[0]).members] == [2]


def test_every_retry_counts(house: House) -> None:
    task_id, taken = house.processing()
    for attempt in (2, 3, 4):
        house.end(taken, [Outcome(task_id, Event.RETRY, code="internal", delay_ms=1)])
        house.retry_is_due(task_id)
        (microbatch,) = house.sweep().publish
        taken = house.take(microbatch)
        assert taken.members[0].attempt == attempt


def test_at_its_last_attempt_a_job_fails(house: House) -> None:
    task_id, taken = house.processing(attempts_max=1)

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
    task_id, taken = house.processing()
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
    task_id, taken = house.processing()
    house.end(taken, [Outcome(task_id, Event.RETRY, code="internal", delay_ms=30_000)])
    house.deadline_passes(task_id)
    house.retry_is_due(task_id)

    swept = house.sweep()

    assert (ids(swept.ended), swept.retried, swept.publish) == ([task_id], 0, [])
