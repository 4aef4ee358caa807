"""API keys: who may call the gateway, as which tenant, in which role.

A key is shown once, when it is made; the store keeps its SHA-256 only, so a copy of the store opens nothing.
A key has 256 random bits, so a plain hash is enough: there is nothing to guess. All keys lie in the hash
``{namespace}:api-keys`` (field: the key's digest; value: `ApiKey` as JSON), which has no TTL.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, cast

import msgspec
import redis
from redis.client import Pipeline

from jobs.errors import SetupError

Role = Literal["user", "admin"]

PREFIX = "psk_"
RANDOM_BYTES = 32
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class ApiKey(msgspec.Struct, frozen=True):
    """What a key stands for; ``created_at`` is ISO 8601 in UTC."""

    name: str
    tenant: str
    role: Role
    created_at: str


_decoder = msgspec.json.Decoder(ApiKey)


def digest(key: str) -> str:
    """Under what a key is stored: SHA-256 in hex."""
    return hashlib.sha256(key.encode()).hexdigest()


def add(client: redis.Redis, namespace: str, *, name: str, tenant: str, role: Role) -> str:
    """Make a key and return it: this is the only time that it can be read.

    SetupError: a name or tenant that is not valid, a name that is taken.
    """
    _check_word("name", name)
    _check_word("tenant", tenant)
    if role not in ("user", "admin"):
        raise SetupError(f"role {role!r} is not known: use user or admin")
    key = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    record = ApiKey(name, tenant, role, datetime.now(UTC).isoformat(timespec="seconds"))
    client.transaction(lambda pipe: _insert(pipe, namespace, digest(key), record), _hash(namespace))
    return key


def list_keys(client: redis.Redis, namespace: str) -> list[ApiKey]:
    """Every key's record, by name."""
    return sorted(load_all(client, namespace).values(), key=lambda record: record.name)


def revoke(client: redis.Redis, namespace: str, name: str) -> None:
    """Forget the key called ``name``. SetupError: there is none."""
    for stored, record in load_all(client, namespace).items():
        if record.name == name:
            client.hdel(_hash(namespace), stored)
            return
    raise SetupError(f"no API key is called {name!r}: `penstock keys list` shows them")


def load_all(client: redis.Redis, namespace: str) -> dict[str, ApiKey]:
    """Every key's record by the key's digest, for the gateway."""
    stored = cast("Mapping[bytes, bytes]", client.hgetall(_hash(namespace)))
    return {field.decode(): _decoder.decode(value) for field, value in stored.items()}


def _insert(pipe: Pipeline, namespace: str, field: str, record: ApiKey) -> None:
    """Body of an optimistic transaction: it is run again when another process changed the keys meanwhile."""
    taken = {other.name for other in load_all(pipe, namespace).values()}
    if record.name in taken:
        raise SetupError(f"an API key is already called {record.name!r}: revoke it first, or choose another name")
    pipe.multi()
    pipe.hset(_hash(namespace), field, msgspec.json.encode(record).decode())


def _check_word(what: str, word: str) -> None:
    if not NAME.fullmatch(word):
        raise SetupError(f"{what} {word!r} is not valid: 1-63 of a-z, 0-9, _ and -, not beginning with _ or -")


def _hash(namespace: str) -> str:
    return f"{namespace}:api-keys"
