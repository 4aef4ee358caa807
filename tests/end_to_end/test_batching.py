"""Natural batching: what arrives together travels together, and no answer is mixed up."""

from __future__ import annotations

import asyncio

import httpx
import numpy as np

from tests.end_to_end.reference import inputs, outputs
from tests.system import END_S, System

BURST = 300


async def _burst(url: str, rows: list[list[float]]) -> list[str]:
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=url, timeout=END_S, limits=limits) as client:
        answers = await asyncio.gather(*(client.post("/predict/tensor-demo", json={"input": row}) for row in rows))
    assert {answer.status_code for answer in answers} == {202}
    return [answer.json()["task_id"] for answer in answers]


def test_a_burst_travels_in_few_microbatches_and_every_answer_is_right(system: System) -> None:
    rows = inputs(BURST, seed=3)
    before = system.figures()
    task_ids = asyncio.run(_burst(system.url, rows.tolist()))
    documents = [system.ended(task_id) for task_id in task_ids]
    after = system.figures()

    assert len(set(task_ids)) == BURST
    assert np.allclose([each["result"]["y"] for each in documents], outputs(rows), atol=1e-5)
    microbatches = after.total("penstock_microbatch_size_count") - before.total("penstock_microbatch_size_count")
    travelled = after.total("penstock_microbatch_size_sum") - before.total("penstock_microbatch_size_sum")
    assert travelled == BURST
    assert microbatches < BURST / 3
    assert max(each["stages"][1]["microbatch_jobs"] for each in documents) > 1
    gathered = after.total("penstock_submits_gathered_count") - before.total("penstock_submits_gathered_count")
    assert gathered < BURST
