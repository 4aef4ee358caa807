"""The models that the gateway knows: records that workers published, and what inspects the inputs of each."""

from __future__ import annotations

import logging
import re
from hashlib import sha256

import msgspec
import redis.asyncio
from redis.exceptions import RedisError

from jobs.errors import ModelLoadingError, ModelNotFoundError, SetupError
from jobs.models import ModelRecord
from preprocess.kinds import Kind, kind

log = logging.getLogger(__name__)


_VERSION = re.compile(rb"[0-9]{1,10}").fullmatch
"""A pointer is set by hand: one that is no version points nowhere."""


class Offer(msgspec.Struct, frozen=True):
    """A version that can be asked: its record, and the preprocessing whose door inspects its inputs."""

    record: ModelRecord
    kind: Kind
    fingerprint: bytes
    """SHA-256 over what decides its answers: its files and the configuration."""


def offer_of(record: ModelRecord) -> Offer:
    """The offer of a version whose signature is known; SetupError where its configuration contradicts that."""
    config, files = (
        record.config,
        record.files_digest or record.digest,
    )  # a worker of an older Penstock knows no files
    decisive = (files, config.preprocess, config.inference, config.postprocess)
    return Offer(record, kind(record), sha256(msgspec.json.encode(decisive)).digest())


class Catalog:
    """Records by model and version, kept in memory and refreshed from the store."""

    def __init__(self, client: redis.asyncio.Redis, namespace: str) -> None:
        self._client = client
        self._models_key = f"{namespace}:models"
        self._active_key = f"{namespace}:active"
        self._raw: dict[bytes, bytes] = {}
        self._records: dict[str, dict[int, ModelRecord]] = {}
        self._offers: dict[tuple[str, int], Offer] = {}
        self._pointers: dict[str, int] = {}
        self._active: dict[str, int] = {}

    async def refresh(self) -> bool:
        """Read records and pointers again; False, and the old ones are kept, while the store is away."""
        try:
            raw: dict[bytes, bytes] = await self._client.hgetall(self._models_key)  # type: ignore[assignment]
            pointers: dict[bytes, bytes] = await self._client.hgetall(self._active_key)  # type: ignore[assignment]
        except (RedisError, OSError):
            log.warning("models not refreshed: the store did not answer")
            return False
        self._pointers = {name.decode(): int(text) for name, text in pointers.items() if _VERSION(text)}
        if raw != self._raw:
            self._raw = raw
            self._read(raw)
        self._choose()
        return True

    def models(self) -> dict[str, dict[int, ModelRecord]]:
        """Every record, by name and version."""
        return self._records

    def versions(self, model: str) -> dict[int, ModelRecord]:
        """The records of one model; ModelNotFoundError."""
        found = self._records.get(model)
        if not found:
            raise ModelNotFoundError(f"There is no model {model[:64]!r}. GET /models lists them.")
        return found

    def active(self, model: str) -> int | None:
        """The version that answers when none is asked for; None while none is ready."""
        return self._active.get(model)

    def offer(self, model: str, version: int | None) -> Offer:
        """The version to run: the one asked for, else the active one.

        ModelNotFoundError: no such model or version. ModelLoadingError: known, but not loaded (yet).
        """
        chosen = self.active(model) if version is None else version
        found = self._offers.get((model, chosen)) if chosen is not None else None
        if found is not None:
            return found
        versions = self.versions(model)
        if version is not None and version not in versions:
            raise ModelNotFoundError(f"{model} has no version {str(version)[:20]}; it has {sorted(versions)}.")
        raise ModelLoadingError(
            f"{model} is known, but no worker has loaded it yet. GET /models/{model} says how it stands.",
            retry_after_s=2.0,
        )

    def _read(self, raw: dict[bytes, bytes]) -> None:
        records: dict[str, dict[int, ModelRecord]] = {}
        offers: dict[tuple[str, int], Offer] = {}
        for field, value in raw.items():
            try:
                record = msgspec.json.decode(value, type=ModelRecord)
                if record.state == "ready":
                    offers[(record.name, record.version)] = self._offer(record)
            except (msgspec.DecodeError, SetupError):  # of a newer worker: the other versions are served
                log.exception("record of a model cannot be read", extra={"record": field.decode()})
                continue
            records.setdefault(record.name, {})[record.version] = record
        self._records, self._offers = records, offers

    def _offer(self, record: ModelRecord) -> Offer:
        """The offer that is known already, if the record has not changed."""
        known = self._offers.get((record.name, record.version))
        return known if known and known.record == record else offer_of(record)

    def _choose(self) -> None:
        """The active version of each model: the pointer's where that is ready, else the highest that is."""
        highest: dict[str, int] = {}
        for model, version in self._offers:
            highest[model] = max(version, highest.get(model, 0))
        pointed = {model: v for model, v in self._pointers.items() if (model, v) in self._offers}
        self._active = highest | pointed
