"""The roles one by one: what `penstock api`, `worker` and `flower` run, in the tools' own words."""

from __future__ import annotations

import os
import resource
import sys
import uuid
from collections.abc import Sequence
from typing import NoReturn

import uvicorn

from api.connection import connection
from jobs.errors import SetupError
from jobs.logs import log_json_lines
from jobs.records import STAGES
from jobs.settings import Settings
from tasks.names import queue_names

FILES_BESIDE = 256
"""Files that a gateway opens besides its clients' connections, at most."""
GATEWAY_DRAIN_S = 10
"""How long open requests may take after SIGTERM."""


def serve(settings: Settings) -> None:
    """Run the gateway in this process until a signal; uvicorn's own logs become JSON lines too."""
    log_json_lines(settings.log_level)
    _allow_files(settings.connections_max)
    uvicorn.run(
        "api.app:create_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=connection(settings.head_timeout_s, settings.connections_max),
        ws="none",
        access_log=False,
        log_config=None,
        log_level=settings.log_level.lower(),
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=GATEWAY_DRAIN_S,
    )


def _allow_files(connections: int) -> None:
    """Raise the number of open files, as far as this process may, to what so many connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + FILES_BESIDE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def worker_command(settings: Settings, stages: Sequence[str]) -> list[str]:
    """Celery's own command for a worker of ``stages``. SetupError: a stage that is not one."""
    unknown = set(stages).difference(STAGES)
    if unknown:
        raise SetupError(f"--stages: {min(unknown)!r} is not one of {', '.join(STAGES)}")
    served = [stage for stage in STAGES if stage in stages]
    return [
        *_celery("worker"),
        *("-Q", ",".join(queue_names(settings.pools, served))),
        *("-n", f"penstock-{uuid.uuid4().hex[:8]}@%h"),
        *("--loglevel", settings.log_level),
        *("-E", "--without-gossip", "--without-mingle"),
    ]


def flower_command(settings: Settings) -> list[str]:
    """Flower's own command."""
    return [*_celery("flower"), f"--address={settings.flower_host}", f"--port={settings.flower_port}"]


def become(command: list[str]) -> NoReturn:
    """Replace this process, so that signals and the exit code are the tool's own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)  # noqa: S606 -- a list built here, no shell


def _celery(command: str) -> list[str]:
    return [sys.executable, "-m", "celery", "-A", "tasks.worker", command]
