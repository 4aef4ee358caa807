"""What gateways, workers, the broker and time do to one store, step by step, under the eye of the laws.

Each command runs the real script on a real server; then the ledger must have foretold its reply, and all laws
must hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

from jobs import commands
from jobs.commands import Command, Doubtful, Handover, MicroBatch, Outcome, Taken
from jobs.looks import look
from jobs.records import SCHEMA, STAGES, CacheTerms, Head, Idempotency, Job, Lane, line_of, next_generation
from jobs.settings import read_settings
from jobs.states import Event
from jobs.store import Flow, JobStore
from jobs.submits import submit
from jobs.tenants import Tenant
from tests.contract.life import laws
from tests.contract.life.clockwork import CLOCK, pass_time
from tests.contract.life.ledger import Ledger
from tests.contract.life.snapshot import Snapshot

T = TypeVar("T")

NAMESPACE = "life"
START_MS = 1_700_000_000_000
LEASE_MS = 6_000
SWEEPER_LEASE_MS = 5_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
FLOW = Flow.of(read_settings())._replace(
    per_slot=1,
    jobs_max=3,
    retention_ms=HOUR_MS,
    dead_letter_retention_ms=2 * HOUR_MS,
    dead_letters_max=2,
    idempotency_ms=2 * HOUR_MS,
    cache_max=2,
)
POOLS = {"a": "one", "b": "one", "c": "two"}
"""The pool of each model."""
TENANTS = {"heavy": Tenant("heavy", weight=4), "small": Tenant("small", rate=1, burst=2, open_max=3)}
"""Those who have settings."""
HEAL_ROUNDS = 40
HEAL_STEP_MS = 5_000
SERVED_MAX = 1_000
HEALER = "healer"

Fate = Literal["on", "fail", "blame", "retry at once", "retry later"]
"""``blame``: it fails, and the input is to blame."""
DELAYS_MS = {"retry at once": 0, "retry later": 20_000}
How = Literal["unharmed", "failed"]


class Bench(NamedTuple):
    """The server, and someone who listens for ends; one for all examples."""

    client: Any
    subscription: Any

    def heard(self) -> list[str]:
        """The ids that were told on the channel since the last call."""
        self.subscription.ping()
        heard: list[str] = []
        while (message := self.subscription.get_message(timeout=5))["type"] != "pong":
            if message["type"] == "message":
                heard += message["data"].decode().split()
        return heard


class Wish(NamedTuple):
    """Who asks, and how: by Idempotency-Key, by cache key."""

    tenant: str = "acme"
    key: str = ""
    cache: str = ""
    refresh: bool = False
    fresh_ms: int = HOUR_MS


NONE = Wish()


class Play:
    """A store with its ledger, a broker (``pending``: not yet received; ``history``: all), and what workers took."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.store = JobStore(bench.client, NAMESPACE, FLOW)
        self.ledger = Ledger(START_MS, FLOW, TENANTS)
        self.asked: list[Job] = []
        self.submitted: list[Job] = []
        """Those of them that were written."""
        self.pending: list[MicroBatch] = []
        self.history: list[MicroBatch] = []
        self.taken: list[tuple[str, Taken]] = []
        self.doubtful: list[Doubtful] = []
        self.steps = 0
        """Commands and passings of time, each followed by all laws."""
        self.sound = True
        """No law was broken: only then must all end well."""
        bench.client.flushall()
        bench.client.set(f"{self.store.prefix}{CLOCK}", START_MS)
        bench.heard()  # of an example that broke a law

    # --- one step ---

    def run(self, command: Command[T], foretold: Callable[[T], None]) -> T:
        """Run a command: the ledger must have foretold its reply, and all laws must hold after it."""
        self.sound = False
        reply = self.store.run(command)
        foretold(reply)
        self.publish(getattr(reply, "publish", ()))
        self._check()
        return reply

    def pass_time(self, ms: int) -> None:
        """Time passes; a clock that is set back passes below zero."""
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
        self.steps += 1
        self.sound = True

    def publish(self, made: Sequence[MicroBatch]) -> None:
        self.pending += made
        self.history += made

    # --- clients ---

    def job(
        self,
        model: str = "a",
        lane: Lane = "interactive",
        attempts_max: int = 3,
        ttl_ms: int = DAY_MS,
        wish: Wish = NONE,
    ) -> Job:
        now, task_id = self.ledger.now, f"job-{len(self.asked):03}"
        head = Head(SCHEMA, wish.tenant, model, 1, lane, now, now + ttl_ms, attempts_max, "a/b", b"sha")
        kept = f"{wish.key:*<32}{task_id}".encode()
        job = Job(
            *(task_id, head, line_of(POOLS[model], lane, model, 1), b"input"),
            idempotency=Idempotency(wish.key, kept) if wish.key else None,
            cache=CacheTerms(f"{model}-{wish.cache}".encode(), wish.fresh_ms, wish.refresh) if wish.cache else None,
        )
        self.asked.append(job)
        return job

    def submit(self, jobs: Sequence[Job]) -> None:
        """Write the jobs in one round trip; known ones are asked again."""
        self.run(submit(jobs, TENANTS), partial(self.ledger.submitted, jobs))
        known = {job.task_id for job in self.submitted}
        self.submitted += [job for job in jobs if job.task_id in self.ledger.jobs and job.task_id not in known]

    def cancel(self, task_id: str) -> None:
        self.run(commands.cancel(task_id), lambda reply: self.ledger.cancelled(task_id, reply))

    def read(self, task_ids: Sequence[str]) -> None:
        self.run(commands.read(task_ids), lambda views: self.ledger.read(task_ids, views))

    def replay(self, task_id: str, head: Head) -> None:
        """Run a job again; ``head``: as it was read before."""
        again = next_generation(head, self.ledger.now)
        command = commands.replay([(task_id, head)], self.ledger.now)
        self.run(command, lambda verdicts: self.ledger.replayed(task_id, verdicts[0], again))
        self.read([task_id])

    def look(self) -> None:
        self.run(look(), self.ledger.looked)

    def pause(self, model: str, *, go_on: bool = False) -> None:
        """Let a model's jobs wait, or go on."""
        key = f"{self.store.prefix}paused"
        if go_on:
            self.bench.client.srem(key, model)
            self.ledger.paused.discard(model)
        else:
            self.bench.client.sadd(key, model)
            self.ledger.paused.add(model)

    def drop(self, task_id: str) -> None:
        self.run(commands.drop([task_id]), lambda count: self.ledger.dropped(task_id, count))

    # --- workers ---

    def take(self, message: MicroBatch, name: str) -> Taken:
        command = commands.take(message.number, message.stage, message.sequence, name, LEASE_MS)
        taken = self.run(command, lambda reply: self.ledger.took(message, name, LEASE_MS, reply))
        if taken.verdict == "taken":
            self.taken.append((name, taken))
        return taken

    def commit(self, taken: Taken, fates: Sequence[Fate] = ("on", "on", "on"), cost_us: int = 10) -> bool:
        """Commit a stage; the chain's next message is published. Whether it goes on."""
        following = None if taken.stage == STAGES[-1] else STAGES[STAGES.index(taken.stage) + 1]
        outcomes = [
            _outcome(
                member.task_id, fate, last=following is None, may_retry=member.attempt < member.head.attempts_max
            )
            for member, fate in zip(taken.members, fates, strict=False)
        ]
        leaving = [outcome for outcome in outcomes if outcome]
        left = {outcome.task_id for outcome in leaving}
        going_on = [member.task_id for member in taken.members if member.task_id not in left]
        handover = Handover(following, going_on, b"reference", b"stages", cost_us)
        command = commands.commit(taken, handover, leaving)
        reply = self.run(command, lambda reply: self.ledger.committed(taken, handover, leaving, reply))
        if reply.goes_on and following:
            batch = self.ledger.batches[taken.number]
            self.publish([MicroBatch(batch.number, batch.sequence, following, batch.line)])
        return reply.goes_on

    def release(self, taken: Taken, how: How) -> None:
        self.run(commands.release(taken, how), lambda reply: self.ledger.released(taken, how, reply))

    def beat(self, name: str, slots: int) -> None:
        """A sign of life for all that this worker ever held."""
        held = list({(taken.number, taken.epoch): None for holder, taken in self.taken if holder == name})
        command = commands.beat(name, b"{}", LEASE_MS, dict.fromkeys(POOLS.values(), slots), held)
        self.run(command, lambda reply: self.ledger.beaten(name, held, LEASE_MS, reply))

    def leave(self, name: str) -> None:
        self.run(commands.leave(name), lambda _: self.ledger.left(name))

    def serve(self, message: MicroBatch, name: str, stages: int = len(STAGES)) -> None:
        """A message goes through some stages without mishap."""
        for _ in range(stages):
            taken = self.take(message, name)
            if taken.verdict != "taken" or not self.commit(taken):
                return
            message = self.pending.pop()
        self.pending.append(message)

    def newest(self, number: str) -> MicroBatch | None:
        """The last message of a micro-batch, even where it was received or lost."""
        return next((each for each in reversed(self.history) if each.number == number), None)

    # --- the sweeper ---

    def sweep(self, name: str = "one") -> None:
        command = commands.sweep(name, SWEEPER_LEASE_MS, 200)
        foretold = partial(self.ledger.swept, name, SWEEPER_LEASE_MS)
        self.doubtful += self.run(command, foretold).doubtful

    def republish(self, lost: Sequence[Doubtful]) -> None:
        made = self.run(commands.republish(lost), partial(self.ledger.republished, lost))
        self.publish(made)

    # --- the end ---

    def ends_well(self) -> None:
        """Mischief stops: a healthy worker serves what the broker has, and time passes; all must end."""
        self.taken.clear()
        for model in POOLS:
            self.pause(model, go_on=True)
        for _ in range(HEAL_ROUNDS):
            self.pass_time(HEAL_STEP_MS)
            self.beat(HEALER, 1)
            self.doubtful.clear()
            self.sweep()
            self.republish([each for each in self.doubtful if each.queue not in self._queues()])
            self._serve_all()
            if not self.ledger.batches and not any(self.ledger.open_jobs()):
                break
        assert [job.task_id for job in self.ledger.open_jobs()] == [], "open for ever"
        assert list(self.ledger.batches) == [], "in the window for ever"
        assert sorted(self.bench.heard()) == sorted(self.ledger.announced), (
            "who waits for results hears of each end once"
        )
        self.pass_time(3 * HOUR_MS)
        self.sweep()
        laws.check_remains(Snapshot.of(self.bench.client, self.store.prefix))

    def _queues(self) -> set[str]:
        return {f"{each.pool}.{each.stage}.{each.lane}" for each in self.pending}

    def _serve_all(self) -> None:
        for _ in range(SERVED_MAX):
            if not self.pending:
                return
            self.serve(self.pending.pop(0), HEALER)
        raise AssertionError("the broker never runs empty")


def _outcome(task_id: str, fate: Fate, *, last: bool, may_retry: bool) -> Outcome | None:
    """How a job leaves its stage; None where it goes on. A worker retries only while attempts are left."""
    if fate == "on":
        return Outcome(task_id, Event.COMPLETE, b'{"task_id":"%s"}' % task_id.encode()) if last else None
    if fate == "blame":
        return Outcome(task_id, Event.FAIL, b'{"failed":"%s"}' % task_id.encode(), "model-error")
    if fate == "fail" or not may_retry:
        return Outcome(task_id, Event.FAIL, b'{"status":"failed"}', "internal")
    return Outcome(task_id, Event.RETRY, code="internal", delay_ms=DELAYS_MS[fate])
