"""The whole store at one instant, read in one round trip and put in the words of ``jobs.states``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jobs.states import State

DUMP = """
local prefix, found = KEYS[1], {}
local jobs = {'state', 'line', 'microbatch', 'deadline', 'attempt', 'cancel', 'code', 'tenant', 'cache', 'follows'}
local batches = {'line', 'stage', 'sequence', 'epoch', 'holder', 'lease', 'suspect', 'members'}
local function digest(key)    -- of a record, whatever the order of its fields
  local flat, fields = redis.call('HGETALL', key), {}
  for i = 1, #flat, 2 do fields[#fields + 1] = flat[i] .. '=' .. flat[i + 1] end
  table.sort(fields)
  return redis.sha1hex(table.concat(fields, '|'))
end
for _, key in ipairs(redis.call('KEYS', prefix .. '*')) do
  local name, kind = string.sub(key, #prefix + 1), redis.call('TYPE', key).ok
  local content = ''
  if string.find(name, '^job:') then
    content = redis.call('HMGET', key, unpack(jobs))
    content[#content + 1] = redis.call('HEXISTS', key, 'input')
    content[#content + 1] = digest(key)
  elseif string.find(name, '^microbatch:') then content = redis.call('HMGET', key, unpack(batches))
  elseif kind == 'zset' then content = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'set' then content = redis.call('SMEMBERS', key)
  elseif kind == 'hash' then content = redis.call('HGETALL', key) end
  found[#found + 1] = {name, kind, redis.call('PTTL', key), content}
end
return found
"""
NO_TTL = -1


class StoredJob(NamedTuple):
    """A job's record; ``number`` of its micro-batch, "" where it waits or has ended."""

    state: str
    line: str
    number: str
    deadline: str
    attempt: int
    promised: bool
    code: str
    tenant: str
    cache: str
    follows: bool
    has_input: bool
    digest: str


class StoredBatch(NamedTuple):
    """A micro-batch's record."""

    line: str
    stage: str
    sequence: str
    epoch: int
    holder: str
    lease: int
    suspect: bool
    members: tuple[str, ...]


class Snapshot:
    """Everything under one prefix."""

    def __init__(self, entries: Sequence[Any]) -> None:
        self.jobs: dict[str, StoredJob] = {}
        self.batches: dict[str, StoredBatch] = {}
        self.sorted_sets: dict[str, dict[str, float]] = {}
        self.sets: dict[str, set[str]] = {}
        self.hashes: dict[str, dict[str, str]] = {}
        self.ttls_ms: dict[str, int] = {}
        for name, kind, ttl_ms, content in entries:
            self.ttls_ms[name.decode()] = ttl_ms
            self._add(name.decode(), kind.decode(), content)

    @classmethod
    def of(cls, client: Any, prefix: str) -> Snapshot:
        """Read it."""
        return cls(client.eval(DUMP, 1, prefix))

    def _add(self, name: str, kind: str, content: Any) -> None:
        family, _, rest = name.partition(":")
        if family == "job":
            self.jobs[rest] = _job(content)
        elif family == "microbatch":
            self.batches[rest] = _batch(content)
        elif kind == "zset":
            self.sorted_sets[name] = dict(zip(_texts(content[::2]), map(float, content[1::2]), strict=True))
        elif kind == "set":
            self.sets[name] = set(_texts(content))
        elif kind == "hash":
            self.hashes[name] = dict(zip(_texts(content[::2]), _texts(content[1::2]), strict=True))

    def state(self, task_id: str) -> State:
        """A job whose micro-batch was ever taken is processing, though its record says ``queued``."""
        job = self.jobs[task_id]
        batch = self.batches.get(job.number)
        if job.state == State.QUEUED and batch and batch.epoch > 0:
            return State.PROCESSING
        return State(job.state)

    def family(self, name: str) -> Mapping[str, dict[str, float]]:
        """The sorted sets whose name begins so, by what follows."""
        start = f"{name}:"
        return {key.removeprefix(start): each for key, each in self.sorted_sets.items() if key.startswith(start)}

    @property
    def keys(self) -> set[str]:
        """The idempotency keys that are kept."""
        return {key.partition(":")[2] for key in self.ttls_ms if key.startswith("idempotency:")}

    @cached_property
    def places(self) -> dict[str, list[str]]:
        """Each place where a job is to be found."""
        found: dict[str, list[str]] = {}
        for name, members in self.sorted_sets.items():
            family = name.partition(":")[0]
            for task_id in members if family in {"line", "suspects", "retries", "followers", "landed"} else ():
                found.setdefault(task_id, []).append(family)
        for task_id, job in self.jobs.items():
            if job.number:
                found.setdefault(task_id, []).append(job.number)
        return found


def _texts(values: Sequence[bytes]) -> list[str]:
    return [value.decode() for value in values]


def _text(value: bytes | None) -> str:
    return (value or b"").decode()


def _job(content: Sequence[Any]) -> StoredJob:
    state, line, number, deadline, attempt, cancel, code, tenant, cache, follows, has_input, digest = content
    return StoredJob(
        state=state.decode(),
        line=_text(line),
        number=_text(number),
        deadline=_text(deadline),
        attempt=int(attempt or 1),
        promised=cancel is not None,
        code=_text(code),
        tenant=_text(tenant),
        cache=_text(cache),
        follows=follows is not None,
        has_input=bool(has_input),
        digest=digest.decode(),
    )


def _batch(content: Sequence[bytes]) -> StoredBatch:
    line, stage, sequence, epoch, holder, lease, suspect, members = _texts(content)
    is_suspect = suspect == "1"
    return StoredBatch(line, stage, sequence, int(epoch), holder, int(lease), is_suspect, tuple(members.split()))
