"""API keys: shown once, stored hashed, each with a tenant and a role."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import redis

from jobs import apikeys
from jobs.connect import redis_client
from jobs.errors import SetupError
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


def test_a_key_is_random_and_found_by_its_digest(client: redis.Redis) -> None:
    key = apikeys.add(client, "ns", name="ci", tenant="acme", role="admin")

    assert re.fullmatch(r"psk_[A-Za-z0-9_-]{43}", key)
    found = apikeys.load_all(client, "ns")[apikeys.digest(key)]
    assert (found.name, found.tenant, found.role) == ("ci", "acme", "admin")


def test_the_store_never_sees_the_key(client: redis.Redis) -> None:
    key = apikeys.add(client, "ns", name="ci", tenant="acme", role="user")

    assert key.encode() not in b"".join(client.dump(name) or b"" for name in client.scan_iter())


def test_a_name_is_given_once(client: redis.Redis) -> None:
    apikeys.add(client, "ns", name="ci", tenant="acme", role="user")

    with pytest.raises(SetupError, match="already called 'ci'"):
        apikeys.add(client, "ns", name="ci", tenant="other", role="user")

    assert len(apikeys.load_all(client, "ns")) == 1


def test_a_revoked_key_is_forgotten(client: redis.Redis) -> None:
    key = apikeys.add(client, "ns", name="ci", tenant="acme", role="user")

    apikeys.revoke(client, "ns", "ci")

    assert apikeys.digest(key) not in apikeys.load_all(client, "ns")
    with pytest.raises(SetupError, match="no API key is called 'ci'"):
        apikeys.revoke(client, "ns", "ci")


def test_keys_are_listed_by_name(client: redis.Redis) -> None:
    for name in ("b", "a"):
        apikeys.add(client, "ns", name=name, tenant="acme", role="user")

    assert [key.name for key in apikeys.list_keys(client, "ns")] == ["a", "b"]


def test_namespaces_do_not_share_keys(client: redis.Redis) -> None:
    apikeys.add(client, "one", name="ci", tenant="acme", role="user")

    assert apikeys.load_all(client, "two") == {}


@pytest.mark.parametrize("word", ["", "-a", "A", "a b", "a" * 64, "ä", "a\n", "../a"])
def test_a_name_or_tenant_that_is_not_plain_is_refused(client: redis.Redis, word: str) -> None:
    with pytest.raises(SetupError, match="is not valid"):
        apikeys.add(client, "ns", name=word, tenant="acme", role="user")
    with pytest.raises(SetupError, match="is not valid"):
        apikeys.add(client, "ns", name="ci", tenant=word, role="user")


def test_a_role_that_is_not_known_is_refused(client: redis.Redis) -> None:
    with pytest.raises(SetupError, match="role 'root' is not known"):
        apikeys.add(client, "ns", name="ci", tenant="acme", role="root")  # type: ignore[arg-type]
