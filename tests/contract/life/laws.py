"""What holds in the store after every step, whatever happened: the ledger's word, and the laws of the keys."""

from __future__ import annotations

import re
from collections import Counter

from jobs.states import State
from tests.contract.life.clockwork import CLOCK
from tests.contract.life.entries import Batch, Job
from tests.contract.life.ledger import Ledger
from tests.contract.life.snapshot import NO_TTL, Snapshot, StoredBatch

LASTING = re.compile(
    r"(line|lines|turns|suspects|suspects-live|live|bulk-live|followers|landed|cost|pace|slots):.+|retries|retry-turns"
    r"|dead-letters|dead-letter-bytes|deadlines|pools|seen|sequence|workers|workers-seen|open|rates|flights|landed"
    rf"|cache|cache-ends|cache-evictions|paced|paused|since-bulk|{CLOCK}"
)
"""Keys that have no TTL, as docs/store.md lists them."""
REMAINS = re.compile(
    r"(cost|pace|slots):.+|pools|seen|sequence|workers|workers-seen|paced|rates|retry-turns|cache-evictions|since-bulk"
    rf"|sweeper|{CLOCK}"
)
"""Keys that may be there when all jobs are past their retention."""


def check(ledger: Ledger, snapshot: Snapshot) -> None:
    """All laws."""
    for job in ledger.jobs.values():
        if not job.forgotten:
            _job_is_as_the_ledger_says(job, snapshot)
            _job_is_in_one_place(job, snapshot)
            _takes_are_bounded(job)
    _window_is_as_the_ledger_says(ledger, snapshot)
    _suspects_run_one_at_a_time(ledger, snapshot)
    _open_jobs_have_deadlines(ledger, snapshot)
    _open_jobs_are_counted(ledger, snapshot)
    _followers_have_a_leader(ledger, snapshot)
    _answers_are_as_the_ledger_says(ledger, snapshot)
    _waiting_lines_have_turns(snapshot)
    _bulk_is_known(ledger, snapshot)
    _ended_records_do_not_change(ledger, snapshot)
    _keys_have_their_ttl(ledger, snapshot)


def _job_is_as_the_ledger_says(job: Job, snapshot: Snapshot) -> None:
    stored = snapshot.jobs[job.task_id]
    assert snapshot.state(job.task_id) is job.state, (
        f"{job.task_id} is {snapshot.state(job.task_id)}, not {job.state}"
    )
    if job.state is State.COMPLETED:
        return  # nothing but its document is left
    assert (stored.attempt, stored.deadline, stored.line) == (job.attempt, str(job.deadline), job.line)
    assert stored.attempt <= job.limit
    assert stored.has_input == job.has_input
    if job.is_open:
        assert (stored.promised, stored.follows) == (job.promised, job.follows)
        assert (stored.tenant, stored.cache) == (job.tenant, job.cache)


def _job_is_in_one_place(job: Job, snapshot: Snapshot) -> None:
    """Never lost, never in two places; and what ended waits nowhere."""
    places = snapshot.places.get(job.task_id, [])
    if job.place != "landed":  # who ended before the answer was told is passed over when it is
        places = [place for place in places if place != "landed"]
    assert places == ([job.number or job.place] if job.is_open else []), f"{job.task_id} is in {places}"
    if job.place == "line":
        assert job.task_id in snapshot.family("line")[job.line]
    if job.place == "suspects":
        assert job.task_id in snapshot.family("suspects")[job.line.split("/")[0]]
    if job.number:
        assert job.task_id in snapshot.batches[job.number].members


def _takes_are_bounded(job: Job) -> None:
    assert job.takes_left >= 0, f"{job.task_id} was given to a worker once more without a reason"
    assert job.takes <= job.takes_max


def _window_is_as_the_ledger_says(ledger: Ledger, snapshot: Snapshot) -> None:
    assert snapshot.batches == {number: _stored(batch) for number, batch in ledger.batches.items()}
    live = {number for pool in snapshot.family("live").values() for number in pool}
    assert live == set(snapshot.batches)
    for pool, numbers in snapshot.family("live").items():
        assert all(ledger.batches[number].pool == pool for number in numbers)


def _stored(batch: Batch) -> StoredBatch:
    holder, until = (batch.lease.holder, batch.lease.until) if batch.lease else ("", 0)
    words = batch.line, batch.stage, batch.sequence
    return StoredBatch(*words, batch.epoch, holder, until, batch.suspect, tuple(batch.members))


