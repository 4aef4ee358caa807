"""A worker that ends before its time gives back what it holds, says goodbye, and exits once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, cast

import pytest

from jobs.commands import Command, Released, Taken
from jobs.errors import StageTimeoutError, StoreUnavailableError
from jobs.store import JobStore
from tasks import departure
from tasks.departure import GRACE_S, Departure
from tasks.leases import Leases
from tasks.publisher import Publisher
from tests.waiting import wait_until


class Store:
    """Remembers the scripts that were called, with their arguments."""

    def __init__(self, away: Callable[[], object] = lambda: None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._away = away

    def run(self, command: Command[Any]) -> Any:
        self._away()
        self.calls.append((command.script, *command.arguments))
        return Released([], [])


class Nowhere:
    """Takes micro-batches that nobody gets."""

    def publish(self, _: object) -> None:
        """Drop them."""


class Bench:
    """A departure whose exit is written down."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.leases = Leases(cast("JobStore", store), "me", 60.0, lambda: b"{}")
        self.exits: list[int] = []
        parts = (cast("JobStore", store), self.leases, cast("Publisher", Nowhere()))
        self.departure = Departure(*parts, exit_now=self.exits.append)


@pytest.fixture
def bench() -> Bench:
    return Bench(Store())


def _taken(number: str) -> Taken:
    return Taken("taken", [], number, epoch=1)


def test_what_is_held_is_given_back_unharmed_and_goodbye_is_said(bench: Bench) -> None:
    with bench.leases.holding(_taken("1")), bench.leases.holding(_taken("2")):
        bench.departure.now("a test", 75)

    assert bench.store.calls == [
        ("release", "1", 1, "unharmed", "worker-lost"),
        ("release", "2", 1, "unharmed", "worker-lost"),
        ("leave", "me"),
    ]
    assert bench.exits == [75]


def test_only_the_guilty_one_comes_back_as_suspects(bench: Bench) -> None:
    with bench.leases.holding(_taken("1")) as guilty, bench.leases.holding(_taken("2")):
        bench.departure.now("a test", 75, guilty=guilty.taken, code="timeout")

    assert [call[1:4:2] for call in bench.store.calls[:2]] == [("1", "failed"), ("2", "unharmed")]


def test_it_exits_though_the_store_is_away() -> None:
    def away() -> None:
        raise StoreUnavailableError("away")

    alone = Bench(Store(away))
    alone.departure.now("a test", 75)

    assert alone.exits == [75]


def test_it_exits_though_the_store_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departure, "GIVE_BACK_S", 0.05)
    released = threading.Event()
    hangs = Bench(Store(released.wait))

    hangs.departure.now("a test", 75)

    assert hangs.exits == [75]
    released.set()


def test_a_drain_that_takes_too_long_is_ended_with_exit_code_0(bench: Bench) -> None:
    bench.departure.drain(0.01)

    wait_until(lambda: bench.exits == [0], 5, "the worker has ended")


def test_told_twice_a_worker_ends_at_once(bench: Bench) -> None:
    bench.departure.drain(3600)
    assert bench.exits == []
    bench.departure.drain(3600)

    wait_until(lambda: bench.exits == [0], 5, "the worker has ended")


def test_a_stage_that_is_late_is_asked_to_end_and_its_process_ends_if_it_does_not(bench: Bench) -> None:
    with bench.leases.holding(_taken("1")) as held:
        held.late_at = time.monotonic() + 60
        bench.departure.watch()
        assert held.halt.error is None

        held.late_at = time.monotonic() - 0.1
        bench.departure.watch()
        assert isinstance(held.halt.error, StageTimeoutError)
        assert bench.exits == []

        held.late_at = time.monotonic() - GRACE_S - 0.1
        bench.departure.watch()

    assert bench.exits == [75]
    assert ("release", "1", 1, "failed", "timeout") in bench.store.calls


@pytest.mark.parametrize("skew_s", [2.1, -3600.0])
def test_a_clock_that_is_wrong_ends_the_worker(bench: Bench, skew_s: float) -> None:
    bench.leases.skew_s = skew_s
    bench.departure.watch()

    assert bench.exits == [75]


def test_a_clock_that_is_a_little_off_does_not(bench: Bench) -> None:
    bench.leases.skew_s = 1.9
    bench.departure.watch()

    assert bench.exits == []
