"""Settings of every role, read once from ``PENSTOCK_*`` in the environment and then frozen."""

from __future__ import annotations

import functools
import os
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from jobs.errors import SetupError

BROKER_SCHEMES = ("redis://", "rediss://", "redis+socket://", "amqp://", "amqps://")
MODELS_SCHEMES = ("s3://", "gs://", "az://", "file://")
STORE_SCHEMES = ("redis://", "rediss://", "redis+socket://")


def _one_of(schemes: tuple[str, ...]) -> AfterValidator:
    def check(url: SecretStr) -> SecretStr:
        if url.get_secret_value() and not url.get_secret_value().startswith(schemes):
            raise ValueError(f"must start with one of {', '.join(schemes)}")
        return url

    return AfterValidator(check)


def _folder_or_url(value: str) -> str:
    if "://" in value and not value.startswith(MODELS_SCHEMES):
        raise ValueError(f"must be a folder, or start with one of {', '.join(MODELS_SCHEMES)}")
    return value


def _split(value: object) -> object:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


class Settings(BaseSettings):
    """One field for each environment variable ``PENSTOCK_<FIELD>``; durations in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="PENSTOCK_", frozen=True, extra="ignore")

    namespace: str = Field("penstock", pattern=r"^[a-z0-9-]{1,32}$")
    """Prefix of every key in the store and of every queue."""
    data: Path = Path(".penstock")
    """Folder of `penstock up`: the embedded Redis's socket and append-only file, logs; optimised graphs."""
    models: Annotated[str, BeforeValidator(str), AfterValidator(_folder_or_url)] = "models"
    """Folder with one folder for each model, or the URL of an object store that holds one; only workers read it."""
    models_refresh_s: float = Field(5.0, gt=0)
    """How often a worker looks for versions that were added, changed or removed."""
    custom_ops: bool = False
    """Whether models may bring libraries of their own: native code, run in the worker's process."""
    broker_url: Annotated[SecretStr, _one_of(BROKER_SCHEMES)] = SecretStr("")
    """Where tasks are queued; empty: the store."""
    store_url: Annotated[SecretStr, _one_of(STORE_SCHEMES)] = SecretStr("")
    """Where jobs are kept; empty: the embedded Redis under ``data``."""

    host: str = "127.0.0.1"
    """Address of the gateway; any but loopback needs API keys."""
    port: int = Field(8000, ge=0, le=65535)
    flower_host: str = "127.0.0.1"
    flower_port: int = Field(5555, ge=0, le=65535)
    worker_metrics_host: str = "127.0.0.1"
    worker_metrics_port: int = Field(0, ge=0, le=65535)
    """Port of a worker's /metrics; 0: any free one, named in the worker's log."""

    body_bytes_max: int = Field(16 * 1024 * 1024, ge=1024)
    """Largest request body, before decoding."""
    head_timeout_s: float = Field(10.0, gt=0)
    """How long the head of a request may take to arrive."""
    body_timeout_s: float = Field(30.0, gt=0)
    """How long a request body may take to arrive."""
    wait_s_max: float = Field(60.0, gt=0)
    """Longest ``Prefer: wait``."""
    retention_s: int = Field(3600, ge=1, le=32767 * 3600)
    """How long a job is kept after its end."""

    dead_letter_retention_s: int = Field(7 * 24 * 3600, ge=1, le=32767 * 3600)
    """How long a failed job and its input are kept, for whoever inspects or replays it."""
    dead_letters_max: int = Field(10_000, ge=1)
    dead_letters_bytes_max: int = Field(1024**3, ge=1024**2)
    """Most dead letters; beyond, the oldest loses its input."""

    queue_jobs_max: int = Field(100_000, ge=1)
    """Most open jobs; beyond, a submit is refused."""
    store_bytes_max: int = Field(0, ge=0)
    """Memory of the store beyond which a submit is refused; 0: nine tenths of its maxmemory, where that is set."""
    idempotency_s: int = Field(24 * 3600, ge=1)
    """How long an Idempotency-Key is remembered."""
    cache_bytes_max: int = Field(64 * 1024**2, ge=0)
    """Memory of the store for the index of cached results; 0: no result cache."""
    gateway_cache_bytes_max: int = Field(32 * 1024**2, ge=0)
    """Memory of a gateway for the cached results that are asked for most."""
    connections_max: int = Field(4096, ge=1)
    """Connections that a gateway serves at once."""

    pools: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = ("default",)
    """Pools that a worker serves, separated by commas; a model names its pool in ``model.toml``."""
    worker_threads: int = Field(2, ge=1, le=256)
    """Stages that one worker process runs at once."""
    inference_threads: int = Field(0, ge=0)
    """ONNX Runtime's intra-op threads; 0: cores - 1."""
    graph_cache_bytes_max: int = Field(1024**3, ge=0)
    """Most bytes of optimised graphs that a worker keeps under ``data`` for its next start; 0: none."""
    window_per_slot: int = Field(1, ge=1, le=64)
    """Micro-batches in the broker for each worker slot."""
    microbatch_jobs_max: int = Field(64, ge=1, le=1024)
    """Most jobs in a micro-batch."""
    microbatch_bytes_max: int = Field(8 * 1024 * 1024, ge=1)
    """Most input bytes in a micro-batch (a larger single job travels alone)."""
    preprocess_cache_bytes_max: int = Field(0, ge=0)
    """Memory of a worker for what it preprocessed, to answer the same input again; 0: none is kept."""
    python_steps: bool = True
    """Whether a worker runs the Python steps of its models: code of whoever may write to the models folder."""
    lease_s: float = Field(4.0, ge=1.0)
    """How long a worker that gave no sign of life keeps its micro-batches."""
    load_budget_s: float = Field(120.0, ge=1.0)
    """Lease while a session loads: loading holds Python's interpreter lock, so no heartbeat is sent."""
    drain_s: float = Field(20.0, gt=0)
    """How long a worker that is told to end may go on with what it holds; then it gives the rest back."""
    sweeper: bool = True
    """Whether gateways sweep; off only in tests of what the sweeper is for."""
    allow_volatile_store: bool = False
    """Accept a store without an append-only file: jobs are lost when it restarts."""
    confirm_publish: bool = True
    """Publisher confirms on RabbitMQ; the self-check refuses to start without them."""
    log_level: str = Field("INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")

    @property
    def socket_path(self) -> Path:
        """Unix socket of the embedded Redis; short, because the kernel allows 107 bytes."""
        return self.data.resolve() / "redis.sock"

    @property
    def models_url(self) -> str:
        """URL of the store of objects that the models folder follows; empty: it follows none."""
        return self.models if "://" in self.models else ""

    @property
    def models_folder(self) -> Path:
        """The models folder: the one that is set, or where the copies of a store's objects lie."""
        if not self.models_url:
            return Path(self.models)
        return self.data.resolve() / "models" / sha256(self.models_url.encode()).hexdigest()[:16]

    @property
    def store(self) -> str:
        """URL of the job store."""
        return self.store_url.get_secret_value() or f"redis+socket://{self.socket_path}"

    @property
    def broker(self) -> str:
        """URL of the broker; the store where none is set."""
        return self.broker_url.get_secret_value() or self.store

    @property
    def intra_op_threads(self) -> int:
        """ONNX Runtime threads inside one call."""
        return self.inference_threads or max(1, (os.cpu_count() or 2) - 1)


def read_settings(**given: object) -> Settings:
    """Settings from the environment; SetupError, in one line, where a value is not valid."""
    try:
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        raise SetupError(f"PENSTOCK_{name}: {first['msg']}") from None


@functools.cache
def settings() -> Settings:
    """The settings of this process."""
    return read_settings()
