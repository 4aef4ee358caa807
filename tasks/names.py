"""The names by which gateways and workers find each other: tasks and queues."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.records import LANES, STAGES, StageName


def task_name(stage: StageName) -> str:
    """The Celery task of a stage; the gateway publishes by this name and never imports the task."""
    return f"penstock.{stage}"


def queue_name(pool: str, stage: str, lane: str) -> str:
    """The queue of a pool, a stage and a lane."""
    return f"{pool}.{stage}.{lane}"


def queue_names(pools: Sequence[str], stages: Sequence[StageName] = STAGES) -> list[str]:
    """Every queue of these pools and stages."""
    return [queue_name(pool, stage, lane) for pool in pools for stage in stages for lane in LANES]
