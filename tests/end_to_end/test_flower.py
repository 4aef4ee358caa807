"""Flower shows the workers and the three tasks of a micro-batch."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from penstock.ports import free_port
from tests.servers import LOOPBACK
from tests.system import END_S, START_S, Role, System
from tests.waiting import wait_until

TASKS = {"penstock.preprocess", "penstock.inference", "penstock.postprocess"}


@pytest.fixture
def flower(system: System) -> Iterator[httpx.Client]:
    port = free_port(LOOPBACK)
    options = [f"--port={port}", f"--address={LOOPBACK}"]
    command = [sys.executable, "-m", "celery", "-A", "tasks.worker", "flower", *options]
    environment = system.environment() | {"FLOWER_UNAUTHENTICATED_API": "true"}
    with (
        Role(system.folder / "flower", command, environment).start(),
        httpx.Client(base_url=f"http://{LOOPBACK}:{port}", timeout=END_S) as client,
    ):
        wait_until(lambda: _answers(client), START_S, "Flower answers")
        yield client


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/workers").status_code == 200
    except httpx.TransportError:
        return False


def _tasks(client: httpx.Client) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = client.get("/api/tasks").json()
    return found


def test_flower_shows_the_workers_and_the_three_tasks_of_a_microbatch(system: System, flower: httpx.Client) -> None:
    names = {f"{system.namespace}-{n}@" for n in range(len(system.workers))}

    def shown() -> set[str]:
        page = flower.get("/workers").text
        return {name for name in names if name in page}

    def succeeded() -> set[str]:
        return {task["name"] for task in _tasks(flower).values() if task["state"] == "SUCCESS"}

    wait_until(lambda: shown() == names, START_S, "Flower's page shows every worker")

    def one_more() -> bool:
        system.ended(system.submit())  # Flower shows what happens after it has begun to listen
        return succeeded() >= TASKS

    wait_until(one_more, START_S, "Flower knows the three tasks")
    some = next(task for task in _tasks(flower).values() if task["name"] == "penstock.inference")
    assert "penstock.inference" in flower.get(f"/task/{some['uuid']}").text
    assert flower.get("/tasks").status_code == 200
