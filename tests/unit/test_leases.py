"""The thread that keeps a worker's leases."""

from __future__ import annotations

import threading
from typing import Any, cast

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
