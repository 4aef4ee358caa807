"""The thread that keeps a worker's leases."""

from __future__ import annotations

import threading
import time
from typing import Any, cast

import pytest

from jobs.commands import Beaten, Taken
from jobs.errors import CancelledError, InternalError
from jobs.store import JobStore
from tasks.leases import Leases


class _Store:
    """Takes every command and has nothing to say."""

    def run(self, command: Any) -> Any:
        return command.read([])


def test_starting_twice_keeps_one_thread() -> None:
    """Celery says "ready" again after each reconnection."""
    leases = Leases(cast("JobStore", _Store()), "worker", 6.0, lambda: b"{}")
    before = threading.active_count()

    leases.start()
    leases.start()

    assert threading.active_count() == before + 1
    leases.stop()
    assert threading.active_count() == before


class _Answers(_Store):
    """Answers every sign of life in the same way."""

    def __init__(self, beaten: Beaten) -> None:
        self._beaten = beaten

    def run(self, _: Any) -> Any:
        return self._beaten


def _leases(**said: Any) -> Leases:
    beaten = Beaten(**{"now_ms": int(time.time() * 1000), "lost": [], "cancelled": [], **said})
    return Leases(cast("JobStore", _Answers(beaten)), "worker", 6.0, lambda: b"{}")


@pytest.mark.parametrize(("said", "error"), [("lost", InternalError), ("cancelled", CancelledError)])
def test_a_run_that_is_void_is_ended(said: str, error: type[Exception]) -> None:
    leases = _leases(**{said: ["1"]})
    with leases.holding(Taken("taken", [], "1")) as void, leases.holding(Taken("taken", [], "2")) as other:
        leases.beat()

    assert isinstance(void.halt.error, error)
    assert other.halt.error is None


def test_a_sign_of_life_tells_how_far_the_clocks_are_apart() -> None:
    leases = _leases(now_ms=int(time.time() * 1000) + 3_600_000)
    leases.beat()

    assert leases.skew_s == pytest.approx(3600, abs=5)
