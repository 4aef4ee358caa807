"""A store whose time is the test's: the scripts read the instant from a key, and what has a TTL ages with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import pytest

from jobs import store
from jobs.store import Flow
from tests.contract.life.flights import FOLLOWERS_AT_ONCE

CLOCK = "test-clock"
SERVER_TIME = "local NOW = time[1] * 1000 + math.floor(time[2] / 1000)"
TEST_TIME = f"local NOW = tonumber(call('GET', P .. '{CLOCK}'))"
MANY = "local FOLLOWERS_AT_ONCE = 256"
FEW = f"local FOLLOWERS_AT_ONCE = {FOLLOWERS_AT_ONCE}"
PASS = """
local prefix, ms = KEYS[1], tonumber(ARGV[1])
for _, key in ipairs(redis.call('KEYS', prefix .. '*')) do
  local left = redis.call('PTTL', key)
  if left > 0 and left <= ms then redis.call('DEL', key)
  elseif left > 0 then redis.call('PEXPIRE', key, left - ms) end
end
return redis.call('INCRBY', prefix .. 'test-clock', ms)
"""


class Break(NamedTuple):
    """A script made wrong on purpose: ``old`` stands in its text, or in one that is a part of every script."""

    script: str
    old: str
    new: str


@contextmanager
def own_clock(breaks: Sequence[Break] = ()) -> Iterator[None]:
    """Let every script read the test's clock, and have these faults."""
    original = store.source

    @cache
    def altered(script: str, flow: Flow) -> str:
        text = _replaced(_replaced(original(script, flow), SERVER_TIME, TEST_TIME), MANY, FEW)
        for each in breaks:
            if each.script in {script, *store.SHARED_TEXTS}:
                text = _replaced(text, each.old, each.new)
        return text

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "source", altered)
        store.digest.cache_clear()
        try:
            yield
        finally:
            store.digest.cache_clear()


def pass_time(client: Any, prefix: str, ms: int) -> None:
    """Move the clock, back where ``ms`` is negative, and age what has a TTL as much."""
    client.eval(PASS, 1, prefix, ms)


def _replaced(text: str, old: str, new: str) -> str:
    if text.count(old) != 1:  # no AssertionError: that would pass for a law which found the fault
        raise LookupError(f"stands {text.count(old)} times in the script: {old}")
    return text.replace(old, new)
