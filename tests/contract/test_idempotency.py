"""Idempotency keys in the scripts: the answer is written with the job, or there is neither. On the real servers."""

from __future__ import annotations

import pytest

from jobs.idempotency import FINGERPRINT_BYTES
from jobs.records import Job
from jobs.submits import Note, Submitted, kept
from tests.contract.house import DOCUMENT, House


def _kept(job: Job) -> bytes:
    assert job.idempotency is not None
    return job.idempotency.kept


def _verdicts(submitted: Submitted) -> list[str]:
    return [note.verdict for note in submitted.notes.values()]


def test_a_key_that_came_before_is_told_what_was_kept_and_makes_no_second_job(house: House) -> None:
    first, second = house.job(key="k"), house.job(key="k")
    assert house.write(first).notes == {}

    assert house.write(second).notes == {0: Note("replayed", kept=_kept(first))}

    assert house.read(second.task_id) is None
    assert house.look().open_jobs == 1


def test_what_is_kept_can_be_asked_for_without_a_job(house: House) -> None:
    job = house.job(key="k")
    assert job.idempotency is not None
    assert house.store.run(kept(job.idempotency.name)) == b""

    house.write(job)

    assert house.store.run(kept(job.idempotency.name)) == _kept(job)


def test_fifty_with_one_key_in_one_call_make_one_job(house: House) -> None:
    jobs = house.jobs(50, key="k")

    submitted = house.write(*jobs)

    assert submitted.notes == {place: Note("replayed", kept=_kept(jobs[0])) for place in range(1, 50)}
    assert house.look().open_jobs == 1


def test_fifty_with_one_key_in_fifty_calls_make_one_job(house: House) -> None:
    verdicts = [_verdicts(house.write(job)) for job in house.jobs(50, key="k")]

    assert verdicts == [[]] + [["replayed"]] * 49
    assert house.look().open_jobs == 1


def test_other_keys_and_none_make_jobs_of_their_own(house: House) -> None:
    submitted = house.write(house.job(key="a"), house.job(key="b"), house.job(), house.job())

    assert submitted.notes == {}
    assert house.look().open_jobs == 4


def test_a_gateway_that_asks_again_because_its_connection_broke_is_not_replayed(house: House) -> None:
    job = house.job(key="k")
    house.write(job)

    assert house.write(job).notes == {}

    assert house.look().open_jobs == 1


def test_a_key_is_answered_while_the_job_runs_and_after_it_has_ended(house: House) -> None:
    job = house.job(key="k")
    (microbatch,) = house.submit(job)
    house.take(microbatch)
    running = house.write(house.job(key="k"))
    house.cancel(job.task_id)
    house.lease_runs_out(microbatch.number)
    house.sweep()
    assert house.view(job.task_id).state == "cancelled"

    ended = house.write(house.job(key="k"))

    assert running.notes == ended.notes == {0: Note("replayed", kept=_kept(job))}


def test_a_refused_job_takes_no_key(house: House) -> None:
    house.set_tenant("acme", open_max=1)
    first, refused = house.job(), house.job(key="k")
    assert _verdicts(house.write(first, refused)) == ["open"]
    assert not house.client.keys(house.key("idempotency:*"))

    house.cancel(first.task_id)

    assert house.write(refused).notes == {}
    assert _verdicts(house.write(house.job(key="k"))) == ["replayed"]


def test_a_key_is_kept_for_its_time_and_is_free_again_after_it(house: House) -> None:
    house.bound(idempotency_ms=60_000)
    house.write(house.job(key="k"))
    key = house.key("idempotency:k")
    assert 59_000 < house.client.pttl(key) <= 60_000

    house.client.delete(key)  # as its TTL does

    assert house.write(house.job(key="k")).notes == {}


def test_a_replay_does_not_make_the_key_last_longer(house: House) -> None:
    house.write(house.job(key="k"))
    house.client.pexpire(house.key("idempotency:k"), 1_000)

    house.write(house.job(key="k"))

    assert house.client.pttl(house.key("idempotency:k")) <= 1_000


def test_under_the_key_of_a_cache_hit_lies_the_request_s_fingerprint_and_who_has_the_answer(house: House) -> None:
    answered = house.completed(cache="c")
    hit = house.job(key="k", cache="c")
    assert _verdicts(house.write(hit)) == ["hit"]

    (note,) = house.write(house.job(key="k", cache="c")).notes.values()

    assert note == Note("replayed", kept=_kept(hit)[:FINGERPRINT_BYTES] + answered.encode())
    assert house.view(answered).document == DOCUMENT


@pytest.mark.parametrize("refresh", [False, True])
def test_the_key_is_looked_at_before_the_cache(house: House, refresh: bool) -> None:  # noqa: FBT001 - a case
    house.completed(cache="c")
    first = house.job(key="k")
    house.write(first)

    assert house.write(house.job(key="k", cache="c", refresh=refresh)).notes == {
        0: Note("replayed", kept=_kept(first))
    }
