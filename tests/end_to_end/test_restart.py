"""Everything but the store may stop and start again: finished jobs still answer, waiting ones complete."""

from __future__ import annotations

import numpy as np

from tests.end_to_end.reference import inputs, outputs
from tests.system import System


def test_finished_jobs_still_answer_and_waiting_jobs_complete(system: System) -> None:
    rows = inputs(20, seed=4)
    finished = system.ended(system.submit())
    system.stop_workers()
    waiting = [system.submit(value=row) for row in rows.tolist()]
    system.stop_roles()
    if system.rabbit is not None:
        system.rabbit.kill()
        system.rabbit.start()
    system.start_roles()

    assert system.ended(finished["task_id"]) == finished
    results = [system.ended(task_id)["result"]["y"] for task_id in waiting]
    assert np.allclose(results, outputs(rows), atol=1e-5)


def test_the_store_itself_may_restart(system: System) -> None:
    finished = system.ended(system.submit())
    system.stop_workers()
    waiting = system.submit(value=[0.5] * 64)
    system.stop_roles()
    system.store.stop()
    system.store.start()
    system.start_roles()
    assert system.ended(finished["task_id"]) == finished
    assert system.ended(waiting)["status"] == "completed"
