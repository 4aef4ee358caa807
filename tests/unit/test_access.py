"""Who calls: API keys, tenants, and nobody from outside without a key."""

from __future__ import annotations

import asyncio
from typing import cast

import msgspec
import pytest
import redis
import redis.asyncio

from api.access import Access, is_loopback
from jobs.apikeys import ApiKey, digest
from jobs.errors import UnauthorizedError

LOCAL, PUBLIC = ("127.0.0.1", 8000), ("192.0.2.1", 8000)
KEY, ADMIN_KEY = "psk_" + "a" * 43, "psk_" + "b" * 43


class Keys:
    """The hash of keys in the store; ``away`` makes it fail."""

    def __init__(self, *keys: tuple[str, ApiKey]) -> None:
        self.stored = {digest(key).encode(): msgspec.json.encode(described) for key, described in keys}
        self.away = False

    async def hgetall(self, name: str) -> dict[bytes, bytes]:
        if self.away:
            raise redis.ConnectionError
        return self.stored if name == "t:api-keys" else {}


USER = (KEY, ApiKey(name="ci", tenant="acme", role="user", created_at="2026-11-21T05:30:00.000Z"))
ADMIN = (ADMIN_KEY, ApiKey(name="ops", tenant="ops", role="admin", created_at="2026-11-21T05:30:00.000Z"))


def _access(*keys: tuple[str, ApiKey]) -> tuple[Access, Keys]:
    stored = Keys(*keys)
    access = Access(cast("redis.asyncio.Redis", stored), "t")
    asyncio.run(access.refresh())
    return access, stored


@pytest.mark.parametrize("server", [LOCAL, ("::1", 8000), ("127.8.9.1", 1), ("/run/penstock.sock", None)])
def test_without_keys_whoever_is_on_this_machine_is_the_default_tenant(server: tuple[str, int | None]) -> None:
    caller = _access()[0].caller(None, server)

    assert (caller.tenant, caller.tenant_bytes, caller.role) == ("default", b"default", "admin")


@pytest.mark.parametrize("server", [PUBLIC, ("0.0.0.0", 8000), ("::", 8000), ("10.0.0.1", 8000), ("example.org", 80)])  # noqa: S104
def test_without_keys_nobody_comes_in_from_outside(server: tuple[str, int]) -> None:
    with pytest.raises(UnauthorizedError):
        _access()[0].caller(None, server)


@pytest.mark.parametrize("server", [LOCAL, PUBLIC])
def test_a_known_key_names_its_tenant_and_role(server: tuple[str, int]) -> None:
    access, _ = _access(USER, ADMIN)

    user = access.caller(f"Bearer {KEY}".encode(), server)
    admin = access.caller(f"Bearer {ADMIN_KEY}".encode(), server)

    assert (user.tenant, user.tenant_bytes, user.role) == ("acme", b"acme", "user")
    assert (admin.tenant, admin.role) == ("ops", "admin")


@pytest.mark.parametrize("authorization", [f"bearer {KEY}", f"BEARER {KEY}", f"Bearer  {KEY} "])
def test_the_scheme_s_case_and_blanks_do_not_matter(authorization: str) -> None:
    assert _access(USER)[0].caller(authorization.encode(), PUBLIC).tenant == "acme"


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer unknown",
        KEY.encode(),
        b"Basic " + KEY.encode(),
        b"Bearer " + KEY.encode()[:-1],
        b"Bearer " + KEY.upper().encode(),
        b"Bearer " + KEY.encode() + b"\0",
        b"Bearer \xff\xfe",
        b"Bearer " + b"x" * 100_000,
        b"Bearer *",
    ],
)
@pytest.mark.parametrize("server", [LOCAL, PUBLIC])
def test_with_keys_nobody_comes_in_without_one(authorization: bytes | None, server: tuple[str, int]) -> None:
    with pytest.raises(UnauthorizedError):
        _access(USER)[0].caller(authorization, server)


def test_the_digest_of_a_key_is_not_a_key() -> None:
    with pytest.raises(UnauthorizedError):
        _access(USER)[0].caller(f"Bearer {digest(KEY)}".encode(), PUBLIC)


def test_a_revoked_key_is_refused_from_the_next_refresh_on() -> None:
    access, stored = _access(USER, ADMIN)
    del stored.stored[digest(KEY).encode()]
    assert access.caller(f"Bearer {KEY}".encode(), PUBLIC).tenant == "acme"

    asyncio.run(access.refresh())

    with pytest.raises(UnauthorizedError):
        access.caller(f"Bearer {KEY}".encode(), PUBLIC)


def test_keys_are_kept_while_the_store_is_away() -> None:
    access, stored = _access(USER)
    stored.away = True

    asyncio.run(access.refresh())

    assert access.caller(f"Bearer {KEY}".encode(), PUBLIC).tenant == "acme"
    with pytest.raises(UnauthorizedError):
        access.caller(None, LOCAL)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "/run/penstock.sock"])
def test_loopback_is_reached_from_this_machine_only(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "localhost.example.org", "", "127.0.0.1.example.org"])  # noqa: S104
def test_anything_else_may_be_reached_from_outside(host: str) -> None:
    assert not is_loopback(host)
