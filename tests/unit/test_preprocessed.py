"""The preprocessing cache: equal answers for fewer runs, within its bytes."""

from __future__ import annotations

import gc
import hashlib
import threading
import tracemalloc
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from jobs.errors import InvalidInputError, PenstockError
from jobs.payload import Payload
from jobs.tensors import Tensors
from tasks import metrics
from tasks.preprocessed import ENTRY_BYTES, Preprocessed, Stored

ROOM = 1_000_000


class Counting:
    """A kind that gives an input's bytes as numbers, or refuses it, and notes what it ran."""

    media_types = frozenset[str]()

    def __init__(self, factor: int = 1) -> None:
        self.ran: list[bytes] = []
        self.factor = factor

    def from_json(self, raw: bytes | msgspec.Raw) -> Payload:
        raise NotImplementedError

    def from_bytes(self, media_type: str, body: bytes) -> Payload:
        raise NotImplementedError

    def run(self, payloads: Sequence[Payload]) -> list[Tensors | PenstockError]:
        self.ran += [each.data for each in payloads]
        return [self._one(each.data) for each in payloads]

    def _one(self, data: bytes) -> Tensors | PenstockError:
        if data == b"bad":
            return InvalidInputError("bad")
        whole = np.frombuffer(data, np.uint8).reshape(1, -1) * self.factor
        return {"x": whole, "left": whole[:, :1]}


def stored(data: bytes, media_type: str = "a/b") -> Stored:
    return Stored(media_type, data, hashlib.sha256(data).digest())


def seen(results: Sequence[Any]) -> list[Any]:
    """Results in plain values."""
    return [
        each.detail if isinstance(each, PenstockError) else {name: array.tolist() for name, array in each.items()}
        for each in results
    ]


def counted() -> tuple[float, float]:
    """Hits and misses so far."""
    total = metrics.preprocess_cache_total
    return total.labels("hit")._value.get(), total.labels("miss")._value.get()


def test_answers_are_equal_with_and_without_it_and_known_inputs_are_not_run_again() -> None:
    cached, plain, cache = Counting(), Counting(), Preprocessed(ROOM)
    batches = [[b"ab", b"cd"], [b"cd", b"ef", b"ab"], [b"ef"]]
    for batch in batches:
        payloads = [stored(each) for each in batch]
        assert seen(cache.run(cached, payloads)) == seen(plain.run(payloads))
    assert cached.ran == [b"ab", b"cd", b"ef"]
    assert len(plain.ran) == 6


def test_equal_inputs_of_one_microbatch_are_run_once() -> None:
    kind = Counting()
    first, second = Preprocessed(ROOM).run(kind, [stored(b"ab"), stored(b"ab")])
    assert seen([first]) == seen([second])
    assert kind.ran == [b"ab"]


def test_without_bytes_nothing_is_kept_or_counted() -> None:
    kind, before = Counting(), counted()
    cache = Preprocessed(0)
    for _ in range(2):
        cache.run(kind, [stored(b"ab")])
    assert kind.ran == [b"ab", b"ab"]
    assert counted() == before


def test_errors_are_run_again_and_leave_their_companions_alone() -> None:
    kind, cache = Counting(), Preprocessed(ROOM)
    for _ in range(2):
        bad, good = cache.run(kind, [stored(b"bad"), stored(b"ab")])
        assert isinstance(bad, InvalidInputError)
        assert seen([good]) == [{"x": [[97, 98]], "left": [[97]]}]
    assert kind.ran == [b"bad", b"ab", b"bad"]


def test_hits_and_misses_are_counted() -> None:
    before, cache, kind = counted(), Preprocessed(ROOM), Counting()
    cache.run(kind, [stored(b"ab"), stored(b"cd")])
    cache.run(kind, [stored(b"ab"), stored(b"ef"), stored(b"ab")])
    assert np.subtract(counted(), before).tolist() == [2, 3]


