"""What holds in the store after every step, whatever happened: the ledger's word, and the laws of the keys."""

from __future__ import annotations

import re

from jobs.states import State
from tests.contract.life.clockwork import CLOCK
from tests.contract.life.entries import Batch, Job
from tests.contract.life.ledger import Ledger
from tests.contract.life.snapshot import NO_TTL, Snapshot, StoredBatch

LASTING = re.compile(
    r"(line|lines|turns|suspects|suspects-live|live|bulk-live|cost|pace|slots):.+|retries|retry-turns|dead-letters"
    rf"|deadlines|pools|seen|dead-letter-bytes|sequence|workers|workers-seen|open|paced|since-bulk|{CLOCK}"
)
"""Keys that have no TTL, as docs/store.md lists them."""


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
    _waiting_lines_have_turns(snapshot)
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
        assert stored.promised == job.promised


def _job_is_in_one_place(job: Job, snapshot: Snapshot) -> None:
    """Never lost, never in two places; and what ended waits nowhere."""
    places = snapshot.places.get(job.task_id, [])
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


def _waiting_lines_have_turns(snapshot: Snapshot) -> None:
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
        elif family in {"microbatch", "sweeper"}:
            assert ttl_ms > 0, f"{key} has no TTL"
        else:
            assert LASTING.fullmatch(key), f"{key} is in no list"
            assert ttl_ms == NO_TTL
