"""Chains of events that chance alone would seldom find: each is a story of one thing going wrong for someone."""

from __future__ import annotations

from typing import Literal

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from jobs.commands import MicroBatch, Taken
from jobs.records import Job
from tests.contract.life.machine import JOBS_MAX, Life, fates, hows, pick, recent, workers
from tests.contract.life.play import DAY_MS, LEASE_MS, Fate, How, Wish

SOON_MS = 60_000
Finder = Literal["sweeper", "copy"]
finders: st.SearchStrategy[Finder] = st.sampled_from(("sweeper", "copy"))
"""Who finds that a lease ran out: the sweeper, or whoever receives a copy of the message."""


class Misfortunes(Life):
    """All that may happen."""

    @precondition(lambda self: self.play.pending)
    @rule(worker=workers, stages=st.integers(1, 3))
    def serve(self, worker: int, stages: int) -> None:
        """None at all: the oldest message goes through some stages without mishap."""
        self.play.serve(self.play.pending.pop(0), self.names[worker], stages)

    @precondition(lambda self: self.play.pending)
    @rule(which=recent, worker=workers, finder=finders)
    def die_with(self, which: int, worker: int, finder: Finder) -> None:
        """A worker dies with a message in its hands."""
        taken = self.hand(which, self.names[worker])
        self.crash(worker)
        self._lease_runs_out(taken, finder, LEASE_MS)

    @precondition(lambda self: self.play.pending)
    @rule(which=recent, worker=workers, finder=finders)
    def miss_a_reply(self, which: int, worker: int, finder: Finder) -> None:
        """A worker never learns that it holds a lease, so lets it run out, and lives."""
        taken = self.hand(which, self.names[worker])
        held, self.play.taken = self.play.taken, []
        self.play.pass_time(LEASE_MS - 100)
        self.play.beat(self.names[worker], 1)
        self.play.taken = held
        self._lease_runs_out(taken, finder, 100)

    def _lease_runs_out(self, taken: Taken, finder: Finder, ms: int) -> None:
        message = self.play.newest(taken.number)
        self.play.pass_time(ms)
        if finder == "copy" and message:
            self.play.take(message, self.names[0])
        else:
            self.play.sweep()

    @precondition(lambda self: self.play.pending)
    @rule(which=recent, worker=workers, times=st.integers(1, 7))
    def give_back(self, which: int, worker: int, times: int) -> None:
        """A worker takes the same micro-batch again and again, and gives it back unharmed."""
        number = pick(self.play.pending, which).number
        for _ in range(times):
            taken = self.hand(which, self.names[worker])
            if taken.verdict != "taken":
                return
            self.play.release(taken, "unharmed")
            which = 0
            if not self.play.pending or self.play.pending[-1].number != number:
                return

    @precondition(lambda self: self.busy())
    @rule(which=recent, worker=workers, other=workers, fates=fates)
    def commit_what_was_given_back(self, which: int, worker: int, other: int, fates: tuple[Fate, ...]) -> None:
        """It is in the broker, or already in another's hands, when its former holder commits."""
        if former := self.in_hand(which, worker):
            self.play.release(former, "unharmed")
            if other and self.play.pending and self.play.pending[-1].number == former.number:
                self.hand(0, self.names[other])
            self.play.commit(former, fates)

    @precondition(lambda self: self.busy())
    @rule(which=recent, worker=workers, member=recent, fates=fates)
    def cancel_in_hand(self, which: int, worker: int, member: int, fates: tuple[Fate, ...]) -> None:
        """A worker runs a job that is cancelled, and comes to the stage's end."""
        if taken := self.in_hand(which, worker):
            self.play.cancel(pick(taken.members, member).task_id)
            self.play.commit(taken, fates)

    @precondition(lambda self: self.busy())
    @rule(which=recent, worker=workers, member=recent, how=hows)
    def cancel_before_a_return(self, which: int, worker: int, member: int, how: How) -> None:
        """A worker runs a job that is cancelled, and gives its micro-batch back, which another receives."""
        if taken := self.in_hand(which, worker):
            self.play.cancel(pick(taken.members, member).task_id)
            self.play.release(taken, how)
            if self.play.pending:
                self.hand(0, self.names[worker])

    @precondition(lambda self: self._soon())
    @rule(which=recent, end=st.sampled_from(("read", "cancel", "copy")))
    def come_late(self, which: int, end: str) -> None:
        """A deadline passes, and it is not the sweeper who finds it."""
        job = self.play.ledger.jobs[pick(self._soon(), which)]
        message = self.play.newest(job.number)
        self.play.pass_time(max(0, job.deadline - self.play.ledger.now))
        if end == "read":
            self.play.read([job.task_id])
        elif end == "copy" and message:
            self.play.take(message, self.names[0])
        else:
            self.play.cancel(job.task_id)

    def _soon(self) -> list[str]:
        """Open jobs whose deadline is near."""
        ledger = self.play.ledger
        return [job.task_id for job in ledger.open_jobs() if job.deadline - ledger.now <= SOON_MS]

    @precondition(lambda self: len(self.play.submitted) < JOBS_MAX)
    @rule(worker=workers, fates=fates, end=st.sampled_from(("commit", "failed", "lost")), fill=workers)
    def replay_in_hand(self, worker: int, fates: tuple[Fate, ...], end: str, fill: int) -> None:
        """What a worker runs expires and is run again, before the worker is done with its former life."""
        self.submit_alike(2, 2, 1_500)
        task_id = self.play.submitted[-1].task_id
        message = self.play.newest(self.play.ledger.jobs[task_id].number)
        taken = message and self.play.take(message, self.names[worker])
        self.play.pass_time(1_500)
        self.play.read([task_id])
        self.run_again(task_id)
        if fill:
            self.play.sweep()
        if taken and taken.verdict == "taken":
            self._end_of_former_life(taken, fates, end)

    def _end_of_former_life(self, taken: Taken, fates: tuple[Fate, ...], end: str) -> None:
        if end == "commit":
            self.play.commit(taken, fates)
        elif end == "failed":
            self.play.release(taken, "failed")
        else:
            self._lease_runs_out(taken, "sweeper", LEASE_MS)

    @precondition(lambda self: len(self.play.submitted) < JOBS_MAX)
    @rule(
        worker=workers,
        fate=st.sampled_from(("on", "on", "on", "blame", "fail")),
        stray=st.sampled_from(("none", "cancelled", "run again", "run again")),
        late_ms=st.sampled_from((0, 3_000)),
    )
    def fly_together(self, worker: int, fate: Fate, stray: str, late_ms: int) -> None:
        """Jobs with one input are computed once; one of them ends by itself, the others hear of it perhaps late."""
        self.play.pause("a", go_on=True)
        self.play.beat(self.names[worker], 2)
        wish = Wish(cache=f"f{len(self.play.asked)}")  # so that no answer is known
        jobs = [self.play.job("a", "interactive", 1, ttl_ms, wish) for ttl_ms in (*[DAY_MS] * 4, 1_500)]
        self.play.submit(jobs)
        leader, last = (self.play.ledger.jobs.get(job.task_id) for job in (jobs[0], jobs[-1]))
        if (message := self._sent(jobs[0])) and leader and leader.is_open:
            taken = self.play.take(message, self.names[worker])
            if taken.verdict == "taken" and self.play.commit(taken, [fate] * 3):
                self.play.serve(self.play.pending.pop(), self.names[worker])
        if last and stray == "cancelled":
            self.play.cancel(last.task_id)
        elif last and stray == "run again":
            self.play.pass_time(1_500)
            self.play.read([last.task_id])
            self.run_again(last.task_id)
        self.play.pass_time(late_ms)
        self.play.sweep()

    def _sent(self, job: Job) -> MicroBatch | None:
        """The message that a job travels in, if the broker still has it, and it now has it no more."""
        known = self.play.ledger.jobs.get(job.task_id)
        message = self.play.newest(known.number) if known else None
        if message is None or message not in self.play.pending:
            return None
        self.play.pending.remove(message)
        return message

    @precondition(lambda self: len(self.play.submitted) < JOBS_MAX)
    @rule(worker=workers, late_ms=st.sampled_from((100, 2_000)), key=st.sampled_from(("", "", "m")))
    def ask_later(self, worker: int, late_ms: int, key: str) -> None:
        """A result is asked for again, when it is told or just not any more."""
        wish = Wish(cache="z", refresh=True, fresh_ms=2_000)
        first, again = self.play.job(wish=wish), self.play.job(wish=wish._replace(refresh=False, key=key))
        self.play.beat(self.names[worker], 2)
        self.play.submit([first])
        if message := self._sent(first):
            self.play.serve(message, self.names[worker])
        self.play.pass_time(late_ms)
        self.play.submit([again])

    @precondition(lambda self: len(self.play.submitted) < JOBS_MAX)
    @rule(order=st.permutations(("a", "b")))
    def widen_window(self, order: list[str]) -> None:
        """Jobs wait behind a full window when more workers come; the next to fill it are jobs of the same lines."""
        for _ in range(3):
            self.play.submit([self.play.job(model) for model in order])
        for name in self.names:
            self.play.beat(name, 2)
        self.play.submit([self.play.job(model) for model in order])

    @precondition(lambda self: len(self.play.submitted) < JOBS_MAX)
    @rule(goes_on=st.booleans())
    def pause_before_a_job(self, goes_on: bool) -> None:  # noqa: FBT001 - Hypothesis passes names
        """A job comes while its model is paused, and the sweeper looks whether there is room."""
        self.play.pause("a")
        self.play.submit([self.play.job("a")])
        self.play.sweep()
        if goes_on:
            self.play.pause("a", go_on=True)
            self.play.sweep()

    @precondition(lambda self: len(self.play.submitted) < JOBS_MAX)
    @rule(ms=st.sampled_from((300, 1_000, 2_000)), count=st.integers(1, 3))
    def ask_too_much(self, ms: int, count: int) -> None:
        """A tenant is refused for its rate, then for its open jobs."""
        wish = Wish(tenant="small")
        self.play.submit([self.play.job("b", wish=wish) for _ in range(3)])
        self.play.pass_time(ms)
        self.play.submit([self.play.job("c", wish=wish) for _ in range(count)])
