"""`penstock pause`, `resume` and `tenants`: what operators set while the system runs, straight in the store."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs import pauses
from jobs import tenants as store
from jobs.settings import settings
from jobs.tenants import Tenant
from penstock.opened import open_store

tenants = typer.Typer(no_args_is_help=True, help="Shares and quotas of tenants.")

Model = Annotated[str, typer.Argument(help="The model's name.")]
Name = Annotated[str, typer.Argument(help="The tenant's name, as its keys have it.")]
Weight = Annotated[float, typer.Option(help="Turns beside other tenants.")]
Rate = Annotated[float, typer.Option(help="Jobs a second; 0: any.")]
Burst = Annotated[int, typer.Option(help="How many of them at once.")]
OpenMax = Annotated[int, typer.Option(help="Jobs queued or processing at once; 0: any.")]


def pause(model: Model) -> None:
    """Let the jobs of a model wait; they are still taken, and what runs already runs to its end."""
    with open_store() as client:
        changed = pauses.pause(client, settings().namespace, model)
    print(f"{model} is paused" if changed else f"{model} was paused before")


def resume(model: Model) -> None:
    """Let the jobs of a paused model go on."""
    with open_store() as client:
        changed = pauses.resume(client, settings().namespace, model)
    print(f"{model} goes on" if changed else f"{model} was not paused")


@tenants.command("set")
def put(name: Name, weight: Weight = 1.0, rate: Rate = 0.0, burst: Burst = 1, open_max: OpenMax = 0) -> None:
    """Set a tenant's share and quotas, all of them; what is not given is as for any other tenant."""
    with open_store() as client:
        store.put(client, settings().namespace, Tenant(name, weight, rate, burst, open_max))


@tenants.command("list")
def show() -> None:
    """List what is set; any other tenant has weight 1 and no quota."""
    table = Table("tenant", "weight", "rate", "burst", "open max")
    with open_store() as client:
        for each in store.load_all(client, settings().namespace).values():
            rate = f"{each.rate:g}/s" if each.rate else "any"
            table.add_row(each.name, f"{each.weight:g}", rate, str(each.burst), str(each.open_max or "any"))
    Console().print(table)


@tenants.command("remove")
def remove(name: Name) -> None:
    """Forget what was set for a tenant."""
    with open_store() as client:
        store.remove(client, settings().namespace, name)
