"""A worker whose models bring Python steps: one that cannot be loaded breaks its version and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import redis

import tasks.catalog
from jobs import steps
from jobs.connect import redis_client
from jobs.errors import ModelUnavailableError
from jobs.models import ModelConfig, ModelRecord
from jobs.settings import read_settings
from tasks.catalog import Catalog
from tests.servers import RedisServer
from tests.unit.graphs import doubling, place, placed_record, record_of

SIGNATURE = record_of(("x", "float32", (None, 3)), outputs=[("y", "float32", (None, 3))]).signature


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis") / "server").start() as server:
        yield server


@pytest.fixture
def store(server: RedisServer) -> Iterator[redis.Redis]:
    with redis_client(server.url, 5.0) as client:
        client.flushall()
        yield client


@pytest.fixture(autouse=True)
def _no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def sound(folder: Path, config: ModelConfig, *_: object) -> ModelRecord:
        return placed_record(folder, SIGNATURE, config)

    monkeypatch.setattr(tasks.catalog, "trial", sound)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two models: one with a step, and one without."""
    place(tmp_path, doubling(), "plain")
    place(tmp_path, doubling(), "stepped")
    (tmp_path / "stepped" / "model.toml").write_text('[preprocess]\nkind = "python"\n')
    (tmp_path / "stepped" / "steps.py").write_text("def preprocess(inputs, parameters):\n    return []\n")
    return tmp_path


def started(store: redis.Redis, models: Path) -> tuple[Catalog, dict[str, Any]]:
    """The catalog of a worker that started, and the published states and reasons."""
    catalog = Catalog(store, "t", models, ("default",))
    catalog.publish()
    raw = cast("dict[bytes, bytes]", store.hgetall("t:models"))
    records = {field.decode(): msgspec.json.decode(each, type=ModelRecord) for field, each in raw.items()}
    return catalog, {field: (record.state, record.reason) for field, record in records.items()}


def test_a_step_that_cannot_be_loaded_breaks_its_version_alone(store: redis.Redis, models: Path) -> None:
    (models / "stepped" / "steps.py").write_text("\nundefined\n")
    catalog, states = started(store, models)
    assert states == {
        "plain/1": ("ready", ""),
        "stepped/1": (
            "broken",
            "preprocess.options.file: steps.py, line 2: NameError; the worker's log says more",
        ),
    }
    assert catalog.served("plain", 1)
    with pytest.raises(ModelUnavailableError):
        catalog.served("stepped", 1)


@pytest.mark.parametrize("how", ["edited", "forbidden"])
def test_a_worker_that_starts_again_lives_on_with_a_step_that_it_cannot_load_any_more(
    store: redis.Redis, models: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    assert started(store, models)[1]["stepped/1"] == ("ready", "")
    if how == "edited":
        (models / "stepped" / "steps.py").write_text("def preprocess(:\n")
    else:
        monkeypatch.setattr(steps, "settings", lambda: read_settings(python_steps=False))

    catalog, states = started(store, models)

    state, reason = states["stepped/1"]
    assert state == "broken"
    assert ("line 1: SyntaxError" if how == "edited" else "PENSTOCK_PYTHON_STEPS=true") in reason
    assert catalog.served("plain", 1)


def test_a_step_that_was_mended_is_served_again(store: redis.Redis, models: Path) -> None:
    file = models / "stepped" / "steps.py"
    sound = file.read_text()
    file.write_text("undefined\n")
    started(store, models)
    file.write_text(sound)
    catalog, states = started(store, models)
    assert states["stepped/1"] == ("ready", "")
    assert catalog.served("stepped", 1)
