"""What the scripts mend: dead workers, suspects, lost messages, the sweeper. On the real servers."""

from __future__ import annotations

from jobs import commands
from jobs.commands import Doubtful, Swept
from tests.contract.house import POOL, WINDOW, House, ids

# --- Dead workers and suspects ---


def test_what_ran_when_its_worker_died_comes_back_as_suspects_alone_and_one_at_a_time(house: House) -> None:
    (microbatch,) = house.submit(*(house.job() for _ in range(3)))
    members = house.members(microbatch)
    house.lease_runs_out(house.take(microbatch).number)

    swept = house.sweep()
    seen = []
    assert swept.recovered == 1
    made = swept.publish
    while made:
        (suspect,) = made
        assert house.sweep().publish == []  # no second one beside it
        taken = house.take(suspect)
        assert taken.suspect
        seen += [member.task_id for member in taken.members]
        made = house.end(taken).publish

    assert seen == members


def test_other_jobs_flow_while_a_suspect_runs(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    house.lease_runs_out(house.take(microbatch).number)
    house.sweep()

    task_id, other = house.submit_one()

    assert house.members(other) == [task_id]


def test_companions_lose_no_attempt_and_only_a_suspect_is_charged(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    guilty, innocent = house.members(microbatch)
    house.lease_runs_out(house.take(microbatch).number)
    assert [house.view(each).attempt for each in (guilty, innocent)] == [1, 1]

    (suspect,) = house.sweep().publish
    assert house.members(suspect) == [guilty]
    house.lease_runs_out(house.take(suspect).number)
    house.sweep()

    assert [house.view(each).attempt for each in (guilty, innocent)] == [2, 1]


def test_a_suspect_that_kills_its_worker_at_the_last_attempt_fails(house: House) -> None:
    guilty, taken = house.processing(attempts_max=2)
    for _ in range(2):  # the first death charges nobody
        house.lease_runs_out(taken.number)
        (suspect,) = house.sweep().publish
        taken = house.take(suspect)
    assert taken.members[0].attempt == 2

    house.lease_runs_out(taken.number)
    swept = house.sweep()

    view = house.view(guilty)
    assert (ids(swept.ended), swept.publish) == ([guilty], [])
    assert (view.state, view.code, view.stage, view.attempt) == ("failed", "worker-lost", "preprocess", 2)


def test_a_suspect_is_not_charged_while_the_holder_of_its_lease_lives(house: House) -> None:
    """The reply to its take was lost, or the store was away: the lease ran out and nobody died."""
    task_id, taken = house.processing(attempts_max=1)
    house.lease_runs_out(taken.number)
    for _ in range(3):
        (suspect,) = house.sweep().publish
        house.lease_runs_out(house.take(suspect, "alive").number)
        house.beat("alive")

    house.sweep()

    assert (house.view(task_id).state, house.view(task_id).attempt) == ("queued", 1)


def test_whoever_finds_a_deadline_passed_is_told_so_once(house: House) -> None:
    polled, (taken_late, microbatch) = house.submit_one()[0], house.submit_one()
    house.deadline_passes(polled)
    house.deadline_passes(taken_late)

    assert [house.view(polled).ended_here for _ in range(2)] == [True, False]
    assert ids(house.take(microbatch).ended) == [taken_late]


def test_what_expired_before_its_worker_died_does_not_come_back(house: House) -> None:
    task_id, taken = house.processing()
    house.deadline_passes(task_id)
    assert house.view(task_id).state == "expired"
    house.lease_runs_out(taken.number)

    swept = house.sweep()

    assert (swept.publish, swept.ended) == ([], [])
    assert house.client.zcard(house.key(f"suspects:{POOL}")) == 0


def test_a_redelivery_after_the_lease_ran_out_leaves_it_to_the_sweeper(house: House) -> None:
    task_id, microbatch = house.submit_one()
    house.take(microbatch, "dead")
    house.lease_runs_out(microbatch.number)

    assert house.take(microbatch, "alive").verdict == "held"
    assert [house.members(each) for each in house.sweep().publish] == [[task_id]]


def _after_a_pause(house: House) -> Swept:
    """A sweep after nobody swept for long, as when the store was away."""
    house.client.delete(house.key("sweeper"))
    return house.sweep()


def test_a_lease_that_ran_out_while_nobody_swept_is_spared_until_its_holder_had_time_to_speak(house: House) -> None:
    _, taken = house.processing()
    house.lease_runs_out(taken.number)

    assert _after_a_pause(house).recovered == 0
    assert house.beat("worker", [(taken.number, taken.epoch)]).lost == []
    assert house.end(taken).held


def test_a_lease_is_spared_once(house: House) -> None:
    _, taken = house.processing()
    for recovered in (0, 1):
        house.lease_runs_out(taken.number)
        assert _after_a_pause(house).recovered == recovered


def test_a_suspect_whose_holder_lived_through_a_pause_loses_no_attempt(house: House) -> None:
    task_id, taken = house.processing(attempts_max=1)
    (suspect,) = house.release(taken, "failed")
    house.take(suspect)
    house.lease_runs_out(suspect.number)

    _after_a_pause(house)
    house.beat("worker")
    house.lease_runs_out(suspect.number)
    swept = house.sweep()

    assert (swept.recovered, swept.ended) == (1, [])
    assert house.view(task_id).attempt == 1


def test_no_worker_is_forgotten_right_after_a_pause(house: House) -> None:
    house.beat("silent", slots=1)
    house.client.zadd(house.key("workers-seen"), {"silent": house.now_ms - 60_000})

    _after_a_pause(house)
    assert house.client.hexists(house.key(f"slots:{POOL}"), "silent")
    house.sweep()
    assert not house.client.hexists(house.key(f"slots:{POOL}"), "silent")


def test_a_lease_that_was_extended_is_not_recovered(house: House) -> None:
    _, taken = house.processing()
    house.look_is_due(taken.number)

    assert house.sweep().recovered == 0
    assert house.sweep().doubtful == []


def test_a_suspect_that_expires_while_it_waits_does_not_run(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    first, second = house.members(microbatch)
    house.lease_runs_out(house.take(microbatch).number)
    (suspect,) = house.sweep().publish
    house.deadline_passes(second)
    house.sweep()

    assert house.members(suspect) == [first]
    assert house.end(house.take(suspect)).publish == []
    assert house.view(second).state == "expired"


def test_a_suspect_s_record_that_is_gone_does_not_hold_up_the_others(house: House) -> None:
    (microbatch,) = house.submit(house.job(), house.job())
    _, second = house.members(microbatch)
    house.lease_runs_out(house.take(microbatch).number)
    (suspect,) = house.sweep().publish
    house.client.delete(house.key(f"microbatch:{suspect.number}"))
    house.look_is_due(suspect.number)

    (following,) = house.sweep().publish

    assert house.members(following) == [second]


# --- Lost messages ---


def _overtaken(house: House) -> tuple[commands.MicroBatch, commands.MicroBatch]:
    """A micro-batch published long ago, and a younger one of its queue that was received."""
    (_, old), (_, young) = house.submit_one(), house.submit_one()
    house.published_ago(old.number, 3_000)
    house.published_ago(young.number, 1_000)
    house.look_is_due(old.number)
    house.take(young)
    return old, young


def test_a_message_that_a_younger_one_overtook_is_lost_and_published_again(house: House) -> None:
    old, _ = _overtaken(house)

    swept = house.sweep()

    assert [(each.number, each.stage) for each in swept.publish] == [(old.number, "preprocess")]
    assert swept.publish[0].sequence != old.sequence
    assert swept.published == 1


def test_publishing_again_voids_the_old_message(house: House) -> None:
    old, _ = _overtaken(house)
    (again,) = house.sweep().publish

    assert house.take(old).verdict == "superseded"
    assert house.take(again).verdict == "taken"


def test_a_young_message_is_not_looked_at(house: House) -> None:
    (_, old), (_, young) = house.submit_one(), house.submit_one()
    house.published_ago(old.number, 1_500)
    house.take(young)

    swept = house.sweep()

    assert (swept.publish, swept.doubtful) == ([], [])


def test_a_younger_message_of_another_queue_proves_nothing(house: House) -> None:
    (_, old), (_, young) = house.submit_one(), house.submit_one(lane="bulk")
    house.published_ago(old.number, 3_000)
    house.look_is_due(old.number)
    house.take(young)

    swept = house.sweep()

    assert swept.publish == []
    assert swept.doubtful == [Doubtful(old.number, old.sequence, "default.preprocess.interactive")]


def test_a_backlog_that_nobody_consumes_is_not_published_again(house: House) -> None:
    window = house.fill_window()
    sequence = house.client.get(house.key("sequence"))
    for _ in range(3):
        for each in window:
            house.published_ago(each.number, 60_000)
            house.look_is_due(each.number)
        swept = house.sweep()
        assert (swept.publish, len(swept.doubtful)) == ([], WINDOW)

    assert house.client.get(house.key("sequence")) == sequence


def test_a_doubtful_one_is_published_again_when_the_broker_s_queue_is_empty(house: House) -> None:
    _, microbatch = house.submit_one()
    house.published_ago(microbatch.number, 3_000)
    house.look_is_due(microbatch.number)
    doubtful = house.sweep().doubtful

    (again,) = house.store.run(commands.republish(doubtful))

    assert (again.number, again.line) == (microbatch.number, microbatch.line)
    assert house.take(microbatch).verdict == "superseded"
    assert house.take(again).verdict == "taken"


def test_a_doubtful_one_that_was_taken_meanwhile_is_left_alone(house: House) -> None:
    _, microbatch = house.submit_one()
    house.look_is_due(microbatch.number)
    doubtful = house.sweep().doubtful
    house.take(microbatch)

    assert house.store.run(commands.republish(doubtful)) == []


def test_republishing_twice_does_it_once(house: House) -> None:
    _, microbatch = house.submit_one()
    house.look_is_due(microbatch.number)
    doubtful = house.sweep().doubtful

    assert [len(house.store.run(commands.republish(doubtful))) for _ in range(2)] == [1, 0]


def test_a_lost_message_of_a_later_stage_is_published_again_for_that_stage(house: House) -> None:
    _, microbatch = house.submit_one()
    house.hand_on(house.take(microbatch))
    house.look_is_due(microbatch.number)

    (again,) = house.store.run(commands.republish(house.sweep().doubtful))

    assert again.stage == "inference"
    assert house.take(again).verdict == "taken"


def test_between_publishings_the_time_doubles_up_to_a_bound(house: House) -> None:
    _, microbatch = house.submit_one()
    pauses_s = []
    for _ in range(6):
        house.look_is_due(microbatch.number)
        (again,) = house.store.run(commands.republish(house.sweep().doubtful))
        published = int(house.client.hget(house.key(f"microbatch:{again.number}"), "published"))
        pauses_s.append((house.client.zscore(house.key(f"live:{POOL}"), again.number) - published) / 1000)

    assert pauses_s == [4, 8, 16, 32, 32, 32]


def test_after_an_outage_of_the_broker_all_that_waits_is_looked_at_at_once(house: House) -> None:
    _, lost = house.submit_one()
    for _ in range(3):  # in vain
        house.look_is_due(lost.number)
        house.store.run(commands.republish(house.sweep().doubtful))
    house.submit_one()  # published just now
    house.published_ago(lost.number, 300)

    assert [each.number for each in house.sweep(after_outage=True).doubtful] == [lost.number]
    assert house.sweep().doubtful == []  # looked at once, not again and again


def test_what_a_worker_holds_is_left_to_it_after_an_outage_of_the_broker(house: House) -> None:
    _, taken = house.processing()
    house.published_ago(taken.number, 300)

    swept = house.sweep(after_outage=True)

    assert (swept.doubtful, swept.publish, swept.recovered) == ([], [], 0)


# --- The sweeper's lease ---


def test_one_sweeper_acts_at_a_time(house: House) -> None:
    task_id, _ = house.submit_one()
    assert house.sweep("one").turn
    house.deadline_passes(task_id)

    other = house.sweep("two")

    assert (other.turn, other.ended) == (False, [])
    assert ids(house.sweep("one").ended) == [task_id]


def test_another_sweeper_follows_one_that_died(house: House) -> None:
    house.sweep("dead")
    assert 0 < house.client.pttl(house.key("sweeper")) <= 3_000
    house.client.delete(house.key("sweeper"))  # as its lease runs out

    assert house.sweep("alive").turn


def test_the_sweeper_fills_a_window_that_nobody_filled(house: House) -> None:
    window = house.fill_window()
    job = house.job()
    house.submit(job)
    house.client.zrem(house.key(f"live:{POOL}"), window[0].number)

    assert [house.members(each) for each in house.sweep().publish] == [[job.task_id]]
