"""`penstock up`: everything on one machine. Its composition root: which roles run, and what is printed."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from jobs import selfcheck
from jobs.connect import without_password
from jobs.settings import Settings
from penstock import embedded
from penstock.child import Role
from penstock.datafolder import DataFolder
from penstock.ports import check_port, free_port
from penstock.supervisor import Supervisor

GATEWAY_DRAIN_S = 12.0
"""A little over the time that uvicorn gives its open requests."""
WORKER_MARGIN_S = 10.0
"""A worker needs a little over its own PENSTOCK_DRAIN_S to say goodbye."""
FLOWER_DRAIN_S = 5.0
REDIS_START_S = 600.0
"""A large append-only file takes long to load."""
REDIS_DRAIN_S = 15.0
READY_TIMEOUT_S = 1.0
ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- addresses to translate, not to listen on


def run(settings: Settings) -> int:
    """Check, start, run until a signal, drain; the exit code. SetupError: what must be put right first."""
    selfcheck.check_models(settings)
    selfcheck.check_broker(settings)
    folder = DataFolder(settings.data)
    try:
        settings = _with_ports(settings)
        supervisor = Supervisor(tuple(_roles(settings, folder)), folder.logs, say=_say)
        _say("\n".join(_notice(settings, folder)))
        return supervisor.run(lambda: _say("penstock: ready"))
    finally:
        folder.close()


def gateway_url(settings: Settings) -> str:
    """Where this machine reaches the gateway."""
    return _url(settings.host, settings.port)


def _say(text: str) -> None:
    print(text, flush=True)


def _with_ports(settings: Settings) -> Settings:
    """Check both ports; 0 becomes one that is free."""
    gateway = settings.port or free_port(settings.host)
    flower = settings.flower_port or free_port(settings.flower_host)
    check_port(settings.host, gateway, "PENSTOCK_PORT")
    check_port(settings.flower_host, flower, "PENSTOCK_FLOWER_PORT")
    return settings.model_copy(update={"port": gateway, "flower_port": flower})


def _roles(settings: Settings, folder: DataFolder) -> Iterator[Role]:
    """Redis, Flower, worker, gateway: the order of the start, and reversed that of the drain."""
    needs = () if settings.store_url.get_secret_value() else ("redis",)
    if needs:
        yield _redis(settings, folder)
    environment = {
        "PENSTOCK_DATA": str(folder.path),
        "PENSTOCK_PORT": str(settings.port),
        "PENSTOCK_FLOWER_PORT": str(settings.flower_port),
    }

    def role(name: str, *words: str, drain_s: float, replaced: bool = False) -> Role:
        command = (sys.executable, "-m", "penstock", *words)
        return Role(name, command, environment=environment, needs=needs, drain_s=drain_s, replaced=replaced)

    yield role("flower", "flower", drain_s=FLOWER_DRAIN_S)
    yield role("worker", "worker", drain_s=settings.drain_s + WORKER_MARGIN_S, replaced=True)
    gateway = role("gateway", "api", drain_s=GATEWAY_DRAIN_S)
    yield Role(
        gateway.name,
        gateway.command,
        environment=environment,
        needs=needs,
        answers=lambda: _is_ready(settings),
        drain_s=gateway.drain_s,
    )


def _redis(settings: Settings, folder: DataFolder) -> Role:
    program = embedded.find_server()
    return Role(
        "redis",
        embedded.server_command(program, folder.redis, settings.socket_path),
        answers=lambda: embedded.answers(settings.store),
        vital=True,
        start_s=REDIS_START_S,
        drain_s=REDIS_DRAIN_S,
        complaint=embedded.last_complaint,
    )


def _is_ready(settings: Settings) -> bool:
    """Whether the gateway says that jobs would be done."""
    try:
        with urllib.request.urlopen(f"{gateway_url(settings)}/readyz", timeout=READY_TIMEOUT_S) as answer:  # noqa: S310 -- our own
            return bool(json.load(answer)["workers"])  # 503 has raised; a gateway takes jobs without workers, too
    except (OSError, urllib.error.URLError, ValueError, KeyError):
        return False


def _notice(settings: Settings, folder: DataFolder) -> Iterator[str]:
    """Tell what runs where, a line to try, how to stop."""
    url = gateway_url(settings)
    own = "" if settings.store_url.get_secret_value() else ", started here"
    yield f"penstock {version('penstock')}"
    yield f"  gateway  {url} (its routes: {url}/docs)"
    models = settings.models_url or settings.models_folder.resolve()
    yield f"  worker   {settings.worker_threads} threads, models in {models}"
    yield f"  store    {without_password(settings.store)}{own}"
    yield f"  broker   {without_password(settings.broker)}"
    yield f"  flower   {_url(settings.flower_host, settings.flower_port)}"
    yield f"  logs     {folder.logs}"
    yield "try, when it says ready:"
    yield from (f"  {line}" for line in _lines_to_try(settings.models_folder, url))
    yield "stop: Ctrl-C, which lets running jobs finish (again Ctrl-C: at once)"


def _lines_to_try(models: Path, url: str) -> Iterator[str]:
    sample = next(iter(sorted((models / "digits" / "samples").glob("*.png"))), None)
    if sample is None:
        yield f"curl -s {url}/models"
        return
    yield f"curl -s --data-binary @{sample} -H 'Content-Type: image/png' {url}/predict/digits"
    yield f"curl -s {url}/result/TASK_ID"


def _url(host: str, port: int) -> str:
    host = ANY_HOST.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
