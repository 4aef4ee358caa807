"""What is set of tenants and models while the system runs: in the store, and as a gateway knows it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import cast

import msgspec
import pytest
import redis
import redis.asyncio

from api.tenants import Tenants
from jobs import pauses, tenants
from jobs.connect import redis_client
from jobs.errors import SetupError
from jobs.tenants import Tenant
from tests.servers import RedisServer

ACME = Tenant("acme", weight=2.0, rate=0.5, burst=3, open_max=7)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis") / "server").start() as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis_client(server.url, 5.0) as client:
        client.flushall()
        yield client


# --- Tenants in the store ---


def test_a_tenant_is_set_anew_as_a_whole(client: redis.Redis) -> None:
    tenants.put(client, "ns", ACME)
    tenants.put(client, "ns", Tenant("acme", weight=3.0))
    tenants.put(client, "ns", Tenant("other"))

    assert tenants.load_all(client, "ns") == {"acme": Tenant("acme", weight=3.0), "other": Tenant("other")}
    assert client.ttl("ns:tenants") == -1


def test_a_tenant_is_removed_once(client: redis.Redis) -> None:
    tenants.put(client, "ns", ACME)

    tenants.remove(client, "ns", "acme")

    assert tenants.load_all(client, "ns") == {}
    with pytest.raises(SetupError, match="nothing is set for tenant 'acme'"):
        tenants.remove(client, "ns", "acme")


@pytest.mark.parametrize(
    "tenant",
    [
        Tenant(""),
        Tenant("Acme"),
        Tenant("../acme"),
        Tenant("a" * 64),
        Tenant("-acme"),
        Tenant("acme\n"),
        Tenant("acme", weight=0.0),
        Tenant("acme", weight=-1.0),
        Tenant("acme", weight=100.1),
        Tenant("acme", weight=float("nan")),
        Tenant("acme", rate=-0.1),
        Tenant("acme", rate=float("nan")),
        Tenant("acme", rate=float("inf")),
        Tenant("acme", burst=0),
        Tenant("acme", open_max=-1),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused_and_nothing_is_set(client: redis.Redis, tenant: Tenant) -> None:
    with pytest.raises(SetupError):
        tenants.put(client, "ns", tenant)

    assert tenants.load_all(client, "ns") == {}


@pytest.mark.parametrize("weight", [tenants.WEIGHT_MIN, tenants.WEIGHT_MAX])
def test_the_bounds_of_a_weight_are_within(client: redis.Redis, weight: float) -> None:
    tenants.put(client, "ns", Tenant("acme", weight=weight))

    assert tenants.load_all(client, "ns")["acme"].weight == weight


# --- Models that wait ---


def test_a_known_model_is_paused_and_resumed_once(client: redis.Redis) -> None:
    client.hset("ns:models", mapping={"m/1": "{}", "m/2": "{}"})

    assert [pauses.pause(client, "ns", "m") for _ in range(2)] == [True, False]
    assert client.smembers("ns:paused") == {b"m"}
    assert client.ttl("ns:paused") == -1
    assert [pauses.resume(client, "ns", "m") for _ in range(2)] == [True, False]


@pytest.mark.parametrize(("model", "known"), [("x", "there are m$"), ("m/1", "there are m$"), ("", "there are m$")])
def test_a_model_that_is_not_there_is_not_paused(client: redis.Redis, model: str, known: str) -> None:
    client.hset("ns:models", "m/1", "{}")

    with pytest.raises(SetupError, match=known):
        pauses.pause(client, "ns", model)

    assert not client.exists("ns:paused")


def test_a_model_that_is_gone_can_be_resumed(client: redis.Redis) -> None:
    client.sadd("ns:paused", "m")

    assert pauses.resume(client, "ns", "m")


# --- As a gateway knows them ---


class Stored:
    """The hash of tenants in the store; ``away`` makes it fail."""

    def __init__(self, *known: Tenant) -> None:
        self.stored = {each.name.encode(): msgspec.json.encode(each) for each in known}
        self.away = False

    async def hgetall(self, name: str) -> dict[bytes, bytes]:
        if self.away:
            raise redis.ConnectionError
        return self.stored if name == "t:tenants" else {}


def _known(stored: Stored) -> Tenants:
    known = Tenants(cast("redis.asyncio.Redis", stored), "t")
    assert asyncio.run(known.refresh())
    return known


def test_a_tenant_that_nobody_set_has_weight_1() -> None:
    known = _known(Stored(ACME))

    assert known.known == {"acme": ACME}
    assert (known.weight("acme"), known.weight("other")) == (2.0, 1.0)


def test_a_change_is_known_from_the_next_refresh_on() -> None:
    stored = Stored(ACME)
    known = _known(stored)
    stored.stored = {}
    assert known.weight("acme") == 2.0

    assert asyncio.run(known.refresh())
    assert known.weight("acme") == 1.0


def test_tenants_are_kept_while_the_store_is_away() -> None:
    stored = Stored(ACME)
    known = _known(stored)
    stored.away = True

    assert not asyncio.run(known.refresh())
    assert known.known == {"acme": ACME}


def test_tenants_of_a_newer_penstock_do_not_stop_a_gateway() -> None:
    stored = Stored(ACME)
    known = _known(stored)
    stored.stored[b"new"] = b"not json"

    assert asyncio.run(known.refresh())
    assert known.known == {"acme": ACME}
