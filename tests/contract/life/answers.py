"""What may be told without running anything: what lies under idempotency keys, and the results in the cache."""

from __future__ import annotations

from typing import NamedTuple

from jobs.records import Idempotency

FAILURE_FRESH_MS = 10_000
FINGERPRINT = 32


class Known(NamedTuple):
    """Which job has an answer, since when, and until when it is told."""

    task_id: str
    since: int
    until: int


class Answers:
    """As they must be."""

    def __init__(self, idempotency_ms: int, cache_max: int, retention_ms: int) -> None:
        self.keys: dict[str, tuple[bytes, int]] = {}
        """By idempotency key: what is kept, and until when."""
        self.known: dict[str, Known] = {}
        """By cache key."""
        self.evicted = 0
        self._idempotency_ms = idempotency_ms
        self._cache_max = cache_max
        self._retention_ms = retention_ms

    def kept(self, key: Idempotency | None) -> bytes | None:
        """What was kept under a key that came before."""
        return self.keys[key.name][0] if key and key.name in self.keys else None

    def keep(self, key: Idempotency | None, now: int, answered_by: str = "") -> None:
        """Keep the answer to a request, or which job it was answered with."""
        if key:
            kept = key.kept[:FINGERPRINT] + answered_by.encode() if answered_by else key.kept
            self.keys[key.name] = (kept, now + self._idempotency_ms)

    def remember(self, cache: str, task_id: str, fresh_ms: int, now: int) -> None:
        """A job's answer may be told for so long; beyond their most the one that would end first goes."""
        fresh_ms = min(fresh_ms, self._retention_ms)
        if fresh_ms <= 0:
            return
        self.known[cache] = Known(task_id, now, now + fresh_ms)
        while len(self.known) > self._cache_max:
            del self.known[min(self.known, key=lambda each: (self.known[each].until, each))]
            self.evicted += 1

    def recall(self, cache: str, now: int) -> Known | None:
        """The answer that is still told."""
        known = self.known.get(cache)
        return known if known and known.until > now else None

    def swept(self, now: int) -> None:
        """The sweeper forgets what is told no more."""
        self.known = {cache: known for cache, known in self.known.items() if known.until > now}

    def adopt(self, stored: set[str], now: int, slack_ms: int) -> None:
        """Learn which idempotency keys are past their TTL."""
        for name in set(self.keys) - stored:
            assert now >= self.keys.pop(name)[1] - slack_ms, f"idempotency key {name} is gone too early"
