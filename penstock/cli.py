"""The command line. Commands are thin: each reads the settings, checks, and hands over to a noun's file."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated, NoReturn

import redis
import typer

from jobs import selfcheck
from jobs.errors import EXIT_CONFIG, SetupError, StoreUnavailableError
from jobs.records import STAGES
from jobs.settings import settings
from penstock import operate, roles
from penstock import up as everything
from penstock.deadletters import dead_letters
from penstock.keys import keys
from penstock.ports import check_port

EVERY_STAGE = ",".join(STAGES)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Asynchronous inference: submit, queue, micro-batch, poll. Settings: PENSTOCK_*.",
)
app.add_typer(keys, name="keys")
app.add_typer(dead_letters, name="dead-letters")
app.add_typer(operate.tenants, name="tenants")
app.command("pause")(operate.pause)
app.command("resume")(operate.resume)

Stages = Annotated[str, typer.Option(help="Which stages to serve, separated by commas.")]
Pool = Annotated[str, typer.Option(help="Which pools to join, by commas (`pool` in model.toml).")]


@app.command()
def up() -> None:
    """Run everything on this machine: Redis, a worker, the gateway, Flower."""
    raise typer.Exit(everything.run(settings()))


@app.command()
def api() -> None:
    """Run the gateway."""
    check_port(settings().host, settings().port, "PENSTOCK_PORT")
    selfcheck.check_gateway(settings())
    roles.serve(settings())


@app.command()
def worker(stages: Stages = EVERY_STAGE, pool: Pool = "") -> None:
    """Run a worker."""
    if pool:
        os.environ["PENSTOCK_POOLS"] = pool
    roles.become(roles.worker_command(settings(), stages.split(",")))


@app.command()
def flower() -> None:
    """Run Flower, which shows workers and tasks."""
    roles.become(roles.flower_command(settings()))


@app.command()
def version() -> None:
    """Print the version."""
    print(metadata.version("penstock"))


def main() -> None:
    """Run the command line; a fault of the set-up is one line and exit code 78."""
    try:
        app()
    except SetupError as error:
        _refuse(str(error))
    except (redis.ConnectionError, redis.TimeoutError, StoreUnavailableError):
        _refuse("the store stopped answering: try again when it runs")


def _refuse(line: str) -> NoReturn:
    print(f"penstock: {line}", file=sys.stderr)
    sys.exit(EXIT_CONFIG)
