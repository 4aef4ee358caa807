"""What must be true of every job, kept beside the store in plain Python.

The ledger knows three things of its own: the table of ``jobs.states``, who holds which lease, and what the docs
promise (docs/architecture.md, docs/decisions). From these it foretells the verdict of each command and the state of
each job after it. One thing it does not foretell: which of the waiting jobs a script puts into the window. That it
learns from the store (``adopt``), and ``laws`` says what is allowed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from jobs.commands import (
    Beaten,
    Cancelled,
    Committed,
    Doubtful,
    Ended,
    Handover,
    MicroBatch,
    Outcome,
    Released,
    Swept,
    Taken,
    View,
)
from jobs.errors import shared_failures
from jobs.looks import Seen
from jobs.records import Head, encode_head
from jobs.records import Job as Asked
from jobs.states import Event, State, move
from jobs.store import Flow
from jobs.submits import Note, Submitted
from jobs.tenants import Tenant
from tests.contract.life.answers import FAILURE_FRESH_MS, Answers
from tests.contract.life.entries import RETURNS_MAX, Batch, Job, Lease
from tests.contract.life.flights import FOLLOWERS_AT_ONCE, Flights
from tests.contract.life.quotas import Quotas
from tests.contract.life.snapshot import Snapshot

LOST_AFTER_MS = 2_000
WORKER_TTL_MS = 15_000
PAUSE_MS = 2_000
"""Without a sweep for longer, the store may have been away: each lease that ran out is spared once."""
DEAD_LETTERS_LOOK = 10
SLACK_MS = 100
SHARED = shared_failures()


class Ledger:
    """One method for each command, called with the command's reply; the instant is ``now``."""

    def __init__(self, now: int, flow: Flow, tenants: Mapping[str, Tenant]) -> None:
        self.now = now
        self._began = time.monotonic()
        self.jobs: dict[str, Job] = {}
        self.batches: dict[str, Batch] = {}
        self.seen: dict[str, int] = {}
        self.received: dict[str, int] = {}
        self.letters: list[str] = []
        self.sequence = 0
        self.sweeper = ("", 0)
        """Who sweeps, and until when."""
        self.swept_at: int | None = None
        """When somebody swept last."""
        self.ends: list[tuple[str, State]] = []
        """The jobs that this step ended."""
        self.announced: list[str] = []
        """The jobs that the steps before ended, in no order within a step."""
        self.paused: set[str] = set()
        self.flights = Flights()
        self.answers = Answers(flow.idempotency_ms, flow.cache_max, flow.retention_ms)
        self._quotas = Quotas()
        self._tenants = tenants
        self._to_tell = FOLLOWERS_AT_ONCE
        """How many followers this step may yet tell an answer."""
        self._fresh: list[Batch] = []
        self._flow = flow

    @property
    def slack_ms(self) -> int:
        """How far TTLs may have run ahead: they run on the server's clock too, for as long as the example takes."""
        return int((time.monotonic() - self._began) * 1000) + SLACK_MS

    # --- what gateways do ---

    def submitted(self, jobs: Sequence[Asked], reply: Submitted) -> None:
        told = {place: self._submitted(job) for place, job in enumerate(jobs) if job.task_id not in self.jobs}
        assert reply.notes == {place: note for place, note in told.items() if note}
        rated = {job.head.tenant for job in jobs if self._tenant(job.head.tenant).rate}
        assert reply.left == {name: self._quotas.left(self._tenant(name), self.now) for name in rated}
        self._published(reply.publish)

    def _submitted(self, asked: Asked) -> Note | None:
        """What becomes of a job that is asked for the first time, or was not written when it was."""
        if kept := self.answers.kept(asked.idempotency):
            return Note("replayed", kept=kept)
        if known := self._recalled(asked):
            self.answers.keep(asked.idempotency, self.now, known.task_id)
            return known
        tenant = self._tenant(asked.head.tenant)
        open_jobs = sum(job.tenant == tenant.name for job in self.open_jobs())
        if refusal := self._quotas.refusal(tenant, open_jobs, self.now):
            return refusal
        self.answers.keep(asked.idempotency, self.now)
        return self._written(asked)

    def _recalled(self, asked: Asked) -> Note | None:
        """A known answer to this very key."""
        terms = asked.cache
        known = self.answers.recall(terms.key.decode(), self.now) if terms and not terms.refresh else None
        job = self.jobs[known.task_id] if known else None
        if not known or not job or job.forgotten or job.is_open or not job.document:
            return None
        return Note("hit", task_id=job.task_id, document=job.document, age_ms=max(0, self.now - known.since))

    def _written(self, asked: Asked) -> Note | None:
        head, terms = asked.head, asked.cache
        job = Job(asked.task_id, asked.line, head.deadline_at_ms, head.attempts_max, encode_head(head), head.tenant)
        self.jobs[job.task_id] = job
        if terms:
            job.cache, job.fresh_ms = terms.key.decode(), terms.fresh_ms
        joins = self.flights.join(job, self.now, may_follow=not (terms and terms.refresh))
        return Note("joined") if joins else None

    def _tenant(self, name: str) -> Tenant:
        return self._tenants.get(name) or Tenant(name)

    def looked(self, seen: Seen) -> None:
        """A look tells what is so."""
        counted = Counter(job.tenant for job in self.open_jobs())
        assert (seen.now_ms, seen.open_jobs, seen.open_by_tenant) == (self.now, counted.total(), counted)
        assert seen.paused == frozenset(self.paused)
        assert (seen.cached, seen.evicted) == (len(self.answers.known), self.answers.evicted)

    def cancelled(self, task_id: str, reply: Cancelled) -> None:
        assert reply.verdict == self._cancel(self.jobs[task_id])
        self._check_ends(reply.ended)

    def _cancel(self, job: Job) -> str:
        if job.forgotten:
            return "gone"
        batch = self.batches.get(job.number)
        if job.is_open and job.deadline <= self.now:
            self._leave(job, Event.EXPIRE)
        elif job.is_open and batch and batch.lease:
            job.promised = True
            batch.all_cancelled = all(each.promised for each in self._open(batch))
            return "cancelling"
        elif job.is_open:
            self._leave(job, Event.CANCEL)
        return "cancelled" if job.state is State.CANCELLED else "ended"

    def read(self, task_ids: Sequence[str], views: Sequence[View | None]) -> None:
        for task_id, view in zip(task_ids, views, strict=True):
            job = self.jobs[task_id]
            late = job.is_open and job.deadline <= self.now
            if late:
                self._leave(job, Event.EXPIRE)
            assert (view is None) == job.forgotten
            if view is not None:
                self._viewed(job, view, late=late)

    def _viewed(self, job: Job, view: View, *, late: bool) -> None:
        """A follower is where its leader is, and has the document of the one that it joined."""
        source = self.jobs[job.joined] if job.joined else job
        shown = self.flights.leader_of(job) or job
        assert (view.state, view.ended_here) == (shown.state, late)
        assert view.document == (b"" if source.forgotten else source.document)
        if view.head:
            assert (view.attempt, view.head.generation) == (job.attempt, job.generation)
        if job.is_open:
            assert view.head
            assert encode_head(view.head) == job.head

    def replayed(self, task_id: str, verdict: str, again: Head) -> None:
        job = self.jobs[task_id]
        if job.forgotten or (job.can_replay and not job.has_input):
            assert verdict == "gone"
            return
        is_asked_again = job.is_open and job.head == encode_head(again)
        assert verdict == ("replayed" if job.can_replay or is_asked_again else _stored(job.state))
        if job.can_replay:
            self._move(job, Event.REPLAY)
            self._open_generation(job, again)

    def _open_generation(self, job: Job, again: Head) -> None:
        job.generation, job.head = again.generation, encode_head(again)
        job.deadline, job.place, job.attempt, job.promised = again.deadline_at_ms, "line", 1, False
        job.takes_left, job.takes, job.forgiven = 1, 0, 0
        job.cache, job.document, job.joined = "", b"", ""
        if job.task_id in self.letters:
            self.letters.remove(job.task_id)

    def dropped(self, task_id: str, count: int) -> None:
        assert count == int(task_id in self.letters)
        if count:
            self.letters.remove(task_id)
            self._drop(self.jobs[task_id])

    def swept(self, name: str, lease_ms: int, reply: Swept) -> None:
        other, until = self.sweeper
        if other != name and abs(until - self.now) > self.slack_ms:
            assert reply.turn == (until < self.now), "two sweep at once, or none"
        if reply.turn:
            paused = self.swept_at is None or self.now - self.swept_at > PAUSE_MS
            self.sweeper, self.swept_at = (name, self.now + lease_ms), self.now
            self._swept(reply, paused=paused)

    def _swept(self, reply: Swept, *, paused: bool) -> None:
        self._sweep_jobs()
        self._sweep_workers(forget=not paused)
        lost = [each for each in self.batches.values() if each.lease and each.lease.until <= self.now]
        for batch in [each for each in lost if paused and each.spared != each.epoch]:
            assert batch.lease
            batch.lease.until, batch.spared = self.now + batch.lease.granted * 3 // 4, batch.epoch
            lost.remove(batch)
        order = [each.task_id for each in reply.ended]  # in which order they are looked at is the store's to choose
        for batch in sorted(lost, key=lambda each: min(map(order.index, set(each.members) & set(order)), default=0)):
            self._recover(batch, charged=self._is_charged(batch))
        assert reply.recovered == len(lost)
        numbers = [each.number for each in reply.publish] + [each.number for each in reply.doubtful]
        for found in (self.batches[number] for number in numbers if number in self.batches):
            assert found.lease is None
            assert self.now >= found.published + LOST_AFTER_MS
        self._overtaken([self.batches[each.number] for each in reply.publish if each.number in self.batches])
        self._check_ends(reply.ended)
        self._published(reply.publish)

    def _sweep_jobs(self) -> None:
        for job in self.jobs.values():
            if job.is_open and job.deadline <= self.now:
                self._leave(job, Event.EXPIRE)
            elif job.place == "retries" and job.due <= self.now:
                job.place = "line"
        for leader_id in list(self.flights.landed):
            self._tell(self.jobs[leader_id], len(self.jobs))
        self.answers.swept(self.now)

    def _sweep_workers(self, *, forget: bool) -> None:
        if forget:
            self.seen = {holder: at for holder, at in self.seen.items() if at > self.now - WORKER_TTL_MS}
        oldest = self.letters[:DEAD_LETTERS_LOOK]
        self.letters = [each for each in self.letters if each not in oldest or not self.jobs[each].forgotten]

    def _overtaken(self, batches: Iterable[Batch]) -> None:
        """The sweeper itself publishes again only what a younger message overtook."""
        for batch in batches:
            assert self.received.get(batch.queue, 0) > batch.published

    def republished(self, lost: Sequence[Doubtful], publish: Sequence[MicroBatch]) -> None:
        """Those that nobody took, and nobody published again, since they were doubted."""
        waiting = {each.number: each.sequence for each in self.batches.values() if each.lease is None}
        expected = [
            number
            for number, sequence in dict.fromkeys((each.number, each.sequence) for each in lost)
            if waiting.get(number) == sequence
        ]
        assert [each.number for each in publish] == expected
        self._published(publish)

    # --- what workers do ---

    def took(self, message: MicroBatch, holder: str, lease_ms: int, reply: Taken) -> None:
        assert reply.verdict == self._verdict(message)
        batch = self.batches.get(message.number)
        if batch and reply.verdict in {"held", "taken", "empty"}:
            self.received[batch.queue] = max(self.received.get(batch.queue, 0), batch.published)
        if batch and reply.verdict in {"taken", "empty"}:
            self._start(batch, reply)
        if batch and reply.verdict == "taken":
            batch.epoch += 1
            batch.lease = Lease(holder, self.now + lease_ms, lease_ms)
            assert (reply.epoch, reply.line, reply.suspect) == (batch.epoch, batch.line, batch.suspect)
        if reply.verdict == "empty":
            del self.batches[message.number]
        self._check_ends(reply.ended)
        self._published(reply.publish)

    def _verdict(self, message: MicroBatch) -> str:
        batch = self.batches.get(message.number)
        if batch is None:
            return "gone"
        if batch.sequence != message.sequence:
            return "superseded"
        if batch.stage != message.stage:
            return "passed"
        if batch.lease:
            return "held"
        return "taken" if any(self._may_run(job) for job in self._open(batch)) else "empty"

    def _may_run(self, job: Job) -> bool:
        return job.is_open and not job.promised and job.deadline > self.now

    def _start(self, batch: Batch, reply: Taken) -> None:
        given = [job for job in self._open(batch) if self._may_run(job)]
        places = [batch.members.index(job.task_id) for job in given]
        assert [(each.task_id, each.attempt, each.place) for each in reply.members] == [
            (job.task_id, job.attempt, place) for job, place in zip(given, places, strict=True)
        ]
        for job in self._open(batch):
            if job not in given:
                self._leave(job, Event.EXPIRE)
        for job in given:
            self._move(job, Event.START)
            job.takes += batch.stage == "preprocess"
            job.takes_left -= batch.stage == "preprocess"

    def committed(self, taken: Taken, handover: Handover, outcomes: Sequence[Outcome], reply: Committed) -> None:
        batch = self.held(taken)
        assert reply.held == (batch is not None)
        if batch is None:
            assert (reply.publish, reply.ended, reply.goes_on) == ([], [], False)
            return
        for outcome in outcomes:
            if (job := self.jobs[outcome.task_id]) in self._open(batch):
                self._leave(job, outcome.event, outcome.code, outcome.document)
        for job in self._open(batch):
            if job.promised:
                self._leave(job, Event.CANCEL)
        assert reply.goes_on == bool(handover.following and handover.going_on)
        if handover.following and handover.going_on:
            batch.stage, batch.members = handover.following, list(handover.going_on)
            batch.lease, batch.published = None, self.now
        else:
            del self.batches[batch.number]
        self._check_ends(reply.ended)
        self._published(reply.publish)

    def released(self, taken: Taken, how: Literal["unharmed", "failed"], reply: Released) -> None:
        batch = self.held(taken)
        if batch is None:
            assert (reply.publish, reply.ended) == ([], [])
            return
        batch.returned += 1
        if how == "failed" or batch.returned > RETURNS_MAX:
            self._recover(batch, charged=batch.suspect or how == "unharmed", code="internal")
        else:
            self._return(batch, reply)
        self._check_ends(reply.ended)
        self._published(reply.publish)

    def _return(self, batch: Batch, reply: Released) -> None:
        """It starts again at preprocess, unless a promised cancellation was the last open job."""
        batch.stage, batch.lease = "preprocess", None
        for job in self._open(batch):
            job.takes_left += 1
            if job.promised:
                self._leave(job, Event.CANCEL)
        if any(True for _ in self._open(batch)):
            assert [each.number for each in reply.publish] == [batch.number]
        else:
            del self.batches[batch.number]

    def beaten(self, holder: str, held: Sequence[tuple[str, int]], lease_ms: int, reply: Beaten) -> None:
        self.seen[holder] = self.now
        lost, cancelled = [], []
        for number, epoch in held:
            batch = self.batches.get(number)
            if batch is None or batch.lease is None or (batch.epoch, batch.lease.holder) != (epoch, holder):
                lost.append(number)
                continue
            batch.lease.until = self.now + lease_ms
            if batch.all_cancelled:
                cancelled.append(number)
        assert (reply.now_ms, reply.lost, reply.cancelled) == (self.now, lost, cancelled)

    def left(self, holder: str) -> None:
        self.seen.pop(holder, None)

    # --- time, and what the store chose ---

    def passed(self, ms: int) -> None:
        self.now += ms

    def step_ends(self) -> None:
        """What this step ended is told, and must not be told again."""
        self.announced += [task_id for task_id, _ in self.ends]
        self.ends.clear()
        self._to_tell = FOLLOWERS_AT_ONCE

    def vanishing(self) -> bool:
        """Whether a record is at the very end of its TTL: the server may delete it at any moment."""
        return any(not job.is_open and not job.forgotten and job.gone_at <= self.now for job in self.jobs.values())

    def adopt(self, snapshot: Snapshot) -> None:
        """Learn which jobs the new micro-batches carry, when retries are due, and which records are gone by now."""
        for batch in self._fresh:
            stored = snapshot.batches[batch.number]
            batch.suspect, batch.members = stored.suspect, list(stored.members)
            self._embark(batch)
        self._fresh.clear()
        due = snapshot.sorted_sets.get("retries", {})
        for job in self.jobs.values():
            if job.place == "retries":
                job.due = due[job.task_id]
            if job.task_id not in snapshot.jobs and not job.forgotten:
                assert not job.is_open, f"{job.task_id} is lost"
                assert self.now >= job.gone_at - self.slack_ms, f"{job.task_id} is gone too early"
                job.forgotten = True
        self.answers.adopt(snapshot.keys, self.now, self.slack_ms)
        order = list(snapshot.sorted_sets.get("dead-letters", {}))
        assert sorted(order) == sorted(self.letters)
        self.letters = order

    def _embark(self, batch: Batch) -> None:
        assert batch.members
        assert batch.line.split("/")[2] not in self.paused, "a paused model runs"
        for job in (self.jobs[task_id] for task_id in batch.members):
            assert (job.line, job.place) == (batch.line, "suspects" if batch.suspect else "line")
            job.place, job.number = "window", batch.number
        assert len(batch.members) == 1 or not batch.suspect, "a suspect in company"

    # --- what several commands do ---

    def _open(self, batch: Batch) -> list[Job]:
        """The jobs that travel in it; one that ended, and was perhaps replayed since, does not."""
        members = (self.jobs[task_id] for task_id in batch.members)
        return [job for job in members if job.is_open and job.number == batch.number]

    def _is_charged(self, batch: Batch) -> bool:
        """A suspect, whose holder gave no sign of life for half a lease."""
        assert batch.lease
        seen = self.seen.get(batch.lease.holder, 0)
        return batch.suspect and seen < self.now - batch.lease.granted / 2

    def _recover(self, batch: Batch, *, charged: bool, code: str = "worker-lost") -> None:
        for job in self._open(batch):
            last = charged and job.attempt >= job.limit
            job.forgiven += batch.suspect and not charged
            self._leave(job, Event.FAIL if last else Event.LOSE, code)
            job.attempt += charged and job.is_open
        del self.batches[batch.number]

    def _leave(self, job: Job, event: Event, code: str = "", document: bytes = b"") -> None:
        """The job leaves where it is; one whose cancellation was promised is cancelled, whatever happens."""
        event = Event.CANCEL if job.promised else event
        self._move(job, event)
        job.number, job.promised = "", False
        if not job.is_open:
            self.flights.forget(job)
            leads = bool(job.cache) and not job.follows
            job.document = document if event in {Event.COMPLETE, Event.FAIL} else b""
            self._end(job)
            if leads:
                self._land(job, event, code)
        else:
            job.place = "retries" if event is Event.RETRY else "suspects"
            job.attempt += event is Event.RETRY
            job.takes_left += 1

    def _move(self, job: Job, event: Event) -> None:
        after = move(job.state, event)
        assert after is not None, f"{event} of {job.task_id}, which is {job.state}"
        job.state = after

    def _land(self, job: Job, event: Event, code: str) -> None:
        """Its followers get its answer, or its failure where the input is to blame; else the next of them leads."""
        if event is Event.COMPLETE:
            self.answers.remember(job.cache, job.task_id, job.fresh_ms, self.now)
        elif event is Event.FAIL and SHARED.get(code) and job.document:
            self.answers.remember(job.cache, job.task_id, min(job.fresh_ms, FAILURE_FRESH_MS), self.now)
        followers = self.flights.dissolve(job)
        if followers and event is Event.COMPLETE:
            self.flights.land(job, followers)
            self._to_tell -= self._tell(job, self._to_tell)
            return
        if event is Event.FAIL and code in SHARED:
            told, followers = followers[:FOLLOWERS_AT_ONCE], followers[FOLLOWERS_AT_ONCE:]
            for each in told:
                self._share(each, Event.FAIL, job)
        if followers:
            self.flights.lead(followers)

    def _tell(self, leader: Job, most: int) -> int:
        """So many followers hear of a leader's answer, which ends them."""
        told = self.flights.tell(leader.task_id, most)
        for each in told:
            self._share(each, Event.COMPLETE, leader)
            each.gone_at = self.now + 1 if leader.forgotten else leader.gone_at
        return len(told)

    def _share(self, job: Job, event: Event, leader: Job) -> None:
        """It was processing with its leader, and ends as that did."""
        self._move(job, Event.START)
        self._move(job, event)
        job.document = leader.document
        job.joined = leader.task_id if event is Event.COMPLETE else ""
        self._end(job)

    def _end(self, job: Job) -> None:
        job.place, job.digest = "ended", ""
        job.has_input = job.can_replay
        job.ended_at, job.gone_at = self.now, self.now + self._flow.retention_ms
        self.ends.append((job.task_id, job.state))
        if job.state is State.FAILED:
            job.gone_at = self.now + self._flow.dead_letter_retention_ms
            self.letters.append(job.task_id)
            if len(self.letters) > self._flow.dead_letters_max:
                self._drop(self.jobs[self.letters.pop(0)])

    def _drop(self, job: Job) -> None:
        job.has_input, job.digest = False, ""
        job.gone_at = max(self.now, job.ended_at + self._flow.retention_ms)

    def _check_ends(self, ended: Sequence[Ended]) -> None:
        """The reply names each job that this step ended, once."""
        assert sorted((each.task_id, each.state) for each in ended) == sorted(self.ends)

    def _published(self, publish: Sequence[MicroBatch]) -> None:
        for each in publish:
            assert int(each.sequence) > self.sequence, "a sequence number twice"
            self.sequence = int(each.sequence)
            if batch := self.batches.get(each.number):
                assert (batch.lease, batch.stage) == (None, each.stage)
                batch.sequence, batch.published = each.sequence, self.now
            else:
                new = Batch(each.number, each.line, each.stage, each.sequence, self.now)
                self.batches[each.number] = new
                self._fresh.append(new)

    def held(self, taken: Taken) -> Batch | None:
        """The micro-batch, while this very lease of it is held."""
        batch = self.batches.get(taken.number)
        return batch if batch and batch.lease and batch.epoch == taken.epoch else None

    def open_jobs(self) -> Iterator[Job]:
        """Those that have not ended."""
        return (job for job in self.jobs.values() if job.is_open)


def _stored(state: State) -> str:
    """The store writes ``processing`` as ``queued`` with a micro-batch."""
    return State.QUEUED if state is State.PROCESSING else state
