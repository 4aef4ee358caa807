"""The life of a job on the real scripts, whatever a broker, workers, clients and a clock do to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from jobs.connect import redis_client
from jobs.errors import StoreUnavailableError
from tests.contract.life.clockwork import Break, own_clock
from tests.contract.life.misfortunes import Misfortunes
from tests.contract.life.play import NAMESPACE, Bench, Play
from tests.servers import RedisServer

EXAMPLES = 80
BATCH = 200
RULES_MAX = 50

BREAKS = {
    "a lease that is not fenced by its epoch": Break(
        "commit", "batch[1] ~= epoch or batch[2] ~= stage", "batch[2] ~= stage"
    ),
    "a message that was published again is taken twice": Break("take", "batch[3] ~= sequence", "false"),
    "a micro-batch that a live holder has is taken": Break("take", "batch[4] ~= ''", "false"),
    "a job that ended is ended again": Break(
        "ends", "if found[1] ~= 'queued' or (number and found[3] ~= number) then return false end", ""
    ),
    "a deadline is not looked at before a stage": Break("take", "or tonumber(job[3]) <= NOW", ""),
    "a promised cancellation is forgotten": Break(
        "ends", "if found[4] then event, document, code = 'cancel', nil, 'cancelled-by-client' end", ""
    ),
    "a dead letter never runs out": Break("ends", "call('PEXPIRE', P .. 'job:' .. id, DEAD_LETTER_RETENTION_MS)", ""),
    "companions of a worker's death are charged": Break("ends", "return suspect and seen", "return seen"),
    "a suspect goes in company": Break(
        "ends", "call('ZADD', P .. 'suspects:' .. pool, NOW, id)", "wait_in_front(line, id)"
    ),
    "a due retry is dropped": Break("sweep", "wait_in_front(line, id)\n    retried", "retried"),
    "a dead holder's lease is never ended": Break("sweep", "      recover(number, line", "      --"),
    "an end is not announced": Break("ends", "call('PUBLISH', P .. 'ended', table.concat(ended_ids, ' '))", ""),
    "a micro-batch is returned for ever": Break("release", "or returned > RETURNS_MAX", ""),
    "an end leaves its tenant's count of open jobs": Break(
        "ends", "if found[5] then opened[found[5]] = (opened[found[5]] or 0) - 1 end", ""
    ),
    "a job that is run again is not counted": Break(
        "replay", "if tenant then opened[tenant] = (opened[tenant] or 0) + 1 end", ""
    ),
    "a job that is refused spends its tenant's rate": Break(
        "submit",
        "return {'open'} end\n",
        "tenant.full_at = (tenant.full_at or 0) + (tenant.every or 0) return {'open'} end\n",
    ),
    "an idempotency key is not kept": Break("submit", "if more then keep_answer(more, more.kept) end", ""),
    "an answer is told past its time": Break(
        "ends", "or tonumber(call('ZSCORE', P .. 'cache-ends', cache) or 0) <= NOW", ""
    ),
    "a job that follows is not marked so": Break("submit", "call('HSET', key, 'follows', 1)", ""),
    "a follower that ended stays in its flight": Break(
        "ends", "call('ZREM', P .. 'followers:' .. flight_of(job.line, job.cache), id)", ""
    ),
    "nobody leads after a leader that did not complete": Break("ends", "    wait_in_front(line, first)\n", ""),
    "a failure that is not the input's is shared": Break(
        "ends", "if event == 'fail' and SHARED[code] ~= nil then", "if event == 'fail' then"
    ),
    "a big following is forgotten": Break("ends", "if not all then call('SADD', P .. 'landed', id) end", ""),
    "a follower's record outlives the document": Break(
        "ends", "call('PEXPIRE', P .. 'job:' .. each, math.max(1, call('PTTL', P .. 'job:' .. id)))", ""
    ),
    "one that runs again is ended by its former flight": Break("ends", "if follows and finish(", "if finish("),
    "a paused model runs": Break("window", "return next(paused) ~= nil and", "return false and"),
    "a line that empties keeps its tenants' turns": Break("lib", "call('DEL', P .. 'turns:' .. line)", ""),
    "a window is filled before all lines are written": Break(
        "submit",
        "  call('SADD', P .. 'pools', pool_of(line))\n",
        "  call('SADD', P .. 'pools', pool_of(line))\n  fill(pool_of(line), made)\n",
    ),
}
"""Faults that the laws must find: if they do not, they see nothing."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with (
        RedisServer(tmp_path_factory.mktemp("redis") / "server").start(appendonly="no") as server,
        redis_client(server.url, 5.0) as client,
        client.pubsub() as subscription,
    ):
        subscription.subscribe(f"{NAMESPACE}:ended")
        yield Bench(client, subscription)


def _live(bench: Bench, *, examples: int, number: int = 0, breaks: Sequence[Break] = (), shrink: bool = True) -> int:
    """Run so many examples; the steps they took."""
    plays: list[Play] = []

    @seed(number)
    def life() -> Misfortunes:
        plays.append(Play(bench))
        return Misfortunes(plays[-1])

    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    profile = settings(
        max_examples=examples,
        stateful_step_count=RULES_MAX,
        phases=phases,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    factory = cast("type[RuleBasedStateMachine]", life)  # it is only called
    with own_clock(breaks):
        run_state_machine_as_test(factory, settings=profile)
    return sum(play.steps for play in plays)


def test_no_mischief_breaks_a_law_of_the_store(bench: Bench) -> None:
    assert _live(bench, examples=EXAMPLES) > 5_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_mischief_breaks_a_law_of_the_store_in_100_000_steps(bench: Bench) -> None:
    steps, number = 0, 1
    while steps < 100_000:
        steps += _live(bench, examples=BATCH, number=number)
        number += 1


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_script_is_found_out(bench: Bench, name: str) -> None:
    with pytest.raises((AssertionError, StoreUnavailableError)):  # a law, or Redis itself, objects
        _live(bench, examples=4 * BATCH, breaks=[BREAKS[name]], shrink=False)
