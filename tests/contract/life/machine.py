"""Every mischief that a broker, workers, clients and a clock can do, in any order that Hypothesis thinks of.

At the end of an example mischief stops, and all that is open must end in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from jobs import commands
from jobs.commands import MicroBatch, Taken
from jobs.records import LANES, STAGES, Lane, StageName
from tests.contract.life.play import DAY_MS, HOUR_MS, NONE, POOLS, TENANTS, Fate, How, Play, Wish

T = TypeVar("T")

JOBS_MAX = 15
"""Jobs of one example: a few are enough to meet, and every step looks at all of them."""
TIMES_MS = (*(1, 100, 1_000, 2_100, 4_500, 6_100) * 3, 16_000, 60_000, HOUR_MS, 3 * HOUR_MS)
TTLS_MS = (1_500, 5_000, 60_000, DAY_MS, 30 * DAY_MS, 30 * DAY_MS)
ANY_FATES: tuple[Fate, ...] = ("on", "on", "on", "fail", "blame", "retry at once", "retry later")
KINDS = [(model, lane) for model in POOLS for lane in LANES]

recent = st.integers(0, 9)
"""An index from the youngest on."""
workers = st.integers(0, 2)
fates = st.tuples(*[st.sampled_from(ANY_FATES)] * 3)
hows: st.SearchStrategy[How] = st.sampled_from(("unharmed", "failed"))
wishes = st.builds(
    Wish,
    tenant=st.sampled_from(("acme", *TENANTS)),
    key=st.sampled_from(("", "", "k", "l")),
    cache=st.sampled_from(("", "x", "x", "y")),
    refresh=st.sampled_from((False, False, False, True)),
    fresh_ms=st.sampled_from((HOUR_MS, HOUR_MS, 2_000, 0)),
)


class Life(RuleBasedStateMachine):
    """What may happen at any moment, one thing at a time; three workers, and one that crashed gets another name."""

    def __init__(self, play: Play) -> None:
        super().__init__()
        self.play = play
        self.names = ["w0", "w1", "w2"]
        self.born = 3

    def teardown(self) -> None:
        if self.play.sound:
            self.play.ends_well()

    # --- clients ---

    @precondition(lambda self: len(self.play.submitted) < JOBS_MAX)
    @rule(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5), attempts_max=st.integers(1, 4))
    def submit(self, kinds: list[tuple[str, Lane]], attempts_max: int) -> None:
        self._submit(kinds, attempts_max, DAY_MS)

    @precondition(lambda self: len(self.play.submitted) < JOBS_MAX)
    @rule(count=st.integers(1, 3), attempts_max=st.integers(1, 4), ttl_ms=st.sampled_from(TTLS_MS))
    def submit_alike(self, count: int, attempts_max: int, ttl_ms: int) -> None:
        self._submit([("a", "interactive")] * count, attempts_max, ttl_ms)

    def _submit(self, kinds: Sequence[tuple[str, Lane]], attempts_max: int, ttl_ms: int) -> None:
        self.play.submit([self.play.job(model, lane, attempts_max, ttl_ms, NONE) for model, lane in kinds])

    @precondition(lambda self: len(self.play.submitted) < JOBS_MAX)
    @rule(
        wishes=st.lists(wishes, min_size=1, max_size=5), kind=st.sampled_from(KINDS), ttl_ms=st.sampled_from(TTLS_MS)
    )
    def submit_with_wishes(self, wishes: list[Wish], kind: tuple[str, Lane], ttl_ms: int) -> None:
        """By several tenants, under idempotency keys, for cached results."""
        self.play.submit([self.play.job(*kind, 2, ttl_ms, wish) for wish in wishes])

    @precondition(lambda self: self.play.asked)
    @rule(which=recent)
    def submit_again(self, which: int) -> None:
        """A gateway whose connection broke asks again."""
        job = pick(self.play.asked, which)
        known = self.play.ledger.jobs.get(job.task_id)
        if not known or not known.forgotten:
            self.play.submit([job])

    @precondition(lambda self: self.play.submitted)
    @rule(model=st.sampled_from(sorted(POOLS)))
    def pause_or_resume(self, model: str) -> None:
        self.play.pause(model, go_on=model in self.play.ledger.paused)

    @precondition(lambda self: self.play.submitted)
    @rule(which=recent)
    def cancel(self, which: int) -> None:
        self.play.cancel(pick(self.play.submitted, which).task_id)

    @precondition(lambda self: self._waiting())
    @rule(which=recent)
    def cancel_what_waits(self, which: int) -> None:
        """For its next attempt, or as a suspect."""
        self.play.cancel(pick(self._waiting(), which))

    def _waiting(self) -> list[str]:
        jobs = self.play.ledger.jobs.values()
        return [job.task_id for job in jobs if job.place in {"retries", "suspects"}]

    @precondition(lambda self: self.play.submitted)
    @rule(which=recent, count=st.integers(1, 3))
    def read(self, which: int, count: int) -> None:
        jobs = self.play.submitted
        self.play.read([pick(jobs, which + i).task_id for i in range(min(count, len(jobs)))])
        self.play.look()

    @precondition(lambda self: self.play.submitted)
    @rule(which=recent)
    def replay(self, which: int) -> None:
        """Any job; most may not be run again."""
        self.run_again(pick(self.play.submitted, which).task_id)

    @precondition(lambda self: self._replayable())
    @rule(which=recent)
    def replay_what_failed(self, which: int) -> None:
        self.run_again(pick(self._replayable(), which))

    def run_again(self, task_id: str) -> None:
        head = self.play.store.run(commands.head_of(task_id))
        self.play.replay(task_id, head or self.play.submitted[0].head)

    def _replayable(self) -> list[str]:
        return [task_id for task_id, job in self.play.ledger.jobs.items() if job.can_replay]

    @precondition(lambda self: self.play.ledger.letters)
    @rule(which=recent)
    def drop(self, which: int) -> None:
        self.play.drop(pick(self.play.ledger.letters, which))

    # --- the broker ---

    @precondition(lambda self: self.play.pending)
    @rule(which=recent, worker=workers)
    def deliver(self, which: int, worker: int) -> None:
        """Any message that waits, in any order."""
        self.hand(which, self.names[worker])

    def hand(self, which: int, name: str) -> Taken:
        message = pick(self.play.pending, which)
        self.play.pending.remove(message)
        return self.play.take(message, name)

    @precondition(lambda self: self.play.history)
    @rule(which=st.integers(0, 40), worker=workers)
    def deliver_again(self, which: int, worker: int) -> None:
        """Any message that was ever published."""
        self.play.take(pick(self.play.history, which), self.names[worker])

    @precondition(lambda self: self.play.history)
    @rule(which=recent, worker=workers, stage=st.sampled_from(STAGES))
    def deliver_to_any_stage(self, which: int, worker: int, stage: StageName) -> None:
        message = pick(self.play.history, which)
        self.play.take(MicroBatch(message.number, message.sequence, stage, message.line), self.names[worker])

    @precondition(lambda self: self.play.pending)
    @rule(which=recent)
    def lose_message(self, which: int) -> None:
        self.play.pending.remove(pick(self.play.pending, which))

    # --- workers ---

    def held(self) -> list[Taken]:
        """What somebody holds now."""
        return [taken for _, taken in self.play.taken if self.play.ledger.held(taken)]

    def busy(self) -> bool:
        return bool(self.play.pending or self.held())

    def in_hand(self, which: int, worker: int) -> Taken | None:
        """What somebody holds now; where nobody does, this worker takes a message."""
        if not self.held() and self.play.pending:
            self.hand(which, self.names[worker])
        return pick(self.held(), which) if self.held() else None

    @precondition(lambda self: self.busy())
    @rule(which=recent, worker=workers, fates=fates, cost_us=st.sampled_from((10, 20_000)))
    def commit(self, which: int, worker: int, fates: tuple[Fate, ...], cost_us: int) -> None:
        if taken := self.in_hand(which, worker):
            self.play.commit(taken, fates, cost_us)

    @precondition(lambda self: self.play.taken)
    @rule(which=recent, fates=fates)
    def commit_anything(self, which: int, fates: tuple[Fate, ...]) -> None:
        """What was perhaps committed before, given back, or is held by another by now."""
        self.play.commit(pick(self.play.taken, which)[1], fates)

    @precondition(lambda self: self.busy())
    @rule(which=recent, worker=workers, how=hows)
    def release(self, which: int, worker: int, how: How) -> None:
        if taken := self.in_hand(which, worker):
            self.play.release(taken, how)

    @precondition(lambda self: self.play.taken)
    @rule(which=recent, how=hows)
    def release_anything(self, which: int, how: How) -> None:
        self.play.release(pick(self.play.taken, which)[1], how)

    @rule(worker=workers, slots=st.integers(0, 2))
    def beat(self, worker: int, slots: int) -> None:
        self.play.beat(self.names[worker], slots)

    @rule(worker=workers)
    def crash(self, worker: int) -> None:
        """It is never heard of again."""
        gone, self.names[worker] = self.names[worker], f"w{self.born}"
        self.born += 1
        self.play.taken = [(holder, taken) for holder, taken in self.play.taken if holder != gone]

    @rule(worker=workers)
    def leave(self, worker: int) -> None:
        self.play.leave(self.names[worker])

    # --- the sweeper and the clock ---

    @rule(name=st.sampled_from(("one", "one", "two")))
    def sweep(self, name: str) -> None:
        self.play.sweep(name)

    @precondition(lambda self: self.play.doubtful)
    @rule(which=recent, count=st.integers(1, 3))
    def republish(self, which: int, count: int) -> None:
        """As if the broker had said that the queues are empty: now, long after the sweep, or falsely."""
        self.play.republish([pick(self.play.doubtful, which + i) for i in range(count)])

    @rule(ms=st.sampled_from(TIMES_MS))
    def pass_time(self, ms: int) -> None:
        self.play.pass_time(ms)

    @rule(ms=st.sampled_from((1, 500, 2_000)))
    def step_back(self, ms: int) -> None:
        self.play.pass_time(-ms)


def pick(items: Sequence[T], which: int) -> T:
    return items[-1 - which % len(items)]
