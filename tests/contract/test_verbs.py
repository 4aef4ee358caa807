"""What people ask of a job once it is there: cancel it, run it again, look at what was given up."""

from __future__ import annotations

import msgspec
import pytest

from jobs import commands
from jobs.commands import DeadLetters, Outcome
from jobs.errors import StoreUnavailableError
from jobs.states import Event
from tests.contract.house import DOCUMENT, House, ids


def _letters(house: House, **wanted: object) -> DeadLetters:
    return house.store.run(commands.dead_letters(**{"most": 100, **wanted}))  # type: ignore[arg-type]


# --- Cancel ---


def test_a_waiting_job_is_cancelled_at_once_and_leaves_its_line(house: House) -> None:
    house.fill_window()
    job = house.job()
    house.submit(job)

    assert house.cancel(job.task_id) == "cancelled"

    assert (house.view(job.task_id).state, house.view(job.task_id).code) == ("cancelled", "cancelled-by-client")
    assert not house.client.exists(house.key(f"line:{job.line}"))
    assert house.client.zscore(house.key("deadlines"), job.task_id) is None
    assert house.client.hget(house.key(f"job:{job.task_id}"), "input") is None


def test_a_job_between_two_stages_is_cancelled_at_once_and_no_worker_gets_it(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    cancelled, other = house.members(microbatch)
    house.hand_on(house.take(microbatch))

    assert house.cancel(cancelled) == "cancelled"

    assert [member.task_id for member in house.take(microbatch, stage="inference").members] == [other]


def test_a_job_that_waits_for_its_retry_is_cancelled_at_once(house: House) -> None:
    task_id, taken = house.processing()
    house.end(taken, [Outcome(task_id, Event.RETRY, code="internal", delay_ms=60_000)])

    assert house.cancel(task_id) == "cancelled"

    assert house.client.zscore(house.key("retries"), task_id) is None


def test_a_running_job_is_promised_its_cancellation_and_gets_it_at_the_boundary(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    cancelled, other = house.members(microbatch)
    taken = house.take(microbatch)

    assert house.cancel(cancelled) == "cancelling"
    assert house.view(cancelled).state == "processing"  # it is not said before it is true
    committed = house.hand_on(taken)

    assert ids(committed.ended) == [cancelled]
    assert house.view(cancelled).state == "cancelled"
    assert [member.task_id for member in house.take(microbatch, stage="inference").members] == [other]


@pytest.mark.parametrize("event", [Event.COMPLETE, Event.FAIL, Event.RETRY])
def test_whatever_the_last_stage_makes_of_it_a_promised_cancellation_holds(house: House, event: Event) -> None:
    task_id, taken = house.processing()
    assert house.cancel(task_id) == "cancelling"

    house.end(taken, [Outcome(task_id, event, DOCUMENT, "internal", 1)])

    view = house.view(task_id)
    assert (view.state, view.document, view.code) == ("cancelled", b"", "cancelled-by-client")
    assert _letters(house).letters == []


def test_a_cancellation_promised_by_a_worker_that_died_holds(house: House) -> None:
    task_id, taken = house.processing()
    house.cancel(task_id)
    house.lease_runs_out(taken.number)

    assert ids(house.sweep().ended) == [task_id]
    assert house.view(task_id).state == "cancelled"


def test_the_holder_learns_when_all_that_it_runs_is_cancelled(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    first, second = house.members(microbatch)
    taken = house.take(microbatch)
    held = [(taken.number, taken.epoch)]

    house.cancel(first)
    assert house.beat("worker", held).cancelled == []
    house.cancel(second)
    assert house.beat("worker", held).cancelled == [taken.number]


def test_cancelling_twice_says_the_same_and_an_end_is_not_cancelled(house: House) -> None:
    task_id, microbatch = house.submit_one()
    assert [house.cancel(task_id), house.cancel(task_id)] == ["cancelled", "cancelled"]
    assert house.take(microbatch).verdict == "empty"

    completed, microbatch = house.submit_one()
    house.finish(microbatch)
    assert house.cancel(completed) == "ended"
    assert house.view(completed).state == "completed"
    assert house.cancel("never-was") == "gone"


def test_a_job_past_its_deadline_is_expired_rather_than_cancelled(house: House) -> None:
    task_id, _ = house.submit_one()
    house.deadline_passes(task_id)

    assert house.cancel(task_id) == "ended"
    assert house.view(task_id).state == "expired"


# --- Run again ---


def test_a_failed_job_runs_again_with_attempts_and_a_deadline_of_its_own(house: House) -> None:
    task_id = house.failed(attempts_max=1)

    assert house.replay(task_id) == ["replayed"]

    (microbatch,) = house.sweep().publish
    (member,) = house.take(microbatch).members
    assert (member.task_id, member.attempt, member.head.generation) == (task_id, 1, 2)
    assert member.head.deadline_at_ms - member.head.queued_at_ms == 600_000
    assert house.client.pttl(house.key(f"job:{task_id}")) == -1
    assert _letters(house).letters == []


def test_an_expired_job_runs_again(house: House) -> None:
    task_id, _ = house.submit_one()
    house.deadline_passes(task_id)
    house.sweep()

    assert house.replay(task_id) == ["replayed"]
    assert house.view(task_id).state == "queued"


def test_of_two_replays_at_once_one_runs(house: House) -> None:
    task_id = house.failed()
    head = house.store.run(commands.head_of(task_id))
    assert head is not None
    twice = commands.replay([(task_id, head), (task_id, head)], house.now_ms)

    assert house.store.run(twice) == ["replayed", "replayed"]  # as to one who asks again
    assert house.store.run(commands.replay([(task_id, head)], house.now_ms + 1)) == ["queued"]
    (microbatch,) = house.sweep().publish
    assert house.members(microbatch) == [task_id]


def test_only_what_failed_or_expired_runs_again(house: House) -> None:
    completed, microbatch = house.submit_one()
    house.finish(microbatch)
    waiting, _ = house.submit_one(model="x")
    cancelled, _ = house.submit_one(model="y")
    house.cancel(cancelled)

    assert [house.store.run(commands.head_of(each)) for each in (completed, waiting, cancelled)] == [None] * 3


def test_a_zombie_of_the_generation_before_changes_nothing(house: House) -> None:
    task_id, zombie = house.processing(attempts_max=1)
    house.deadline_passes(task_id)
    house.sweep()
    house.replay(task_id)

    assert house.end(zombie).ended == []
    assert house.view(task_id).state == "queued"


# --- Dead letters ---


def test_what_failed_is_a_dead_letter_with_all_that_is_known_of_it(house: House) -> None:
    task_id = house.failed("model-error", model="n", data=b"the input")

    (letter,) = _letters(house).letters

    assert (letter.task_id, letter.stage, letter.code, letter.attempt) == (task_id, "preprocess", "model-error", 1)
    assert (letter.head.model, letter.input_bytes) == ("n", 9)
    (whole,) = house.store.run(commands.dead_letters_of([task_id, "never-was"], with_input=True))
    assert whole.data == b"the input"


def test_what_completed_expired_or_was_cancelled_is_none(house: House) -> None:
    _, microbatch = house.submit_one()
    house.finish(microbatch)
    late, _ = house.submit_one()
    house.deadline_passes(late)
    house.sweep()
    cancelled, _ = house.submit_one(model="y")
    house.cancel(cancelled)

    assert _letters(house).letters == []


def test_dead_letters_are_listed_youngest_first_page_by_page(house: House) -> None:
    failed = [house.failed() for _ in range(5)]
    seen: list[str] = []
    cursor, pages = "", 0
    while cursor or not pages:
        page = _letters(house, most=2, cursor=cursor)
        seen += [each.task_id for each in page.letters]
        cursor, pages = page.cursor, pages + 1

    assert seen == failed[::-1]
    assert pages == 3


def test_a_list_is_filtered_by_model_stage_code_and_instant(house: House) -> None:
    first = house.failed("model-error", model="a")
    second = house.failed("internal", model="b")

    def found(**wanted: object) -> list[str]:
        return [each.task_id for each in _letters(house, **wanted).letters]

    assert found(model="a") == found(code="model-error") == [first]
    assert found(stage="preprocess") == [second, first]
    assert found(stage="inference") == found(since_ms=house.now_ms + 1_000) == []
    assert found(model="b", code="internal", since_ms=house.now_ms - 60_000) == [second]


def test_a_dropped_letter_loses_its_input_and_its_end_stays_readable(house: House) -> None:
    task_id = house.failed()

    assert house.store.run(commands.drop([task_id, "never-was"])) == 1

    assert _letters(house).letters == []
    assert house.view(task_id).state == "failed"
    assert 0 < house.client.pttl(house.key(f"job:{task_id}")) <= 3_600_000
    assert house.replay(task_id) == ["gone"]


def test_beyond_their_most_the_oldest_letter_loses_its_input(house: House) -> None:
    house.bound(dead_letters_max=2)
    failed = [house.failed() for _ in range(3)]

    assert [each.task_id for each in _letters(house).letters] == failed[:0:-1]
    assert house.client.hget(house.key(f"job:{failed[0]}"), "input") is None
    assert house.view(failed[0]).state == "failed"


def test_beyond_their_bytes_the_oldest_letters_lose_their_inputs(house: House) -> None:
    house.bound(dead_letters_bytes_max=2_500)
    small, large = [house.failed(data=b"x" * 600) for _ in range(3)], house.failed(data=b"x" * 1_500)

    assert [each.task_id for each in _letters(house).letters] == [large, small[-1]]
    assert house.replay(large) == ["replayed"]
    assert house.client.hgetall(house.key("dead-letter-bytes")).keys() == {small[-1].encode(), b"total"}
    assert house.store.run(commands.drop([small[-1]])) == 1
    assert not house.client.exists(house.key("dead-letter-bytes"))


def test_a_letter_larger_than_all_may_be_keeps_no_input(house: House) -> None:
    house.bound(dead_letters_bytes_max=500)
    failed = house.failed(data=b"x" * 600)

    assert _letters(house).letters == []
    assert house.view(failed).state == "failed"


def test_a_replay_that_is_asked_again_says_the_same(house: House) -> None:
    task_id = house.failed()
    head = house.store.run(commands.head_of(task_id))
    assert head is not None
    command = commands.replay([(task_id, head)], house.now_ms)

    assert [house.store.run(command) for _ in range(2)] == [["replayed"], ["replayed"]]
    assert house.view(task_id).state == "queued"


def test_a_letter_whose_record_is_gone_is_forgotten_by_the_sweeper(house: House) -> None:
    gone, stays = house.failed(), house.failed()
    house.client.delete(house.key(f"job:{gone}"))

    house.sweep()

    assert house.client.zrange(house.key("dead-letters"), 0, -1) == [stays.encode()]


# --- The retry budget ---


def _due_in_ms(house: House, task_id: str) -> float:
    return float(house.client.zscore(house.key("retries"), task_id)) - house.now_ms


def _retry(house: House, **given: object) -> str:
    task_id, taken = house.processing(**given)
    house.end(taken, [Outcome(task_id, Event.RETRY, code="internal", delay_ms=0)])
    return task_id


def test_beyond_the_budget_retries_wait_their_turn_ten_a_second(house: House) -> None:
    retries = [_retry(house) for _ in range(250)]

    assert _due_in_ms(house, retries[0]) <= 0
    assert _due_in_ms(house, retries[90]) <= 0
    assert 4_000 < _due_in_ms(house, retries[-1]) < 13_000  # 100 saved up, 10 a second beyond, less the credits
    assert _due_in_ms(house, _retry(house, model="another")) <= 0


def test_first_attempts_bring_the_next_retry_nearer(house: House) -> None:
    for _ in range(150):
        last = _retry(house)
    before = _due_in_ms(house, last)
    (microbatch,) = house.submit(*(house.job() for _ in range(64)))
    house.take(microbatch)

    assert _due_in_ms(house, _retry(house)) < before - 400


# --- What is given back ---


def test_a_stage_that_had_to_be_ended_gives_its_jobs_back_as_suspects(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    members = house.members(microbatch)

    made = house.release(house.take(microbatch), "failed", "timeout")

    assert [house.members(each) for each in made] == [members[:1]]
    taken = house.take(made[0])
    assert (taken.suspect, taken.members[0].attempt) == (True, 1)


def test_a_suspect_that_had_to_be_ended_is_charged_and_fails_at_its_last_attempt(house: House) -> None:
    task_id, taken = house.processing(attempts_max=1)
    (suspect,) = house.release(taken, "failed", "timeout")

    released = house.store.run(commands.release(house.take(suspect), "failed", "timeout"))

    assert ids(released.ended) == [task_id]
    assert (house.view(task_id).state, house.view(task_id).code) == ("failed", "timeout")


def test_what_comes_back_unharmed_too_often_is_charged(house: House) -> None:
    task_id, microbatch = house.submit_one(attempts_max=2)
    for _ in range(5):
        (microbatch,) = house.release(house.take(microbatch))
        assert house.view(task_id).attempt == 1

    (suspect,) = house.release(house.take(microbatch))

    assert house.take(suspect).members[0].attempt == 2


def test_what_comes_back_unharmed_leaves_the_cancelled_behind(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    stays, leaves = house.members(microbatch)
    taken = house.take(microbatch)
    assert house.store.run(commands.cancel(leaves)).verdict == "cancelling"

    released = house.store.run(commands.release(taken, "unharmed"))

    assert ids(released.ended) == [leaves]
    assert [member.task_id for member in house.take(released.publish[0]).members] == [stays]


def test_a_micro_batch_that_is_wholly_cancelled_does_not_come_back(house: House) -> None:
    task_id, microbatch = house.submit_one()
    taken = house.take(microbatch)
    house.store.run(commands.cancel(task_id))

    released = house.store.run(commands.release(taken, "unharmed"))

    assert (ids(released.ended), released.publish) == ([task_id], [])
    assert not house.client.exists(house.key(f"microbatch:{microbatch.number}"))


# --- A store that takes no writes ---


def test_an_end_can_be_read_while_the_store_refuses_every_write(house: House) -> None:
    task_id, microbatch = house.submit_one()
    house.finish(microbatch)
    house.client.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(StoreUnavailableError):
            house.submit_one()
        assert house.view(task_id).state == "completed"
    finally:
        house.client.config_set("min-replicas-to-write", 0)


# --- A store that is full ---


def test_a_full_store_refuses_submits_and_lets_workers_end_what_was_accepted(house: House) -> None:
    task_id, microbatch = house.submit_one()
    waiting = house.job(data=b"x" * 100_000)
    used = int(house.client.info("memory")["used_memory"])
    house.client.config_set("maxmemory", used - 1)
    try:
        with pytest.raises(StoreUnavailableError):
            house.submit(waiting)
        taken = house.take(microbatch)
        house.store.run(commands.keep("1-preprocess-1", b"x" * 1_000_000, 60))
        house.hand_on(taken)
        committed = house.finish(msgspec.structs.replace(microbatch, stage="inference"))
        house.beat("worker")
        assert house.sweep().turn
    finally:
        house.client.config_set("maxmemory", 0)

    assert ids(committed.ended) == [task_id]
    assert house.view(task_id).state == "completed"
    assert house.read(waiting.task_id) is None
