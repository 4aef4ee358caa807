"""The life of a job on the real scripts, whatever a broker, workers, clients and a clock do to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from jobs.connect import redis_client
from tests.contract.life.clockwork import Break, own_clock
from tests.contract.life.misfortunes import Misfortunes
from tests.contract.life.play import NAMESPACE, Bench, Play
from tests.servers import RedisServer

EXAMPLES = 100
RULES_MAX = 50


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with RedisServer(tmp_path_factory.mktemp("redis") / "server").start(appendonly="no") as server:
        with redis_client(server.url, 5.0) as client, client.pubsub() as subscription:
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
    with own_clock(breaks):
        run_state_machine_as_test(life, settings=profile)
    return sum(play.steps for play in plays)


def test_no_mischief_breaks_a_law_of_the_store(bench: Bench) -> None:
    assert _live(bench, examples=EXAMPLES) > 5_000
