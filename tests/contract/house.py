"""A job store on a real server, and a way to let time pass without waiting: stored instants are moved back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jobs import commands
from jobs.commands import Beaten, Committed, Ended, Handover, MicroBatch, Outcome, Swept, Taken, View
from jobs.records import SCHEMA, STAGES, Head, Job, Lane, StageName, line_of
from jobs.settings import read_settings
from jobs.states import Event
from jobs.store import Flow, JobStore
from jobs.submits import submit

NAMESPACE = "t"
POOL = "default"
LEASE_MS = 6_000
SWEEPER_LEASE_MS = 3_000
WINDOW = 4
"""Micro-batches that the broker holds in these tests: one for each slot of a worker that never dies."""
FLOW = Flow.of(read_settings())
DOCUMENT = b'{"status":"completed"}'


class House:
    """Submits, takes and commits as gateways and workers do; ``client`` looks at the keys themselves."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self._made = 0
        self.bound()
        client.hset(self.key(f"slots:{POOL}"), "immortal", WINDOW)

    def bound(
        self,
        *,
        jobs_max: int = 64,
        bytes_max: int = 8_000_000,
        slice_us: int = 50_000,
        retention_ms: int = 3_600_000,
        dead_letter_retention_ms: int = 7_200_000,
        dead_letters_max: int = 1_000,
        dead_letters_bytes_max: int = 10_000_000,
    ) -> None:
        """Set what bounds micro-batches and retention."""
        given = {"jobs_max": jobs_max, "bytes_max": bytes_max, "slice_us": slice_us, "retention_ms": retention_ms}
        letters = {
            "dead_letter_retention_ms": dead_letter_retention_ms,
            "dead_letters_max": dead_letters_max,
            "dead_letters_bytes_max": dead_letters_bytes_max,
        }
        self.store = JobStore(self.client, NAMESPACE, FLOW._replace(**given, **letters))

    def key(self, name: str) -> str:
        return f"{NAMESPACE}:{name}"

    @property
    def now_ms(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    # --- what gateways do ---

    def job(
        self,
        *,
        model: str = "m",
        lane: Lane = "interactive",
        data: bytes = b"input",
        attempts_max: int = 3,
        trace: str = "",
        media_type: str = "a/b",
    ) -> Job:
        self._made += 1
        now_ms = self.now_ms
        head = Head(
            *(SCHEMA, "acme", model, 1, lane, now_ms, now_ms + 600_000, attempts_max, media_type, b"sha"),
            traceparent=trace,
        )
        return Job(f"job-{self._made:04}", head, line_of(POOL, lane, model, 1), data)

    def submit(self, *jobs: Job) -> list[MicroBatch]:
        """Write the jobs in one round trip; what is to be published."""
        return self.store.run(submit(jobs, {})).publish

    def submit_one(self, **given: Any) -> tuple[str, MicroBatch]:
        """Submit a job while the window has room: its id and its micro-batch."""
        job = self.job(**given)
        (microbatch,) = self.submit(job)
        return job.task_id, microbatch

    def processing(self, **given: Any) -> tuple[str, Taken]:
        """A job that a worker has under a lease, at preprocess."""
        task_id, microbatch = self.submit_one(**given)
        return task_id, self.take(microbatch)

    def fill_window(self, model: str = "x") -> list[MicroBatch]:
        """As many micro-batches of one job as the window holds."""
        return [self.submit_one(model=model)[1] for _ in range(WINDOW)]

    def read(self, task_id: str) -> View | None:
        (view,) = self.store.run(commands.read([task_id]))
        return view

    def view(self, task_id: str) -> View:
        view = self.read(task_id)
        assert view is not None
        return view

    def sweep(self, sweeper: str = "sweeper", most: int = 200, *, after_outage: bool = False) -> Swept:
        return self.store.run(commands.sweep(sweeper, SWEEPER_LEASE_MS, most, after_outage=after_outage))

    # --- what workers do ---

    def take(self, microbatch: MicroBatch, holder: str = "worker", stage: StageName | None = None) -> Taken:
        """What a worker does when it receives the message of ``microbatch``."""
        wanted = stage or microbatch.stage
        return self.store.run(commands.take(microbatch.number, wanted, microbatch.sequence, holder, LEASE_MS))

    def hand_on(self, taken: Taken, outcomes: Sequence[Outcome] = (), cost_us: int = 10) -> Committed:
        """Commit a stage after which all members go on, but for those with an outcome."""
        leaving = {outcome.task_id for outcome in outcomes}
        going_on = [member.task_id for member in taken.members if member.task_id not in leaving]
        following = STAGES[STAGES.index(taken.stage) + 1]
        handover = Handover(following, going_on, b"reference", b"stages", cost_us)
        return self.store.run(commands.commit(taken, handover, outcomes))

    def release(
        self, taken: Taken, how: Literal["unharmed", "failed"] = "unharmed", code: str = "internal"
    ) -> list[MicroBatch]:
        """Give a micro-batch back; what is to be published."""
        return self.store.run(commands.release(taken, how, code)).publish

    def beat(
        self, holder: str, held: Sequence[tuple[str, int]] = (), *, slots: int = 0, lease_ms: int = LEASE_MS
    ) -> Beaten:
        """A worker's sign of life."""
        pools = {POOL: slots} if slots else {}
        return self.store.run(commands.beat(holder, b"{}", lease_ms, pools, held))

    def end(self, taken: Taken, outcomes: Sequence[Outcome] | None = None) -> Committed:
        """Commit a last stage; every member is completed unless ``outcomes`` say otherwise."""
        if outcomes is None:
            outcomes = [Outcome(member.task_id, Event.COMPLETE, DOCUMENT) for member in taken.members]
        return self.store.run(commands.commit(taken, Handover(None, [], b"", b"stages", 10), outcomes))

    def finish(self, microbatch: MicroBatch, cost_us: int = 10) -> Committed:
        """Run a whole chain to completion."""
        for stage in STAGES[STAGES.index(microbatch.stage) : -1]:
            self.hand_on(self.take(microbatch, stage=stage), cost_us=cost_us)
        return self.end(self.take(microbatch, stage=STAGES[-1]))

    def members(self, microbatch: MicroBatch) -> list[str]:
        """The jobs of a micro-batch, looked up without taking it."""
        members: bytes = self.client.hget(self.key(f"microbatch:{microbatch.number}"), "members")
        return members.decode().split()

    # --- time passes ---

    def lease_runs_out(self, number: str) -> None:
        """The holder gave no sign of life for longer than its lease, while a sweeper looked on."""
        if not self.client.exists(self.key("sweeper")):
            self.sweep()
        self.client.hset(self.key(f"microbatch:{number}"), "lease", self.now_ms - 1)
        self.look_is_due(number)

    def look_is_due(self, number: str) -> None:
        """The sweeper's next look at a micro-batch is due."""
        self.client.zadd(self.key(f"live:{POOL}"), {number: self.now_ms - 1})

    def published_ago(self, number: str, ms: int) -> None:
        self.client.hset(self.key(f"microbatch:{number}"), "published", self.now_ms - ms)

    def deadline_passes(self, task_id: str) -> None:
        past_ms = self.now_ms - 1
        self.client.hset(self.key(f"job:{task_id}"), "deadline", past_ms)
        self.client.zadd(self.key("deadlines"), {task_id: past_ms})

    def retry_is_due(self, task_id: str) -> None:
        self.client.zadd(self.key("retries"), {task_id: self.now_ms - 1})


def ids(ended: Sequence[Ended]) -> list[str]:
    """The jobs that ended, by id."""
    return sorted(each.task_id for each in ended)
