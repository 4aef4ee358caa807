"""The gateway's own cached results: bounded in bytes, short-lived, the least recently used goes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.cache import LIFE_S, ResultCache
from tests.unit.clock import Clock

ENTRY = 400
"""Bytes that an entry takes beside its document."""
HOUR_MS = 3_600_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("api.cache.time", clock)
    return clock


def _put(cache: ResultCache, *keys: bytes, document: bytes = bytes(100), age_ms: int = 0) -> None:
    for key in keys:
        cache.put(key, document, age_ms, HOUR_MS)


def _kept(cache: ResultCache, *keys: bytes) -> list[bytes]:
    return [key for key in keys if cache.get(key)]


def test_a_document_is_told_with_its_age(clock: Clock) -> None:
    cache = ResultCache(10_000)
    cache.put(b"k", b"document", 1_500, HOUR_MS)
    assert cache.get(b"k") == (b"document", 1_500)

    clock.now_s += 2.25
    assert cache.get(b"k") == (b"document", 3_750)


def test_what_was_never_put_is_not_there() -> None:
    assert ResultCache(10_000).get(b"k") is None
    assert not ResultCache(10_000)


def test_an_entry_lives_for_some_seconds_at_most(clock: Clock) -> None:
    cache = ResultCache(10_000)
    _put(cache, b"k")

    clock.now_s += LIFE_S
    assert cache.get(b"k")
    clock.now_s += 0.01
    assert cache.get(b"k") is None
    assert (len(cache), cache.bytes) == (0, 0)


def test_an_entry_lives_no_longer_than_its_answer_is_fresh(clock: Clock) -> None:
    cache = ResultCache(10_000)
    cache.put(b"k", b"document", 9_000, 10_000)

    clock.now_s += 0.99
    assert cache.get(b"k")
    clock.now_s += 0.02
    assert cache.get(b"k") is None


@pytest.mark.parametrize("age_ms", [10_000, 10_001])
def test_an_answer_that_is_fresh_no_more_is_not_kept(age_ms: int) -> None:
    cache = ResultCache(10_000)
    cache.put(b"k", b"document", age_ms, 10_000)

    assert len(cache) == 0


def test_the_least_recently_used_goes_first() -> None:
    cache = ResultCache(3 * (ENTRY + 100))
    _put(cache, b"a", b"b", b"c")
    assert cache.get(b"a")
    _put(cache, b"d")

    assert _kept(cache, b"a", b"b", b"c", b"d") == [b"a", b"c", b"d"]
    assert cache.evicted == 1


def test_a_large_document_pushes_out_several() -> None:
    cache = ResultCache(3 * (ENTRY + 100))
    _put(cache, b"a", b"b", b"c")
    _put(cache, b"d", document=bytes(700))

    assert _kept(cache, b"a", b"b", b"c", b"d") == [b"d"]


@pytest.mark.parametrize("bytes_max", [0, ENTRY, ENTRY + 99])
def test_a_document_that_is_larger_than_the_cache_is_not_kept(bytes_max: int) -> None:
    cache = ResultCache(bytes_max)
    _put(cache, b"k")

    assert (len(cache), cache.bytes, cache.evicted) == (0, 0, 0)


def test_an_entry_is_replaced_also_by_one_that_is_not_kept() -> None:
    cache = ResultCache(ENTRY + 100)
    cache.put(b"k", b"old", 0, HOUR_MS)
    cache.put(b"k", b"new", 0, HOUR_MS)
    found = cache.get(b"k")
    assert found is not None
    assert found[0] == b"new"
    assert cache.bytes == ENTRY + 3

    _put(cache, b"k", document=bytes(101))
    assert cache.get(b"k") is None


def test_an_entry_that_is_dropped_is_gone_with_its_bytes() -> None:
    cache = ResultCache(10_000)
    _put(cache, b"a", b"b")
    cache.drop(b"a")
    cache.drop(b"a")

    assert _kept(cache, b"a", b"b") == [b"b"]
    assert cache.bytes == ENTRY + 100


KEYS = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])


@given(st.integers(0, 3_000), st.lists(st.tuples(KEYS, st.integers(0, 2_000), st.booleans()), max_size=40))
def test_its_bytes_are_those_of_its_entries_and_never_more_than_it_may_have(
    bytes_max: int, steps: list[tuple[bytes, int, bool]]
) -> None:
    cache = ResultCache(bytes_max)
    held: dict[bytes, int] = {}
    for key, size, keeps in steps:
        if keeps:
            _put(cache, key, document=bytes(size))
        else:
            cache.drop(key)
        held[key] = size
        found = {each: document for each in held if (document := cache.get(each))}
        assert cache.bytes == sum(ENTRY + len(document) for document, _ in found.values()) <= bytes_max
        assert len(cache) == len(found)
