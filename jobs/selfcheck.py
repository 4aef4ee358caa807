"""The start-up self-check: what is not safe to run with stops a role, with one line that says what to do.

Purpose: a setting that loses jobs silently (eviction, no append-only file, no publisher confirms, a clock
that is wrong) must be met at start, by a person, and not at night by a job. Facts are read with ``INFO``
because managed servers forbid ``CONFIG``. Not promised: that the setting stays as it was found.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Mapping
from typing import Any, cast

import redis

from jobs import apikeys
from jobs.clock import SKEW_S_MAX, skew_s
from jobs.connect import redis_client, without_password
from jobs.errors import SetupError
from jobs.settings import Settings

STORE_SCHEMA = 1
"""Version of everything that we write into the store; a store marked with a newer one is not opened."""
REDIS_VERSION_MIN = (6, 2)
PATIENCE_S = 5.0
"""How long a store may take to answer: it may be starting beside us, or loading its file."""
SOCKET_TIMEOUT_S = 2.0


def check_gateway(settings: Settings) -> None:
    """Check all that a gateway needs, on a connection of its own that is closed again."""
    check_broker(settings)
    with redis_client(settings.store, SOCKET_TIMEOUT_S) as client:
        check_store(client, settings)
        check_clock(client)
        check_public(settings, has_keys=bool(apikeys.load_all(client, settings.namespace)))


def check_worker(settings: Settings) -> None:
    """Check all that a worker needs, on a connection of its own that is closed again."""
    check_models(settings)
    check_broker(settings)
    with redis_client(settings.store, SOCKET_TIMEOUT_S) as client:
        check_store(client, settings)
        check_clock(client)


def check_store(client: redis.Redis, settings: Settings, *, patience_s: float = PATIENCE_S) -> None:
    """Refuse a store that is silent for ``patience_s``, may lose jobs, or was written by a newer Penstock."""
    where = f"the store at {without_password(settings.store)}"
    facts = _facts(client, where, "PENSTOCK_STORE_URL", patience_s)
    _check_kind(facts, where)
    _check_eviction(facts, where)
    if not int(facts.get("aof_enabled", 0)) and not settings.allow_volatile_store:
        raise SetupError(
            f"{where} has no append-only file, so jobs are lost when it restarts: set `appendonly yes` there,"
            " or PENSTOCK_ALLOW_VOLATILE_STORE=true to accept that"
        )
    _check_schema(client, where, settings.namespace)


def check_clock(client: redis.Redis) -> None:
    """Refuse to run where our clock and the store's are more than ``SKEW_S_MAX`` apart."""
    asked_s = time.time()
    seconds, microseconds = client.time()
    apart_s = abs(skew_s(seconds + microseconds / 1e6, asked_s, time.time()))
    if apart_s > SKEW_S_MAX:
        raise SetupError(
            f"this machine's clock and the store's are {apart_s:.1f} s apart"
            f" (at most {SKEW_S_MAX:g}): synchronise both, by NTP for example"
        )


def check_broker(settings: Settings) -> None:
    """Refuse a broker that may lose messages. One that is away is accepted: it may come later."""
    if settings.broker.startswith("amqp"):
        if not settings.confirm_publish:
            raise SetupError("PENSTOCK_CONFIRM_PUBLISH is false, so RabbitMQ may lose messages: leave it true")
        return
    if settings.broker != settings.store:
        _check_redis_broker(settings.broker)


def check_public(settings: Settings, *, has_keys: bool) -> None:
    """Without API keys the gateway serves loopback only."""
    if not has_keys and not _is_loopback(settings.host):
        raise SetupError(
            f"PENSTOCK_HOST={settings.host} is open to others and there is no API key: while Penstock runs"
            " on 127.0.0.1, make one (`penstock keys add NAME --tenant TENANT`), then start on this address"
        )


def check_models(settings: Settings) -> None:
    """Refuse a model folder that is not there or holds no model; a worker fetches what a URL names, and sees then."""
    folder = settings.models_folder
    if settings.models_url:
        return
    if not folder.is_dir():
        raise SetupError(f"the model folder {folder} is not there: make it, or set PENSTOCK_MODELS to where it is")
    if not any(folder.glob("*/model.toml")):
        raise SetupError(
            f"the model folder {folder} holds no model (NAME/model.toml and NAME/1/model.onnx): add one,"
            " or set PENSTOCK_MODELS to another folder"
        )


def _facts(client: redis.Redis, where: str, variable: str, patience_s: float) -> Mapping[str, Any]:
    """``INFO``, asked again for ``patience_s`` while the server is not there yet or loads its file."""
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            return cast("Mapping[str, Any]", client.info())
        except (redis.AuthenticationError, redis.ResponseError) as error:
            raise SetupError(f"{where} refuses us ({_one_line(error)}): see the password in {variable}") from None
        except (redis.RedisError, OSError) as error:
            if time.monotonic() >= give_up_at:
                raise SetupError(
                    f"{where} does not answer ({_one_line(error)}): start it, or set {variable}"
                ) from None
        time.sleep(0.1)


def _check_kind(facts: Mapping[str, Any], where: str) -> None:
    version = str(facts.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS_VERSION_MIN:
        raise SetupError(f"{where} is Redis {version}: 6.2 or newer is needed")
    if int(facts.get("cluster_enabled", 0)):
        raise SetupError(
            f"{where} is a Redis Cluster, which is not supported: use a single server or a replicated one"
        )


def _check_eviction(facts: Mapping[str, Any], where: str) -> None:
    policy = facts.get("maxmemory_policy", "unknown")
    if policy != "noeviction":
        raise SetupError(
            f"{where} may evict jobs (maxmemory-policy {policy}): set `maxmemory-policy noeviction` there"
        )


def _check_schema(client: redis.Redis, where: str, namespace: str) -> None:
    marker = f"{namespace}:schema"
    with contextlib.suppress(redis.ResponseError):  # a store that is full takes no write, yet may be read
        client.setnx(marker, STORE_SCHEMA)
    found = (cast("bytes | None", client.get(marker)) or b"0").decode(errors="replace")
    if not found.isdecimal() or int(found) > STORE_SCHEMA:
        raise SetupError(
            f"{where} was written by a newer Penstock (schema {found}, ours {STORE_SCHEMA}):"
            " upgrade this one, or set PENSTOCK_NAMESPACE to another prefix"
        )


def _check_redis_broker(url: str) -> None:
    where = f"the broker at {without_password(url)}"
    with redis_client(url, SOCKET_TIMEOUT_S) as client:
        try:
            facts = cast("Mapping[str, Any]", client.info())
        except (redis.RedisError, OSError):
            return
    _check_kind(facts, where)
    _check_eviction(facts, where)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
