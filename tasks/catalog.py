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
from inference.files import digests
from inference.repository import Version, scan
from inference.trial import trial
from jobs.errors import ModelUnavailableError, SetupError
from jobs.models import ModelRecord

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
        found = scan(self._folder)
        for fault in found.faults.values():
            raise fault
        for version in found.versions:
            record = self._known(version) or self._try(version)
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

    def _known(self, version: Version) -> ModelRecord | None:
        """What the store says of this very version, if its files have not changed since."""
        raw = self._client.hget(self._key, _field(version))
        if raw is None:
            return None
        record = msgspec.json.decode(raw, type=ModelRecord)
        same = record.config == version.config and record.files == _files(version, self._folder)
        return record if record.state == "ready" and same else None

    def _serve(self, record: ModelRecord, version: Version) -> None:
        """Serve a version; one whose files, or a step's code, are not sound any more is published as broken."""
        try:
            self._served[(record.name, record.version)] = _serve(record, version.folder)
        except SetupError as error:
            broken = msgspec.structs.replace(record, state="broken", reason=str(error))
            self._client.hset(self._key, _field(version), msgspec.json.encode(broken))
            log.exception("model version is broken", extra={"model": record.name, "version": record.version})

    def _try(self, version: Version) -> ModelRecord:
        loading = ModelRecord(version.name, version.version, "loading", version.config)
        self._client.hsetnx(self._key, _field(version), msgspec.json.encode(loading))
        record = _checked(trial(version.folder, version.config, TRIAL_TIMEOUT_S), version.folder)
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


def _files(version: Version, models: Path) -> dict[str, str]:
    """The digests of a version's files; none where they cannot be read."""
    try:
        return digests(version.folder, models)
    except SetupError:
        return {}


def _serve(record: ModelRecord, folder: Path) -> Served:
    return Served(record, preprocess.kinds.kind(record, folder), postprocess.kinds.kind(record, folder))


def _field(version: Version) -> str:
    return f"{version.name}/{version.version}"
