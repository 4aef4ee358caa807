"""Every mischief that a broker, workers, clients and a clock can do to the store's scripts, in any order.

Each command runs the real script on a real server; then the ledger must have foretold its reply, and all laws
must hold. At the end mischief stops, and all that is open must end in time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from jobs import commands
from jobs.commands import Command, Doubtful, Handover, MicroBatch, Outcome, Taken
from jobs.records import LANES, SCHEMA, STAGES, Head, Job, Lane, StageName
from jobs.settings import read_settings
from jobs.states import Event
from jobs.store import Flow, JobStore
from tests.contract.life import laws
from tests.contract.life.clockwork import CLOCK, pass_time
from tests.contract.life.ledger import Ledger
from tests.contract.life.snapshot import Snapshot

T = TypeVar("T")

NAMESPACE = "life"
START_MS = 1_700_000_000_000
LEASE_MS = 6_000
SWEEPER_LEASE_MS = 3_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
FLOW = Flow.of(read_settings())._replace(
    per_slot=1, jobs_max=3, retention_ms=HOUR_MS, dead_letter_retention_ms=2 * HOUR_MS, dead_letters_max=3
)
POOLS = {"a": "one", "b": "one", "c": "two"}
"""The pool of each model."""
JOBS_MAX = 15
"""Jobs of one example: a few are enough to meet, and every step looks at all of them."""
HEAL_ROUNDS = 40
HEAL_STEP_MS = 5_000
SERVED_MAX = 1_000
HEALER = "healer"

TIMES_MS = (1, 100, 100, 1_000, 1_000, 2_100, 2_100, 4_500, 6_100, 6_100, 16_000, 60_000, HOUR_MS, 3 * HOUR_MS)
TTLS_MS = (1_500, 5_000, 60_000, DAY_MS, 30 * DAY_MS)
Fate = Literal["on", "fail", "retry at once", "retry later"]
FATES: tuple[Fate, ...] = ("on", "on", "on", "fail", "retry at once", "retry later")
DELAYS_MS = {"retry at once": 0, "retry later": 20_000}

recent = st.integers(0, 9)
"""An index from the youngest on."""
workers = st.integers(0, 2)


class Bench(NamedTuple):
    """The server, and someone who listens for ends; one for all examples."""

    client: Any
    subscription: Any


class Steps:
    """Steps of all examples: commands and passings of time, each followed by all laws."""

    def __init__(self) -> None:
        self.count = 0


class Life(RuleBasedStateMachine):
    """One example: a store, its ledger, a broker (``pending``: not yet received), three workers and their names."""

    def __init__(self, bench: Bench, steps: Steps) -> None:
        super().__init__()
        self.bench = bench
        self.steps = steps
        self.store = JobStore(bench.client, NAMESPACE, FLOW)
        flow = FLOW
        bounds = flow.retention_ms, flow.dead_letter_retention_ms, flow.dead_letters_max
        self.ledger = Ledger(START_MS, *bounds)
        self.submitted: list[Job] = []
        self.pending: list[MicroBatch] = []
        self.history: list[MicroBatch] = []
        self.taken: list[tuple[str, Taken]] = []
        self.doubtful: list[Doubtful] = []
        self.names = ["w0", "w1", "w2"]
        self.born = 3
        self.sound = True
        """No law was broken: only then must all end well."""

    @initialize()
    def begin(self) -> None:
        self.bench.client.flushall()
        self._heard()  # of an example that broke a law
        self.bench.client.set(f"{self.store.prefix}{CLOCK}", START_MS)

    # --- one step ---

    def _run(self, command: Command[T], foretold: Callable[[T], None]) -> T:
        """Run a command: the ledger must have foretold its reply, and all laws must hold after it."""
        self.sound = False
        reply = self.store.run(command)
        foretold(reply)
        self._publish(getattr(reply, "publish", ()))
        self._check()
        return reply

    def _pass(self, ms: int) -> None:
        self.sound = False
        pass_time(self.bench.client, self.store.prefix, ms)
        self.ledger.passed(ms)
        self._check()

    def _check(self) -> None:
        if self.ledger.vanishing():
            pass_time(self.bench.client, self.store.prefix, 0)
        snapshot = Snapshot.of(self.bench.client, self.store.prefix)
        self.ledger.adopt(snapshot)
        laws.check(self.ledger, snapshot)
        self.ledger.step_ends()
        self.steps.count += 1
        self.sound = True

    def _publish(self, made: Sequence[MicroBatch]) -> None:
        self.pending += made
        self.history += made

    # --- clients ---

    @precondition(lambda self: len(self.submitted) < JOBS_MAX)
    @rule(
        kinds=st.lists(st.sampled_from([(m, lane) for m in POOLS for lane in LANES]), min_size=1, max_size=5),
        attempts_max=st.integers(1, 4),
        ttl_ms=st.sampled_from(TTLS_MS),
    )
    def submit(self, kinds: list[tuple[str, Lane]], attempts_max: int, ttl_ms: int) -> None:
        jobs = [self._job(model, lane, attempts_max, ttl_ms) for model, lane in kinds]
        self._submit(jobs)

    @precondition(lambda self: len(self.submitted) < JOBS_MAX)
    @rule(count=st.integers(2, 3), attempts_max=st.integers(1, 4))
    def submit_alike(self, count: int, attempts_max: int) -> None:
        self._submit([self._job("a", "interactive", attempts_max, DAY_MS) for _ in range(count)])

    @precondition(lambda self: self.submitted)
    @rule(which=recent)
    def submit_again(self, which: int) -> None:
        """A gateway whose connection broke asks again."""
        job = _pick(self.submitted, which)
        if not self.ledger.jobs[job.task_id].forgotten:
            self._submit([job])

    def _submit(self, jobs: list[Job]) -> None:
        self.submitted += [job for job in jobs if job.task_id not in self.ledger.jobs]
        self._run(commands.submit(jobs), lambda reply: self.ledger.submitted(jobs, reply.publish))

    def _job(self, model: str, lane: Lane, attempts_max: int, ttl_ms: int) -> Job:
        self.born += 1
        now = self.ledger.now
        head = Head(SCHEMA, "acme", model, 1, lane, now, now + ttl_ms, attempts_max, "a/b", b"sha")
        return Job.of(f"job-{self.born}", head, POOLS[model], b"input")

    @precondition(lambda self: self.submitted)
    @rule(which=recent)
    def cancel(self, which: int) -> None:
        task_id = _pick(self.submitted, which).task_id
        self._run(commands.cancel(task_id), lambda reply: self.ledger.cancelled(task_id, reply))

    @precondition(lambda self: self.submitted)
    @rule(which=recent, count=st.integers(1, 3))
    def read(self, which: int, count: int) -> None:
        task_ids = [_pick(self.submitted, which + i).task_id for i in range(min(count, len(self.submitted)))]
        self._run(commands.read(task_ids), lambda views: self.ledger.read(task_ids, views))

    @precondition(lambda self: self.submitted)
    @rule(which=recent)
    def replay(self, which: int) -> None:
        task_id = _pick(self.submitted, which).task_id
        head = self.store.run(commands.head_of(task_id)) or _pick(self.submitted, which).head
        job = self.ledger.jobs[task_id]
        deadline = self.ledger.now + job.ttl_ms
        command = commands.replay([(task_id, head)], self.ledger.now)
        self._run(command, lambda verdicts: self.ledger.replayed(task_id, verdicts[0], deadline))
        self._run(commands.read([task_id]), lambda views: self.ledger.read([task_id], views))

    @precondition(lambda self: self.ledger.letters)
    @rule(which=recent)
    def drop(self, which: int) -> None:
        task_id = _pick(self.ledger.letters, which)
        self._run(commands.drop([task_id]), lambda count: self.ledger.dropped(task_id, count))

    # --- the broker ---

    @precondition(lambda self: self.pending)
    @rule(which=recent, worker=workers)
    def deliver(self, which: int, worker: int) -> None:
        """Any message that waits, in any order."""
        message = _pick(self.pending, which)
        self.pending.remove(message)
        self._take(message, self.names[worker])

    @precondition(lambda self: self.history)
    @rule(which=st.integers(0, 40), worker=workers)
    def deliver_again(self, which: int, worker: int) -> None:
        """Any message that was ever published."""
        self._take(_pick(self.history, which), self.names[worker])

    @precondition(lambda self: self.history)
    @rule(which=recent, worker=workers, stage=st.sampled_from(STAGES))
    def deliver_wrong_stage(self, which: int, worker: int, stage: StageName) -> None:
        message = _pick(self.history, which)
        self._take(_at(message, stage), self.names[worker])

    @precondition(lambda self: self.pending)
    @rule(which=recent)
    def lose_message(self, which: int) -> None:
        self.pending.remove(_pick(self.pending, which))

    # --- workers ---

    def _take(self, message: MicroBatch, name: str) -> Taken:
        command = commands.take(message.number, message.stage, message.sequence, name, LEASE_MS)
        taken = self._run(command, lambda reply: self.ledger.took(message, name, LEASE_MS, reply))
        if taken.verdict == "taken":
            self.taken.append((name, taken))
        return taken

    @precondition(lambda self: self.taken)
    @rule(which=recent, fates=st.tuples(*[st.sampled_from(FATES)] * 3), cost_us=st.sampled_from((10, 20_000)))
    def commit(self, which: int, fates: tuple[Fate, ...], cost_us: int) -> None:
        """What is held now, was committed before, or is held by another by now."""
        _, taken = _pick(self.taken, which)
        self._commit(taken, fates, cost_us)

    def _commit(self, taken: Taken, fates: Sequence[Fate] = ("on", "on", "on"), cost_us: int = 10) -> None:
        following = None if taken.stage == STAGES[-1] else STAGES[STAGES.index(taken.stage) + 1]
        outcomes = [
            _outcome(member.task_id, fate, last=following is None, may_retry=member.attempt < member.head.attempts_max)
            for member, fate in zip(taken.members, fates, strict=False)
        ]
        leaving = [outcome for outcome in outcomes if outcome]
        left = {outcome.task_id for outcome in leaving}
        going_on = [member.task_id for member in taken.members if member.task_id not in left]
        handover = Handover(following, going_on, b"reference", b"stages", cost_us)
        command = commands.commit(taken, handover, leaving)
        reply = self._run(command, lambda reply: self.ledger.committed(taken, handover, leaving, reply))
        if reply.goes_on and following:
            batch = self.ledger.batches[taken.number]
            self._publish([MicroBatch(batch.number, batch.sequence, following, batch.line)])

    @precondition(lambda self: self.taken)
    @rule(which=recent, how=st.sampled_from(("unharmed", "failed")))
    def release(self, which: int, how: Literal["unharmed", "failed"]) -> None:
        self._release(_pick(self.taken, which)[1], how)

    def _release(self, taken: Taken, how: Literal["unharmed", "failed"]) -> None:
        self._run(commands.release(taken, how), lambda reply: self.ledger.released(taken, how, reply))

    @rule(worker=workers, slots=st.integers(0, 2))
    def beat(self, worker: int, slots: int) -> None:
        self._beat(self.names[worker], slots)

    def _beat(self, name: str, slots: int) -> None:
        """A sign of life for all that this worker ever held."""
        held = list({(taken.number, taken.epoch): None for holder, taken in self.taken if holder == name})
        command = commands.beat(name, b"{}", LEASE_MS, dict.fromkeys(POOLS.values(), slots), held)
        self._run(command, lambda reply: self.ledger.beaten(name, held, LEASE_MS, reply))

    @rule(worker=workers)
    def crash(self, worker: int) -> None:
        """It is never heard of again; one with another name takes its place."""
        gone, self.names[worker] = self.names[worker], f"w{self.born}"
        self.born += 1
        self.taken = [(holder, taken) for holder, taken in self.taken if holder != gone]

    @rule(worker=workers)
    def leave(self, worker: int) -> None:
        name = self.names[worker]
        self._run(commands.leave(name), lambda _: self.ledger.left(name))

    # --- lives that chance alone would seldom find ---

    @precondition(lambda self: self.pending)
    @rule(worker=workers, stages=st.integers(1, 3))
    def serve(self, worker: int, stages: int) -> None:
        """The oldest message goes through some stages without mishap."""
        self._serve(self.names[worker], stages)

    def _serve(self, name: str, stages: int) -> None:
        message = self.pending.pop(0)
        for _ in range(stages):
            taken = self._take(message, name)
            if taken.verdict != "taken":
                return
            waiting = len(self.pending)
            self._commit(taken)
            following = [each for each in self.pending[waiting:] if each.number == message.number]
            if not following:
                return
            message = following[0]
            if _ + 1 < stages:
                self.pending.remove(message)

    @precondition(lambda self: self.pending)
    @rule(which=recent, worker=workers)
    def die_with(self, which: int, worker: int) -> None:
        """A worker dies with a message in its hands, and the sweeper finds out."""
        self.deliver(which, worker)
        self.crash(worker)
        self._pass(LEASE_MS + 100)
        self._sweep("one")

    @precondition(lambda self: self.pending)
    @rule(which=recent, worker=workers, times=st.integers(1, 7))
    def give_back(self, which: int, worker: int, times: int) -> None:
        """A worker takes the same micro-batch again and again, and gives it back unharmed."""
        message = _pick(self.pending, which)
        for _ in range(times):
            self.pending.remove(message)
            taken = self._take(message, self.names[worker])
            if taken.verdict != "taken":
                return
            self._release(taken, "unharmed")
            if not self.pending or self.pending[-1].number != message.number:
                return
            message = self.pending[-1]

    # --- the sweeper and the clock ---

    @rule(name=st.sampled_from(("one", "two")))
    def sweep(self, name: str) -> None:
        self._sweep(name)

    def _sweep(self, name: str) -> None:
        reply = self._run(commands.sweep(name, SWEEPER_LEASE_MS, 200), self.ledger.swept)
        self.doubtful += reply.doubtful

    @precondition(lambda self: self.doubtful)
    @rule(which=recent, count=st.integers(1, 3))
    def republish(self, which: int, count: int) -> None:
        """As if the broker had said that the queues are empty: now, long after the sweep, or falsely."""
        self._republish([_pick(self.doubtful, which + i) for i in range(count)])

    def _republish(self, lost: list[Doubtful]) -> None:
        reply = self._run(commands.republish(lost), self.ledger.republished)
        self._publish(reply)

    @rule(ms=st.sampled_from(TIMES_MS))
    def pass_time(self, ms: int) -> None:
        self._pass(ms)

    @rule(ms=st.sampled_from((1, 500, 2_000)))
    def step_back(self, ms: int) -> None:
        self._pass(-ms)

    # --- the end ---

    def teardown(self) -> None:
        if self.sound:
            self._heal()
            self._told_once()

    def _heal(self) -> None:
        """Mischief stops: a healthy worker serves what the broker has, and time passes; all must end."""
        self.taken.clear()
        for _ in range(HEAL_ROUNDS):
            self._pass(HEAL_STEP_MS)
            self._beat(HEALER, 1)
            self.doubtful.clear()
            self._sweep("one")
            self._republish([each for each in self.doubtful if each.queue not in self._queues()])
            self._serve_all()
            if not self.ledger.batches and not any(self.ledger.open_jobs()):
                return
        raise AssertionError(f"open for ever: {[job.task_id for job in self.ledger.open_jobs()]}")

    def _queues(self) -> set[str]:
        return {f"{each.pool}.{each.stage}.{each.lane}" for each in self.pending}

    def _serve_all(self) -> None:
        for _ in range(SERVED_MAX):
            if not self.pending:
                return
            self._serve(HEALER, len(STAGES))
        raise AssertionError("the broker never runs empty")

    def _told_once(self) -> None:
        """Who waits for results heard of each end once, in each generation."""
        assert sorted(self._heard()) == sorted(self.ledger.announced)

    def _heard(self) -> list[str]:
        """The ids that were told on the channel since the last call."""
        self.bench.subscription.ping()
        heard: list[str] = []
        while (message := self.bench.subscription.get_message(timeout=5))["type"] != "pong":
            if message["type"] == "message":
                heard += message["data"].decode().split()
        return heard


def _pick(items: Sequence[T], which: int) -> T:
    return items[-1 - which % len(items)]


def _at(message: MicroBatch, stage: StageName) -> MicroBatch:
    return MicroBatch(message.number, message.sequence, stage, message.line)


def _outcome(task_id: str, fate: Fate, *, last: bool, may_retry: bool) -> Outcome | None:
    """How a job leaves its stage; None where it goes on. A worker retries only while attempts are left."""
    if fate == "on":
        return Outcome(task_id, Event.COMPLETE, b'{"status":"completed"}') if last else None
    if fate == "fail" or not may_retry:
        return Outcome(task_id, Event.FAIL, b'{"status":"failed"}', "internal")
    return Outcome(task_id, Event.RETRY, code="internal", delay_ms=DELAYS_MS[fate])
