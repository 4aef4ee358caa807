"""The thread beside the stages: it loads under longer leases, survives what goes wrong, and ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import redis
from onnx import helper

from inference.engine import Engine
from jobs.connect import redis_client
from jobs.errors import SetupError
from jobs.models import ModelRecord
from tasks.catalog import Catalog
from tasks.leases import Leases
from tasks.models_watch import ModelsWatch
from tests.servers import RedisServer
from tests.unit.graphs import doubling, graph, place
from tests.waiting import wait_until

SOON_S = 30.0


class Budgets:
    """Leases that only count: what is held for longer, and for how long."""

    def __init__(self) -> None:
        self.now: list[float] = []

    @contextmanager
    def extended(self, budget_s: float) -> Iterator[None]:
        self.now.append(budget_s)
        yield
        self.now.pop()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[redis.Redis]:
    with RedisServer(tmp_path / "redis").start() as server, redis_client(server.url, 5.0) as client:
        yield client


Make = Callable[[Catalog, Engine], ModelsWatch]


@pytest.fixture
def watch() -> Iterator[Make]:
    made: list[ModelsWatch] = []

    def make(catalog: Catalog, engine: Engine, leases: Any = None) -> ModelsWatch:
        leases = cast("Leases", leases or Budgets())
        made.append(ModelsWatch(catalog, engine, leases, refresh_s=0.05, load_budget_s=9.0))
        return made[-1]

    yield make
    for each in made:
        each.stop()


def test_a_version_is_added_changed_and_removed_under_a_running_worker(
    tmp_path: Path, client: redis.Redis, watch: Callable[..., ModelsWatch]
) -> None:
    """With real trial loads and real sessions."""
    models, leases = tmp_path / "models", Budgets()
    place(models, doubling())
    catalog = Catalog(client, "t", models, ("default",))
    catalog.publish()
    loaded: list[tuple[int, list[float]]] = []

    class Watched(Engine):
        def warm(self, record: ModelRecord) -> None:
            loaded.append((record.version, list(leases.now)))
            super().warm(record)

    engine = Watched(models, 1)
    (first,) = catalog.ready()
    engine.warm(first)
    watch(catalog, engine, leases).start()

    negative = graph([helper.make_node("Neg", ["x"], ["y"])], {"x": ["rows", 3]}, {"y": ["rows", 3]})
    place(models, negative, version=2)
    wait_until(lambda: client.hget("t:models", "toy/2") and len(list(catalog.ready())) == 2, SOON_S)
    second = catalog.served("toy", 2).record
    assert engine.loaded(second)
    assert loaded[1] == (2, [9.0])

    place(models, negative)
    wait_until(lambda: catalog.served("toy", 1).record != first, SOON_S, "the change is taken up")
    (outcome,) = engine.run(catalog.served("toy", 1).record, [{"x": np.ones((1, 3), np.float32)}])
    assert cast("Any", outcome)["y"].tolist() == [[-1, -1, -1]]
    wait_until(lambda: not engine.loaded(first), SOON_S, "what was replaced is dropped")

    (models / "toy" / "2" / "model.onnx").unlink()
    (models / "toy" / "2").rmdir()
    wait_until(lambda: not engine.loaded(second), SOON_S, "what was removed is dropped")
    assert client.hget("t:models", "toy/2") is None


class Moody:
    """A catalog whose polls fail in their turn."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.polled = threading.Event()
        self.left = False

    def refresh(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.polled.set()

    def leave(self) -> None:
        self.left = True
        raise redis.ConnectionError


def test_polls_that_fail_are_followed_by_others_and_the_end_is_quiet(watch: Make) -> None:
    catalog = Moody(
        SetupError("gone"), redis.ConnectionError("away"), OSError("odd"), RuntimeError("a fault of ours")
    )
    watching = watch(cast("Catalog", catalog), cast("Engine", None))
    watching.start()
    assert catalog.polled.wait(SOON_S)
    watching.stop()
    assert catalog.left
    assert "models" not in [each.name for each in threading.enumerate()]


def test_a_worker_that_drains_takes_up_nothing_more(watch: Make) -> None:
    catalog = Moody()
    watching = watch(cast("Catalog", catalog), cast("Engine", None))
    watching.pause()
    watching.start()
    assert not catalog.polled.wait(0.2)
