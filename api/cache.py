"""The cached results that are asked for most, in the gateway's memory: least recently used go first.

The store is the cache; this saves its round trip. An entry lives for ``LIFE_S`` at most, so that a result which was
computed anew (``"cache": "refresh"``) at another gateway is told here soon.
"""

from __future__ import annotations

import time
from collections import OrderedDict

import msgspec

LIFE_S = 5.0
_ENTRY_BYTES = 400
"""Of an entry besides its document."""


class Cached(msgspec.Struct, frozen=True):
    """A terminal document; since when it answers, and until when it is kept, on the monotonic clock in seconds."""

    document: bytes
    since_s: float
    until_s: float


class ResultCache:
    """Documents by cache key, bounded in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._entries: OrderedDict[bytes, Cached] = OrderedDict()
        self.bytes = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> tuple[bytes, int] | None:
        """The document under ``key``, and its age in ms."""
        found = self._entries.get(key)
        if found is None:
            return None
        now_s = time.monotonic()
        if now_s > found.until_s:
            self.drop(key)
            return None
        self._entries.move_to_end(key)
        return found.document, int((now_s - found.since_s) * 1000)

    def put(self, key: bytes, document: bytes, age_ms: int, fresh_ms: int) -> None:
        """Keep what the store knows: a document that has answered for ``age_ms`` of ``fresh_ms``."""
        self.drop(key)
        now_s = time.monotonic()
        left_s = min(LIFE_S, (fresh_ms - age_ms) / 1000)
        if left_s <= 0 or len(document) + _ENTRY_BYTES > self._bytes_max:
            return
        self._entries[key] = Cached(document, now_s - age_ms / 1000, now_s + left_s)
        self.bytes += len(document) + _ENTRY_BYTES
        while self.bytes > self._bytes_max:
            self.drop(next(iter(self._entries)))
            self.evicted += 1

    def drop(self, key: bytes) -> None:
        """Forget an entry, if there is one."""
        found = self._entries.pop(key, None)
        if found is not None:
            self.bytes -= len(found.document) + _ENTRY_BYTES
