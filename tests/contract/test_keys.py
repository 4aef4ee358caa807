"""What the scripts leave in the store, and what remains of it. On the real servers."""

from __future__ import annotations

from jobs import commands
from jobs.commands import Outcome
from jobs.states import Event
from jobs.store import JobStore
from tests.contract.house import FLOW, NAMESPACE, House
from tests.waiting import wait_until

KEPT = {
    *("sequence", "pools", "seen", "workers", "workers-seen", "slots:default"),
    *("cost:m/1", "retry-turns", "paced", "pace:default/interactive/m/1"),
}
"""Keys without a TTL that remain when all jobs have ended: counters and marks, their number bounded by models,
pools and workers. ``live``, ``line``, ``lines``, ``turns``, ``deadlines``, ``retries``, ``suspects``, ``open``,
``flights`` and ``followers`` vanish when empty."""


def test_every_ended_job_has_a_ttl(house: House) -> None:
    completed, microbatch = house.submit_one()
    house.finish(microbatch)
    failed, taken = house.processing()
    house.end(taken, [Outcome(failed, Event.FAIL, b"{}", "internal")])
    expired, _ = house.submit_one()
    house.deadline_passes(expired)
    house.sweep()

    for task_id in (completed, expired):
        assert 0 < house.client.pttl(house.key(f"job:{task_id}")) <= 3_600_000
    assert 3_600_000 < house.client.pttl(house.key(f"job:{failed}")) <= 7_200_000  # a dead letter


def test_after_retention_only_what_is_allowed_remains(house: House) -> None:
    house.bound(retention_ms=1, dead_letter_retention_ms=1)
    house.beat("worker", slots=1)
    house.sweep()
    (microbatch,) = house.submit(*(house.job() for _ in range(4)))
    completed, failed, again, late = house.members(microbatch)
    house.deadline_passes(late)
    outcomes = [
        Outcome(failed, Event.FAIL, b"{}", "internal"),
        Outcome(again, Event.RETRY, code="internal", delay_ms=1),
    ]
    house.hand_on(house.take(microbatch), outcomes)
    house.lease_runs_out(house.take(microbatch, stage="inference").number)
    house.retry_is_due(again)
    for made in house.sweep().publish:
        assert house.members(made) in ([completed], [again])
        house.finish(made)
    wait_until(lambda: not house.client.exists(house.key(f"job:{failed}")), 5.0, "the dead letter is too old")
    house.sweep()
    house.client.delete(house.key("sweeper"))

    def left() -> set[str]:
        return {key.decode().removeprefix(f"{NAMESPACE}:") for key in house.client.keys("*")}

    wait_until(lambda: left() <= KEPT, 5.0, "jobs past their retention are gone")
    assert left() == KEPT


def test_a_micro_batch_s_record_has_a_ttl(house: House) -> None:
    _, microbatch = house.submit_one()

    assert house.client.pttl(house.key(f"microbatch:{microbatch.number}")) > 0


def test_ids_of_ended_jobs_are_published_on_the_channel(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    members = house.members(microbatch)
    with house.client.pubsub(ignore_subscribe_messages=True) as subscription:
        subscription.subscribe(house.key("ended"))
        wait_until(lambda: house.client.pubsub_numsub(house.key("ended"))[0][1] == 1, 5.0, "subscribed")

        house.finish(microbatch)

        heard = next(filter(None, (subscription.get_message(timeout=0.1) for _ in range(50))))
    assert heard["data"].decode().split(" ") == members


def test_the_keys_of_two_namespaces_do_not_meet(house: House) -> None:
    task_id, _ = house.submit_one()
    other = JobStore(house.client, "other", FLOW)

    assert other.run(commands.read([task_id])) == [None]
