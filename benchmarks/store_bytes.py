"""What one job costs in the store: ``python -m benchmarks.store_bytes`` prints the figures of docs/store.md."""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import redis

from benchmarks.servers import redis_server
from jobs import commands
from jobs.commands import Handover, Outcome
from jobs.ids import KeyRing, TaskIds
from jobs.payload import TENSORS
from jobs.records import SCHEMA, Head, Job, line_of
from jobs.settings import read_settings
from jobs.states import Event
from jobs.store import Flow, JobStore
from jobs.submits import submit

JOBS = 10_000
INPUT_BYTES = 256
DOCUMENT = b"x" * 1000
RETENTION_MS = 3_600_000


def main() -> None:
    with TemporaryDirectory() as folder, redis_server(Path(folder)) as server:
        client = redis.Redis.from_url(server.url)
        store = JobStore(client, "penstock", Flow.of(read_settings()))
        before = _used(client)
        jobs = _submit(store)
        print(
            f"a waiting job, input of {INPUT_BYTES} bytes, all entries: {(_used(client) - before) / JOBS:.0f} bytes"
        )
        for key in sorted(set(client.keys("penstock:*")), key=len)[:12]:
            print(f"  {key.decode()}: {client.memory_usage(key, samples=0)}")
        _complete(store)
        print(f"a completed job, document of {len(DOCUMENT)} bytes: {(_used(client) - before) / JOBS:.0f} bytes")
        print(f"  its record: {client.memory_usage('penstock:job:' + jobs[-1].task_id)}")


def _used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])


def _submit(store: JobStore) -> list[Job]:
    ids = TaskIds(KeyRing({1: os.urandom(32)}), RETENTION_MS / 1000)
    jobs = [_job(ids) for _ in range(JOBS)]
    for start in range(0, JOBS, 200):
        store.run(submit(jobs[start : start + 200], {}))
    return jobs


def _job(ids: TaskIds) -> Job:
    now_ms = time.time_ns() // 1_000_000
    head = Head(
        schema=SCHEMA,
        tenant="default",
        model="tensor-demo",
        version=1,
        lane="interactive",
        queued_at_ms=now_ms,
        deadline_at_ms=now_ms + 600_000,
        attempts_max=3,
        media_type=TENSORS,
        input_sha256=os.urandom(32),
        request_id="c771934161-1",
    )
    return Job(
        ids.issue(now_ms, b"default"),
        head,
        line_of("default", head.lane, head.model, head.version),
        os.urandom(INPUT_BYTES),
    )


def _complete(store: JobStore) -> None:
    """Take and end every micro-batch, as a worker that serves the first stage alone would."""
    while numbers := store.client.zrange("penstock:live:default", 0, -1):
        for number in (each.decode() for each in numbers):
            sequence = store.client.hget(f"penstock:microbatch:{number}", "sequence").decode()
            taken = store.run(commands.take(number, "preprocess", sequence, "bench", 6_000))
            ended = [Outcome(member.task_id, Event.COMPLETE, DOCUMENT) for member in taken.members]
            store.run(commands.commit(taken, Handover(None, [], b"", b"", 100), ended))


if __name__ == "__main__":
    main()
