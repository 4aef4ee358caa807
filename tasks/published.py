"""The records of model versions in the store, and which workers hold them: all that workers agree on lies here.

To hold a record is to say: I can run what it describes. A worker says so for ``hold_s`` at a time, in
``{namespace}:holders:{name}/{version}``. Two rules follow, both kept by transactions that watch that key: a ready
record that another living worker holds is never replaced by a different one; one that nobody holds may be withdrawn.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import msgspec
import redis

from inference.repository import place_of
from jobs.models import ModelRecord

log = logging.getLogger(__name__)


class Published:
    """Records by place (``name/version``), as the worker ``holder`` sees and writes them."""

    def __init__(self, client: redis.Redis, namespace: str, holder: str, hold_s: float) -> None:
        self._client = client
        self._namespace = namespace
        self._models = f"{namespace}:models"
        self._holder = holder
        self._hold_ms = int(hold_s * 1000)

    def get(self, place: str) -> ModelRecord | None:
        """The record of a version; None where there is none that we can read."""
        return _read(place, cast("bytes | None", self._client.hget(self._models, place)))

    def all(self) -> dict[str, ModelRecord]:
        """Every record that we can read."""
        raw = cast("dict[bytes, bytes]", self._client.hgetall(self._models))
        found = {field.decode(): _read(field.decode(), value) for field, value in raw.items()}
        return {place: record for place, record in found.items() if record is not None}

    def announce(self, record: ModelRecord) -> None:
        """Say that a version is on its way, where nothing is known of it yet."""
        if self._client.hsetnx(self._models, place_of(record.name, record.version), msgspec.json.encode(record)):
            self.hold(record)

    def put(self, record: ModelRecord) -> bool:
        """Publish and hold; False, and nothing is written, where others hold a different one that is ready."""

        def put(pipe: Any) -> bool:
            if self._is_taken(pipe, record):
                return False
            now_ms = _now_ms(pipe)
            pipe.multi()
            pipe.hset(self._models, place, msgspec.json.encode(record))
            pipe.delete(holders)  # who held another record says so again, if it is this one
            self._say(pipe, holders, now_ms)
            return True

        place = place_of(record.name, record.version)
        holders = self._holders(place)
        return self._transaction(put, holders)

    def is_taken(self, record: ModelRecord) -> bool:
        """Whether others hold a ready record of this version that is different."""
        return self._is_taken(self._client, record)

    def hold(self, record: ModelRecord) -> bool:
        """Hold the record for a while more; False where it is not the store's any longer."""

        def hold(pipe: Any) -> bool:
            known = _read(place, pipe.hget(self._models, place))
            now_ms = _now_ms(pipe)
            pipe.multi()
            if known is None or not same(known, record):
                return False
            self._say(pipe, holders, now_ms)
            return True

        place = place_of(record.name, record.version)
        holders = self._holders(place)
        return self._transaction(hold, holders)

    def let_go(self, place: str) -> None:
        """Hold the record of a version no longer."""
        self._client.zrem(self._holders(place), self._holder)

    def withdraw(self, place: str) -> bool:
        """Delete the record of a version that nobody holds; False where somebody does."""

        def withdraw(pipe: Any) -> bool:
            held = bool(self._living(pipe, holders))
            pipe.multi()
            if not held:
                pipe.hdel(self._models, place)
                pipe.delete(holders)
            return not held

        holders = self._holders(place)
        return self._transaction(withdraw, holders)

    def _transaction(self, call: Any, holders: str) -> bool:
        """Run ``call`` again until nobody else has written ``holders`` meanwhile; what it gives."""
        return bool(self._client.transaction(call, holders, value_from_callable=True))

    def _holders(self, place: str) -> str:
        return f"{self._namespace}:holders:{place}"

    def _say(self, pipe: Any, holders: str, now_ms: int) -> None:
        pipe.zadd(holders, {self._holder: now_ms + self._hold_ms})
        pipe.zremrangebyscore(holders, "-inf", now_ms)
        pipe.pexpire(holders, self._hold_ms)

    def _living(self, client: Any, holders: str) -> set[str]:
        return {each.decode() for each in client.zrangebyscore(holders, _now_ms(client), "+inf")}

    def _is_taken(self, client: Any, record: ModelRecord) -> bool:
        place = place_of(record.name, record.version)
        known = _read(place, client.hget(self._models, place))
        if known is None or known.state != "ready" or same(known, record):
            return False
        return bool(self._living(client, self._holders(place)) - {self._holder})


def same(one: ModelRecord, other: ModelRecord) -> bool:
    """Whether two records say the same of the same files."""
    return (one.state, one.config, one.files) == (other.state, other.config, other.files)


def _now_ms(client: Any) -> int:
    seconds, microseconds = client.time()
    return int(seconds) * 1000 + int(microseconds) // 1000


def _read(place: str, raw: bytes | None) -> ModelRecord | None:
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=ModelRecord)
    except msgspec.DecodeError:  # of a newer worker
        log.warning("record of a model cannot be read", extra={"record": place})
        return None
