"""What a system says of itself: its models, and figures that no two processes count twice."""

from __future__ import annotations

from tests.system import END_S, System
from tests.waiting import wait_until

LATE = 3
DONE = 7


def test_models_are_listed_with_versions_signature_and_limits(system: System) -> None:
    listed = system.client.get("/models").json()["models"]
    assert {each["name"] for each in listed} == {"digits", "fragile", "patient", "spin", "tensor-demo"}
    one = system.client.get("/models/digits").json()
    assert one in listed
    assert one["active_version"] == 1
    version = one["versions"][0]
    assert (version["version"], version["state"], version["pool"]) == (1, "ready", "default")
    assert version["inputs"] == [{"name": "image", "dtype": "float32", "shape": [None, 64]}]
    assert version["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [None, 10]}]
    assert version["limits"]["input_bytes_max"] == 4 * 1024 * 1024
    assert len(version["digest"]) == 64
    assert (version["preprocess"], version["postprocess"]) == ("image", "classification")


def test_each_job_is_counted_once_across_all_processes(system: System) -> None:
    before = system.figures()
    done = [system.submit() for _ in range(DONE)]
    for task_id in done:
        system.ended(task_id)
    system.stop_workers()
    late = [system.submit(ttl_s=0.5) for _ in range(LATE)]
    wait_until(lambda: {system.job(each, "state") for each in late} == {"expired"}, END_S, "the jobs expire")
    assert {system.poll(task_id).json()["status"] for task_id in late} == {"expired"}
    gateway = system.figures(system.gateway)

    labels = {"model": "tensor-demo", "version": "1"}
    assert before.total("penstock_submitted_total", **labels) + DONE + LATE == gateway.total(
        "penstock_submitted_total", **labels
    )
    expired = {"outcome": "expired", **labels}
    assert gateway.total("penstock_jobs_total", **expired) - before.total("penstock_jobs_total", **expired) == LATE


def test_a_completed_job_is_counted_by_one_worker_with_its_times_and_sizes(system: System) -> None:
    before = system.figures()
    for _ in range(DONE):
        system.ended(system.submit())

    def grown(name: str, **labels: str) -> float:
        after = system.figures()
        return after.total(name, **labels) - before.total(name, **labels)

    wait_until(lambda: grown("penstock_end_to_end_seconds_count") >= DONE, END_S, "the last job is counted")
    assert grown("penstock_jobs_total", model="tensor-demo", version="1", outcome="completed") == DONE
    assert grown("penstock_jobs_total") == DONE
    assert grown("penstock_end_to_end_seconds_count") == DONE
    assert grown("penstock_queue_wait_seconds_count") == DONE
    assert grown("penstock_microbatch_size_sum") == DONE
    for stage in ("preprocess", "inference", "postprocess"):
        assert 1 <= grown("penstock_stage_seconds_count", stage=stage) <= DONE


def test_queue_depth_and_age_tell_what_waits(system: System) -> None:
    system.stop_workers()
    task_ids = [system.submit(lane="bulk") for _ in range(40)]

    def waiting() -> float:
        return system.figures(system.gateway).total("penstock_queue_depth", lane="bulk", stage="waiting")

    wait_until(lambda: waiting() > 0, END_S, "the gateway that sweeps shows the depth")
    figures = system.figures(system.gateway)
    window = figures.total("penstock_queue_depth", stage="window")
    assert 1 <= window <= 16
    assert waiting() <= 40
    assert figures.total("penstock_queue_oldest_age_seconds", lane="bulk") > 0
    system.start_roles()
    assert {system.ended(task_id)["status"] for task_id in task_ids} == {"completed"}
    wait_until(lambda: waiting() == 0, END_S, "the depth falls to 0")


def test_readiness_tells_what_it_checked(system: System) -> None:
    answer = system.client.get("/readyz")
    said = answer.json()
    assert said.pop("workers") in range(3)  # each that gave a sign of life within 15 s
    assert said == {"status": "ready", "checks": {"store": True, "broker": True, "clock": True, "models": True}}
