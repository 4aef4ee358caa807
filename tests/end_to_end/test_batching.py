"""Natural batching: what arrives while the pipeline is busy travels together, and no answer is mixed up."""

from __future__ import annotations

import signal

import numpy as np

from tests.end_to_end.reference import inputs, outputs
from tests.system import System

BURST = 300


def test_a_burst_travels_in_few_microbatches_and_every_answer_is_right(system: System) -> None:
    rows = inputs(BURST, seed=3)
    before = system.figures()
    for worker in system.workers:  # busy with something else, for a moment
        worker.send(signal.SIGSTOP)
    task_ids = system.submit_all(rows.tolist())
    for worker in system.workers:
        worker.send(signal.SIGCONT)
    documents = [system.ended(task_id) for task_id in task_ids]
    after = system.figures()

    def grown(name: str) -> float:
        return after.total(name) - before.total(name)

    assert len(set(task_ids)) == BURST
    assert np.allclose([each["result"]["y"] for each in documents], outputs(rows), atol=1e-5)
    assert grown("penstock_microbatch_size_sum") == BURST
    assert grown("penstock_microbatch_size_count") < BURST / 6
    assert max(each["stages"][1]["batch_rows"] for each in documents) > 1
    assert grown("penstock_submits_gathered_count") < BURST
