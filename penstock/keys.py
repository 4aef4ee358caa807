"""`penstock keys`: make, list and revoke API keys."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jobs import apikeys
from jobs.errors import SetupError
from jobs.settings import settings
from penstock.opened import open_store

keys = typer.Typer(no_args_is_help=True, help="API keys: who may call the gateway.")

Name = Annotated[str, typer.Argument(help="What to call the key.")]
Tenant = Annotated[str, typer.Option(help="Whose jobs it reads and writes.")]
RoleName = Annotated[str, typer.Option("--role", help="user or admin.")]
IfMissing = Annotated[bool, typer.Option("--if-missing", help="Do nothing where the name is taken.")]


@keys.command("add")
def add(name: Name, tenant: Tenant = "default", role: RoleName = "user", *, if_missing: IfMissing = False) -> None:
    """Make a key and print it: the only time that it can be read."""
    with open_store() as client:
        namespace = settings().namespace
        if if_missing and any(key.name == name for key in apikeys.list_keys(client, namespace)):
            return
        print(apikeys.add(client, namespace, name=name, tenant=tenant, role=_role(role)))


@keys.command("list")
def show() -> None:
    """List the keys, without what is secret."""
    table = Table("name", "tenant", "role", "created")
    with open_store() as client:
        for key in apikeys.list_keys(client, settings().namespace):
            table.add_row(key.name, key.tenant, key.role, key.created_at)
    Console().print(table)


@keys.command("revoke")
def revoke(name: Name) -> None:
    """Forget a key."""
    with open_store() as client:
        apikeys.revoke(client, settings().namespace, name)


def _role(word: str) -> apikeys.Role:
    if word == "user":
        return "user"
    if word == "admin":
        return "admin"
    raise SetupError(f"role {word!r} is not known: use user or admin")