def test_another_media_type_or_another_kind_is_another_input() -> None:
    """Each version has a kind of its own, made anew when its files or options change."""
    one, other, cache = Counting(1), Counting(2), Preprocessed(ROOM)
    cache.run(one, [stored(b"ab", "a/b")])
    cache.run(one, [stored(b"ab", "c/d")])
    assert one.ran == [b"ab", b"ab"]
    assert seen(cache.run(other, [stored(b"\1\2")])) == [{"x": [[2, 4]], "left": [[2]]}]


def test_a_kind_that_took_the_place_of_another_is_never_answered_for_it() -> None:
    cache = Preprocessed(ROOM)
    for factor in range(1, 50):  # each lies where the one before it lay in memory
        kind = Counting(factor)
        assert seen(cache.run(kind, [stored(b"\1\2")])) == [{"x": [[factor, 2 * factor]], "left": [[factor]]}]
        del kind
        gc.collect()


@pytest.mark.parametrize("again", [False, True])
def test_what_is_handed_out_cannot_be_changed(again: bool) -> None:  # noqa: FBT001 - a case
    kind, cache = Counting(), Preprocessed(ROOM)
    (item,) = cache.run(kind, [stored(b"ab")])
    if again:
        (item,) = cache.run(kind, [stored(b"ab")])
    for array in item.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.setflags(write=True)


def test_a_kind_may_go_on_with_the_array_that_it_gave() -> None:
    scratch = np.zeros((1, 2), np.float32)

    class Reusing(Counting):
        def _one(self, data: bytes) -> Tensors:
            scratch[...] = len(data)
            return {"x": scratch}

    cache, kind = Preprocessed(ROOM), Reusing()
    cache.run(kind, [stored(b"abc")])
    cache.run(kind, [stored(b"abcdef")])
    assert seen(cache.run(kind, [stored(b"abc")])) == [{"x": [[3, 3]]}]


def test_the_least_recently_used_goes_first() -> None:
    kind = Counting()
    cache = Preprocessed(3 * (ENTRY_BYTES + 3))
    for data in (b"aa", b"bb", b"cc", b"aa", b"dd"):  # dd takes the place of bb
        cache.run(kind, [stored(data)])
    kind.ran.clear()
    for data in (b"aa", b"cc", b"dd", b"bb"):
        cache.run(kind, [stored(data)])
    assert kind.ran == [b"bb"]


def test_what_is_larger_than_the_cache_is_answered_and_displaces_nothing() -> None:
    kind, cache = Counting(), Preprocessed(ENTRY_BYTES + 100)
    cache.run(kind, [stored(b"aa")])
    large = bytes(200)
    assert seen(cache.run(kind, [stored(large)])) == seen(Counting().run([stored(large)]))
    kind.ran.clear()
    cache.run(kind, [stored(b"aa")])
    assert kind.ran == []


@pytest.mark.parametrize("size", [1, 10_000])
def test_its_memory_stays_within_its_bytes(size: int) -> None:
    cache, kind, most = Preprocessed(ROOM), Counting(), 0
    tracemalloc.start()
    try:
        for number in range(3 * ROOM // (ENTRY_BYTES + size)):
            cache.run(kind, [stored(number.to_bytes(4, "big") + bytes(size))])
            kind.ran.clear()
            most = max(most, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert 0.5 * ROOM < most < 1.05 * ROOM


def test_threads_that_share_it_get_their_own_answers() -> None:
    cache, kind, wrong = Preprocessed(20 * ENTRY_BYTES), Counting(), list[bytes]()

    def ask(first: int) -> None:
        for number in range(first, first + 300):
            data = (number % 40).to_bytes(2, "big")
            if seen(cache.run(kind, [stored(data)])) != [{"x": [list(data)], "left": [[data[0]]]}]:
                wrong.append(data)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache._bytes == sum(ENTRY_BYTES + 3 for _ in cache._kept) <= 20 * ENTRY_BYTES
