"""The start-up self-check against real servers: what is not safe is one line that says what to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from jobs import apikeys, selfcheck
from jobs.connect import redis_client
from jobs.errors import SetupError
from jobs.settings import Settings, read_settings
from penstock.ports import free_port
from tests.servers import RedisServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis") / "server").start() as server:
        yield server


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis_client(server.url, 5.0) as client:
        client.flushall()
        yield client
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")


@pytest.fixture
def settings(server: RedisServer) -> Settings:
    return read_settings(store_url=server.url)


def refusal(client: redis.Redis, settings: Settings) -> str:
    with pytest.raises(SetupError) as refused:
        selfcheck.check_store(client, settings, patience_s=0)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_store_as_it_should_be_passes_and_is_marked(client: redis.Redis, settings: Settings) -> None:
    selfcheck.check_store(client, settings)
    selfcheck.check_store(client, settings)

    assert client.get("penstock:schema") == b"1"


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl", "allkeys-random"])
def test_a_store_that_may_evict_is_refused(client: redis.Redis, settings: Settings, policy: str) -> None:
    client.config_set("maxmemory-policy", policy)

    assert f"may evict jobs (maxmemory-policy {policy})" in refusal(client, settings)


def test_a_store_without_append_only_file_is_refused_unless_accepted(client: redis.Redis, settings: Settings) -> None:
    client.config_set("appendonly", "no")

    assert "PENSTOCK_ALLOW_VOLATILE_STORE" in refusal(client, settings)
    selfcheck.check_store(client, settings.model_copy(update={"allow_volatile_store": True}))


@pytest.mark.parametrize("marker", ["2", "x"])
def test_a_store_of_a_newer_penstock_is_refused(client: redis.Redis, settings: Settings, marker: str) -> None:
    client.set("penstock:schema", marker)

    assert f"written by a newer Penstock (schema {marker}, ours 1)" in refusal(client, settings)


def test_a_store_that_is_full_may_still_be_opened(client: redis.Redis, settings: Settings) -> None:
    client.config_set("maxmemory", "1")
    try:
        selfcheck.check_store(client, settings)
    finally:
        client.config_set("maxmemory", "0")


def test_a_store_that_does_not_answer_is_refused_without_its_password() -> None:
    url = f"redis://:secret@127.0.0.1:{free_port('127.0.0.1')}/0"
    with redis_client(url, 1.0) as client:
        line = refusal(client, read_settings(store_url=url))

    assert "does not answer" in line
    assert "PENSTOCK_STORE_URL" in line
    assert "secret" not in line


def test_a_store_that_asks_for_a_password_is_refused(tmp_path: Path) -> None:
    with (
        RedisServer(tmp_path).start(requirepass="secret") as server,
        redis_client(server.url, 5.0) as client,
    ):
        assert "see the password in PENSTOCK_STORE_URL" in refusal(client, read_settings(store_url=server.url))


def test_a_cluster_is_refused(tmp_path: Path) -> None:
    with (
        RedisServer(tmp_path).start(cluster_enabled="yes") as server,
        redis_client(server.url, 5.0) as client,
    ):
        assert "Redis Cluster" in refusal(client, read_settings(store_url=server.url))


def test_an_old_server_is_refused(client: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "info", lambda: {"redis_version": "6.0.16"})

    assert "is Redis 6.0.16: 6.2 or newer is needed" in refusal(client, settings)


def test_clocks_that_agree_pass(client: redis.Redis) -> None:
    selfcheck.check_clock(client)


@pytest.mark.parametrize("ahead_s", [-3600, 3600, 2.5])
def test_a_clock_that_is_wrong_is_refused(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + ahead_s)

    with pytest.raises(SetupError, match="s apart"):
        selfcheck.check_clock(client)


def test_rabbitmq_without_confirms_is_refused() -> None:
    with pytest.raises(SetupError, match="PENSTOCK_CONFIRM_PUBLISH"):
        selfcheck.check_broker(read_settings(broker_url="amqp://host//", confirm_publish=False))


def test_a_broker_that_is_away_may_come_later() -> None:
    port = free_port("127.0.0.1")

    selfcheck.check_broker(read_settings(broker_url=f"amqp://127.0.0.1:{port}//"))
    selfcheck.check_broker(read_settings(broker_url=f"redis://127.0.0.1:{port}/0"))


def test_a_redis_broker_of_its_own_may_not_evict_either(client: redis.Redis, server: RedisServer) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")

    with pytest.raises(SetupError, match=r"the broker at .* may evict"):
        selfcheck.check_broker(read_settings(broker_url=server.url, store_url="redis://elsewhere"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_loopback_needs_no_key(host: str) -> None:
    selfcheck.check_public(read_settings(host=host), has_keys=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])  # noqa: S104 -- refused
def test_another_address_needs_a_key(host: str) -> None:
    with pytest.raises(SetupError, match="penstock keys add"):
        selfcheck.check_public(read_settings(host=host), has_keys=False)
    selfcheck.check_public(read_settings(host=host), has_keys=True)


def test_a_model_folder_that_is_not_there_or_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="is not there"):
        selfcheck.check_models(read_settings(models=tmp_path / "none"))
    with pytest.raises(SetupError, match="holds no model"):
        selfcheck.check_models(read_settings(models=tmp_path))

    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "model.toml").touch()
    selfcheck.check_models(read_settings(models=tmp_path))


def test_a_gateway_on_a_public_address_starts_once_there_is_a_key(client: redis.Redis, settings: Settings) -> None:
    public = settings.model_copy(update={"host": "0.0.0.0"})  # noqa: S104 -- what is checked
    with pytest.raises(SetupError):
        selfcheck.check_gateway(public)

    apikeys.add(client, "penstock", name="ci", tenant="acme", role="user")
    selfcheck.check_gateway(public)
