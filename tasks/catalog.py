"""The models of one worker: what lies in its folder, verified by a trial load and published for the gateways."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import redis

import postprocess.kinds
import preprocess.kinds
from inference.repository import Version, digest, read_config, scan
from inference.trial import trial
from jobs.errors import ModelUnavailableError, SetupError
from jobs.models import ModelConfig, ModelRecord

log = logging.getLogger(__name__)

TRIAL_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Served:
    """A version that this worker can run, with its pre- and postprocessing made ready."""

    record: ModelRecord
    preprocess: preprocess.kinds.Kind
    postprocess: postprocess.kinds.Kind


class Catalog:
    """What a worker serves. Records are published in ``{namespace}:models``, field ``name/version``."""

    def __init__(self, client: redis.Redis, namespace: str, folder: Path, pools: tuple[str, ...]) -> None:
        self._client = client
        self._key = f"{namespace}:models"
        self._folder = folder
        self._pools = pools
        self._served: dict[tuple[str, int], Served] = {}

    def publish(self) -> None:
        """Trial-load, in a child process each, what the store does not know yet; publish every record."""
        for version in scan(self._folder):
            config = read_config(version.folder)
            record = self._known(version, config) or self._try(version, config)
            if record.state == "ready":
                self._serve(record, version)

    def served(self, model: str, version: int) -> Served:
        """What runs a version; ModelUnavailableError where this worker has none that loads."""
        found = self._served.get((model, version))
        if found is None:
            raise ModelUnavailableError(f"This worker has no version {version} of {model} that loads.")
        return found

    def ready(self) -> Iterator[ModelRecord]:
        """The versions that this worker's pools serve."""
        return (each.record for each in self._served.values() if each.record.config.pool in self._pools)

    def _known(self, version: Version, config: ModelConfig) -> ModelRecord | None:
        """What the store says of this very version, if its files have not changed since."""
        raw = self._client.hget(self._key, _field(version))
        if raw is None:
            return None
        record = msgspec.json.decode(raw, type=ModelRecord)
        same = record.config == config and record.digest == digest(version.folder)
        return record if record.state == "ready" and same else None

    def _serve(self, record: ModelRecord, version: Version) -> None:
        """Serve a version; one whose files, or a step's code, are not sound any more is published as broken."""
        try:
            self._served[(record.name, record.version)] = _serve(record, version.folder)
        except SetupError as error:
            broken = msgspec.structs.replace(record, state="broken", reason=str(error))
            self._client.hset(self._key, _field(version), msgspec.json.encode(broken))
            log.exception("model version is broken", extra={"model": record.name, "version": record.version})

    def _try(self, version: Version, config: ModelConfig) -> ModelRecord:
        loading = ModelRecord(version.name, version.version, "loading", config)
        self._client.hsetnx(self._key, _field(version), msgspec.json.encode(loading))
        record = _checked(trial(version.folder, config, TRIAL_TIMEOUT_S), version.folder)
        self._client.hset(self._key, _field(version), msgspec.json.encode(record))
        level = logging.INFO if record.state == "ready" else logging.ERROR
        found = {
            "model": record.name,
            "version": record.version,
            "state": record.state,
            "reason": record.reason,
        }
        log.log(level, "model version tried", extra=found)
        return record


def _checked(record: ModelRecord, folder: Path) -> ModelRecord:
    """The record, or a broken one where its options contradict its signature or its files."""
    if record.state == "ready":
        try:
            _serve(record, folder)
        except SetupError as error:
            return msgspec.structs.replace(record, state="broken", reason=str(error))
    return record


def _serve(record: ModelRecord, folder: Path) -> Served:
    return Served(record, preprocess.kinds.kind(record, folder), postprocess.kinds.kind(record, folder))


def _field(version: Version) -> str:
    return f"{version.name}/{version.version}"