def _suspects_run_one_at_a_time(ledger: Ledger, snapshot: Snapshot) -> None:
    suspects = [batch for batch in ledger.batches.values() if batch.suspect]
    assert len({batch.pool for batch in suspects}) == len(suspects)
    listed = {key: numbers for key, numbers in snapshot.sets.items() if key.startswith("suspects-live:")}
    assert listed == {f"suspects-live:{batch.pool}": {batch.number} for batch in suspects}


def _open_jobs_have_deadlines(ledger: Ledger, snapshot: Snapshot) -> None:
    assert snapshot.sorted_sets.get("deadlines", {}) == {job.task_id: job.deadline for job in ledger.open_jobs()}


def _open_jobs_are_counted(ledger: Ledger, snapshot: Snapshot) -> None:
    counted = Counter(job.tenant for job in ledger.open_jobs())
    assert snapshot.hashes.get("open", {}) == {tenant: str(count) for tenant, count in counted.items()}


def _followers_have_a_leader(ledger: Ledger, snapshot: Snapshot) -> None:
    """Which is open and leads their flight; or it has completed, and they are yet to be told."""
    flights = snapshot.hashes.get("flights", {})
    assert flights == {name: job.task_id for name, job in ledger.flights.leaders.items()}
    for leader in ledger.flights.leaders.values():
        assert leader.is_open
        assert not leader.follows
    followers = snapshot.family("followers")
    assert {name: list(each) for name, each in followers.items()} == {
        name: [job.task_id for job in jobs] for name, jobs in ledger.flights.followers.items()
    }
    assert set(followers) <= set(flights), "nobody leads them"
    for leader_id, jobs in ledger.flights.landed.items():
        assert {job.task_id for job in jobs} <= set(snapshot.family("landed")[leader_id])
        assert leader_id in snapshot.sets.get("landed", ()), f"nobody tells the followers of {leader_id}"


def _answers_are_as_the_ledger_says(ledger: Ledger, snapshot: Snapshot) -> None:
    known = ledger.answers.known
    stored = {cache: f"{each.task_id} {each.since}" for cache, each in known.items()}
    assert snapshot.hashes.get("cache", {}) == stored
    assert snapshot.sorted_sets.get("cache-ends", {}) == {cache: each.until for cache, each in known.items()}


def _bulk_is_known(ledger: Ledger, snapshot: Snapshot) -> None:
    bulk = {batch.number for batch in ledger.batches.values() if "/bulk/" in batch.line}
    assert {number for key, each in snapshot.sets.items() if key.startswith("bulk-live:") for number in each} == bulk


def _waiting_lines_have_turns(snapshot: Snapshot) -> None:
    for key in snapshot.hashes:
        family, _, line = key.partition(":")
        assert family != "turns" or line in snapshot.family("line"), f"the tenants of {line} are not forgotten"
    for line in snapshot.family("line"):
        pool, lane, *_ = line.split("/")
        assert line in snapshot.sorted_sets[f"lines:{pool}:{lane}"], f"nobody looks at {line}"


def _ended_records_do_not_change(ledger: Ledger, snapshot: Snapshot) -> None:
    """Terminal states absorb; only a dropped dead letter loses its input."""
    for job in ledger.jobs.values():
        if not job.is_open and not job.forgotten:
            found = snapshot.jobs[job.task_id].digest
            job.digest = job.digest or found
            assert found == job.digest, f"the record of {job.task_id} changed after its end"


def _keys_have_their_ttl(ledger: Ledger, snapshot: Snapshot) -> None:
    for key, ttl_ms in snapshot.ttls_ms.items():
        family, _, name = key.partition(":")
        if family == "job" and (job := ledger.jobs[name]).is_open:
            assert ttl_ms == NO_TTL, f"{key} has a TTL"
        elif family == "job":
            left_ms = job.gone_at - ledger.now
            assert left_ms - ledger.slack_ms <= ttl_ms <= max(left_ms, 1), (
                f"{key} has a TTL of {ttl_ms} ms, not {left_ms}"
            )
        elif family == "idempotency":
            left_ms = ledger.answers.keys[name][1] - ledger.now
            assert left_ms - ledger.slack_ms <= ttl_ms <= max(left_ms, 1)
        elif family in {"microbatch", "sweeper"}:
            assert ttl_ms > 0, f"{key} has no TTL"
        else:
            assert LASTING.fullmatch(key), f"{key} is in no list"
            assert ttl_ms == NO_TTL


def check_remains(snapshot: Snapshot) -> None:
    """When everything has ended and is past its retention."""
    assert [key for key in snapshot.ttls_ms if not REMAINS.fullmatch(key)] == []
