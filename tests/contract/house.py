"""A job store on a real server, and a way to let time pass without waiting: stored instants are moved back."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Literal

from jobs import commands
from jobs.commands import Beaten, Committed, Ended, Handover, MicroBatch, Outcome, Swept, Taken, View
from jobs.looks import Seen, look
from jobs.records import SCHEMA, STAGES, CacheTerms, Head, Idempotency, Job, Lane, StageName, line_of
from jobs.settings import read_settings
from jobs.states import Event
from jobs.store import Flow, JobStore
from jobs.submits import Submitted, submit
from jobs.tenants import Tenant

NAMESPACE = "t"
POOL = "default"
LEASE_MS = 6_000
HOUR_MS = 3_600_000
SWEEPER_LEASE_MS = 3_000
WINDOW = 4
"""Micro-batches that the broker holds in these tests: one for each slot of a worker that never dies."""
FLOW = Flow.of(read_settings())
DOCUMENT = b'{"status":"completed"}'
FAILURE = b'{"error":{"code":"x"}}'


class House:
    """Submits, takes and commits as gateways and workers do; ``client`` looks at the keys themselves."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.tenants: dict[str, Tenant] = {}
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
        idempotency_ms: int = 24 * HOUR_MS,
        cache_max: int = 1_000,
    ) -> None:
        """Set what bounds micro-batches, retention, and what is kept of answers."""
        given = {"jobs_max": jobs_max, "bytes_max": bytes_max, "slice_us": slice_us, "retention_ms": retention_ms}
        answers = {"idempotency_ms": idempotency_ms, "cache_max": cache_max}
        letters = {
            "dead_letter_retention_ms": dead_letter_retention_ms,
            "dead_letters_max": dead_letters_max,
            "dead_letters_bytes_max": dead_letters_bytes_max,
        }
        self.store = JobStore(self.client, NAMESPACE, FLOW._replace(**given, **letters, **answers))

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
        tenant: str = "acme",
        weight: float = 1.0,
        key: str = "",
        cache: str = "",
        fresh_ms: int = HOUR_MS,
        refresh: bool = False,
    ) -> Job:
        """A job; ``weight``: its model's, ``key``: its Idempotency-Key, ``cache``: the key of its answer."""
        self._made += 1
        now_ms, task_id = self.now_ms, f"job-{self._made:04}"
        digest = sha256(data).digest()
        head = Head(
            *(SCHEMA, tenant, model, 1, lane, now_ms, now_ms + 600_000, attempts_max, media_type, digest),
            traceparent=trace,
        )
        return Job(
            *(task_id, head, line_of(POOL, lane, model, 1), data, weight),
            idempotency=Idempotency(key, sha256(data).digest() + task_id.encode()) if key else None,
            cache=CacheTerms(cache.encode(), fresh_ms, refresh) if cache else None,
        )

    def jobs(self, count: int, **given: Any) -> list[Job]:
        """So many jobs alike."""
        return [self.job(**given) for _ in range(count)]

    def write(self, *jobs: Job) -> Submitted:
        """Write the jobs in one round trip, for tenants as they are set."""
        return self.store.run(submit(jobs, self.tenants))

    def submit(self, *jobs: Job) -> list[MicroBatch]:
        """Write the jobs in one round trip; what is to be published."""
        return self.write(*jobs).publish

    def set_tenant(self, name: str, **given: Any) -> None:
        """Give a tenant a weight or quotas."""
        self.tenants[name] = Tenant(name, **given)

    def look(self) -> Seen:
        """What a gateway sees of it all."""
        return self.store.run(look())

    def submit_one(self, **given: Any) -> tuple[str, MicroBatch]:
        """Submit a job while the window has room: its id and its micro-batch."""
        job = self.job(**given)
        (microbatch,) = self.submit(job)
        return job.task_id, microbatch

    def processing(self, **given: Any) -> tuple[str, Taken]:
        """A job that a worker has under a lease, at preprocess."""
        task_id, microbatch = self.submit_one(**given)
        return task_id, self.take(microbatch)

    def completed(self, **given: Any) -> str:
        """A job that has completed."""
        task_id, microbatch = self.submit_one(**given)
        self.finish(microbatch)
        return task_id

    def failed(self, code: str = "internal", document: bytes = FAILURE, **given: Any) -> str:
        """A job that failed at preprocess: a dead letter."""
        task_id, taken = self.processing(**given)
        self.end(taken, [Outcome(task_id, Event.FAIL, document, code)])
        return task_id

    def cancel(self, task_id: str) -> str:
        """Cancel a job; what was said to it."""
        return self.store.run(commands.cancel(task_id)).verdict

    def replay(self, *task_ids: str) -> list[str]:
        """Run jobs again that failed or expired."""
        heads = [self.store.run(commands.head_of(task_id)) for task_id in task_ids]
        jobs = [(task_id, head) for task_id, head in zip(task_ids, heads, strict=True) if head is not None]
        return self.store.run(commands.replay(jobs, self.now_ms))

    def pause(self, model: str) -> None:
        self.client.sadd(self.key("paused"), model)

    def resume(self, model: str) -> None:
        self.client.srem(self.key("paused"), model)

    def fill_window(self, model: str = "x", lane: Lane = "interactive") -> list[MicroBatch]:
        """As many micro-batches of one job as the window holds."""
        return [self.submit_one(model=model, lane=lane)[1] for _ in range(WINDOW)]

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

    def waiting(self, job: Job) -> list[str]:
        """The jobs that wait in the line of ``job``, the next one first."""
        return [each.decode() for each in self.client.zrange(self.key(f"line:{job.line}"), 0, -1)]

    def left_over(self) -> set[str]:
        """Every key but those of jobs and of the sweeper, without the namespace."""
        keys = {key.decode().removeprefix(f"{NAMESPACE}:") for key in self.client.keys("*")}
        return {key for key in keys if key != "sweeper" and not key.startswith("job:")}

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
