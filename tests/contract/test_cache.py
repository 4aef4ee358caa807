"""The result cache in the scripts: what is told again, for how long, and what is not. On the real servers."""

from __future__ import annotations

import pytest

from jobs.commands import Outcome
from jobs.states import Event
from jobs.submits import Note
from tests.contract.house import DOCUMENT, FAILURE, HOUR_MS, House


def _ages(house: House, ms: int, key: str = "c") -> None:
    """The answer under ``key`` was given longer ago."""
    task_id, since = house.client.hget(house.key("cache"), key).split()
    house.client.hset(house.key("cache"), key, b"%s %d" % (task_id, int(since) - ms))
    house.client.zincrby(house.key("cache-ends"), -ms, key)


def _note(house: House, **given: object) -> Note | None:
    """What becomes of a job that asks for the answer."""
    return house.write(house.job(**{"cache": "c", **given})).notes.get(0)  # type: ignore[arg-type]


def test_a_known_answer_is_told_at_once_and_no_job_is_made(house: House) -> None:
    answered = house.completed(cache="c")

    note = _note(house)

    assert note is not None
    assert (note.verdict, note.task_id, note.document) == ("hit", answered, DOCUMENT)
    assert house.look().open_jobs == 0


def test_an_answer_s_age_is_told_with_it(house: House) -> None:
    house.completed(cache="c")
    _ages(house, 5_000)

    note = _note(house)

    assert note is not None
    assert 5_000 <= note.age_ms < 8_000


def test_an_answer_is_told_to_its_own_key_alone(house: House) -> None:
    house.completed(cache="c")

    assert _note(house, cache="d") is None
    assert house.write(house.job()).notes == {}


def test_a_job_without_a_key_leaves_nothing_behind(house: House) -> None:
    house.finish(house.submit_one()[1])

    assert house.look().cached == 0


def test_an_answer_is_told_across_lanes(house: House) -> None:
    answered = house.completed(cache="c", lane="bulk")

    note = _note(house)

    assert note is not None
    assert note.task_id == answered


def test_an_answer_past_its_time_is_not_told_and_the_sweeper_forgets_it(house: House) -> None:
    house.completed(cache="c", fresh_ms=60_000)
    _ages(house, 60_001)

    assert _note(house) is None

    house.sweep()
    assert not house.client.exists(house.key("cache"), house.key("cache-ends"))


def test_an_answer_is_told_for_no_longer_than_its_record_is_kept(house: House) -> None:
    house.bound(retention_ms=60_000)
    house.completed(cache="c", fresh_ms=HOUR_MS)

    assert house.client.zscore(house.key("cache-ends"), "c") <= house.now_ms + 60_000


def test_an_answer_that_is_never_fresh_is_not_kept(house: House) -> None:
    house.completed(cache="c", fresh_ms=0)

    assert house.look().cached == 0


def test_who_wants_a_new_answer_gets_one_and_it_replaces_the_known_one(house: House) -> None:
    house.completed(cache="c")

    newer = house.completed(cache="c", refresh=True)

    note = _note(house)
    assert note is not None
    assert note.task_id == newer
    assert house.look().cached == 1


def test_an_answer_whose_record_is_gone_is_a_miss(house: House) -> None:
    house.client.delete(house.key(f"job:{house.completed(cache='c')}"))

    assert _note(house) is None


def test_beyond_the_most_the_answer_that_would_end_first_goes_and_is_counted(house: House) -> None:
    house.bound(cache_max=2)
    house.completed(cache="long", fresh_ms=2_000_000)
    house.completed(cache="short", fresh_ms=1_000_000)
    house.completed(cache="longest", fresh_ms=3_000_000)

    assert house.client.hkeys(house.key("cache")) == [b"long", b"longest"]
    seen = house.look()
    assert (seen.cached, seen.evicted) == (2, 1)


def _fails(house: House, code: str, document: bytes = FAILURE) -> str:
    return house.failed(code, document, cache="c")


@pytest.mark.parametrize("code", ["invalid-input", "model-error"])
def test_a_failure_that_every_such_job_would_meet_is_told_again_for_ten_seconds(house: House, code: str) -> None:
    failed = _fails(house, code)

    note = _note(house)

    assert note is not None
    assert (note.verdict, note.task_id, note.document) == ("hit", failed, FAILURE)
    _ages(house, 10_001)
    assert _note(house) is None


@pytest.mark.parametrize("code", ["internal", "out-of-memory", "timeout", "worker-lost", "model-unavailable"])
def test_a_failure_that_another_attempt_may_not_meet_is_not_told_again(house: House, code: str) -> None:
    _fails(house, code)

    assert _note(house) is None


def test_a_failure_is_told_for_no_longer_than_a_result_would_be(house: House) -> None:
    house.failed("model-error", cache="c", fresh_ms=2_000)
    _ages(house, 2_001)

    assert _note(house) is None


def test_a_failure_that_is_run_again_is_no_answer(house: House) -> None:
    house.replay(_fails(house, "model-error"))

    assert _note(house) is None


def test_cancelled_and_expired_jobs_leave_no_answer(house: House) -> None:
    cancelled, _ = house.submit_one(cache="c")
    house.cancel(cancelled)
    expired, _ = house.submit_one(cache="d")
    house.deadline_passes(expired)
    house.sweep()

    assert house.look().cached == 0


def test_a_promised_cancellation_leaves_no_answer(house: House) -> None:
    task_id, taken = house.processing(cache="c")
    house.cancel(task_id)

    house.end(taken, [Outcome(task_id, Event.COMPLETE, DOCUMENT)])

    assert house.look().cached == 0
