"""What the cold routes answer, as types: the OpenAPI document takes its schemas from here."""

from __future__ import annotations

import msgspec

from api.catalog import Catalog
from jobs.errors import PenstockError
from jobs.models import CacheConfig, Limits, ModelRecord, RetryPolicy, State, TensorSpec


class VersionView(msgspec.Struct, frozen=True, omit_defaults=True):
    """One version of a model. ``digest`` is the SHA-256 of its graph, ``files_digest`` one over all its files.

    ``reason`` says why it is broken.
    """

    version: int
    state: State
    description: str
    pool: str
    digest: str
    files_digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: str
    postprocess: str
    batch_max: int
    limits: Limits
    retry: RetryPolicy
    weight: float
    cache: CacheConfig
    reason: str | msgspec.UnsetType = msgspec.UNSET


class ModelView(msgspec.Struct, frozen=True):
    """A model, and the version that answers when none is asked for (null: none is ready)."""

    name: str
    active_version: int | None
    versions: list[VersionView]


class ModelsView(msgspec.Struct, frozen=True):
    """Every model."""

    models: list[ModelView]


class LiveView(msgspec.Struct, frozen=True):
    """The process answers."""

    status: str = "live"


class ReadyView(msgspec.Struct, frozen=True):
    """Whether jobs would be taken, and what of it holds; ``workers`` that gave a sign of life lately.

    A gateway without workers is ready: it takes jobs, and they wait.
    """

    status: str
    checks: dict[str, bool]
    workers: int


class ProblemView(msgspec.Struct, frozen=True):
    """What a problem type means."""

    code: str
    title: str
    status: int
    retryable: bool
    meaning: str


def models_view(catalog: Catalog) -> ModelsView:
    """Every model that the gateway knows, by name."""
    return ModelsView([model_view(catalog, name) for name in sorted(catalog.models())])


def model_view(catalog: Catalog, name: str) -> ModelView:
    """One model; ModelNotFoundError."""
    versions = catalog.versions(name)
    return ModelView(name, catalog.active(name), [_version_view(versions[number]) for number in sorted(versions)])


def problem_view(kind: type[PenstockError]) -> ProblemView:
    """What an error class says of itself."""
    meaning = (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")
    return ProblemView(kind.code, kind.title, kind.status, kind.retryable, meaning)


def _version_view(record: ModelRecord) -> VersionView:
    config = record.config
    return VersionView(
        version=record.version,
        state=record.state,
        description=config.description,
        pool=config.pool,
        digest=record.digest,
        files_digest=record.files_digest,
        inputs=record.signature.inputs,
        outputs=record.signature.outputs,
        preprocess=config.preprocess.kind,
        postprocess=config.postprocess.kind,
        batch_max=config.inference.batch_max,
        limits=config.limits,
        retry=config.retry,
        weight=config.weight,
        cache=config.cache,
        reason=record.reason or msgspec.UNSET,
    )
