"""`penstock dead-letters`: list, show, replay and drop what was given up, straight in the store."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from api.deadletters import view_of
from api.results import error_of
from jobs import commands
from jobs.commands import DeadLetter
from jobs.errors import SetupError
from jobs.records import instant
from jobs.settings import settings
from jobs.store import Flow, JobStore
from penstock.opened import open_store

dead_letters = typer.Typer(no_args_is_help=True, help="Failed jobs whose inputs are kept.")

PAGE = 200
EXIT_NOT_FOUND = 1

TaskIds = Annotated[list[str] | None, typer.Argument(help="Task ids; without any, a filter or --all.")]
Model = Annotated[str, typer.Option(help="Only of this model.")]
Stage = Annotated[str, typer.Option(help="Only of this stage.")]
Code = Annotated[str, typer.Option(help="Only with this error code.")]
SinceS = Annotated[float, typer.Option(help="Only those that ended within so many seconds.")]
Every = Annotated[bool, typer.Option("--all", help="Every dead letter.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON lines instead of a table.")]
Most = Annotated[int, typer.Option("--limit", min=1, help="At most so many.")]


@dead_letters.command("list")
def show_all(
    model: Model = "",
    stage: Stage = "",
    code: Code = "",
    since_s: SinceS = 0,
    limit: Most = 100,
    *,
    json: AsJson = False,
) -> None:
    """List dead letters, the youngest first."""
    with _store() as store:
        letters = list(_matching(store, _terms(store, model, stage, code, since_s), limit))
    if json:
        for each in letters:
            print(msgspec.json.encode(view_of(each)).decode())
        return
    table = Table("task id", "model", "stage", "code", "attempt", "ended at", "input bytes")
    for each in letters:
        name = f"{each.head.model}/{each.head.version}"
        row = (each.task_id, name, each.stage, each.code, str(each.attempt), instant(each.ended_at_ms))
        table.add_row(*row, str(each.input_bytes))
    Console().print(table)


@dead_letters.command("show")
def show(task_id: str) -> None:
    """Print one dead letter as JSON, with its error."""
    with _store() as store:
        letters = store.run(commands.dead_letters_of([task_id]))
        (view,) = store.run(commands.read([task_id]))
    if not letters:
        _absent(task_id)
    shown = msgspec.structs.replace(view_of(letters[0]), error=error_of(task_id, view))
    print(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())


@dead_letters.command("replay")
def replay(
    task_ids: TaskIds = None,
    model: Model = "",
    stage: Stage = "",
    code: Code = "",
    since_s: SinceS = 0,
    *,
    every: Every = False,
    dry_run: DryRun = False,
) -> None:
    """Run dead letters again under their ids, each as a new generation."""
    with _store() as store:
        letters = _chosen(store, task_ids, _terms(store, model, stage, code, since_s), every=every)
        for batch in _batches(letters):
            verdicts = ["would be replayed"] * len(batch) if dry_run else store.run(_replay(store, batch))
            for each, verdict in zip(batch, verdicts, strict=True):
                print(f"{each.task_id} {verdict}")


@dead_letters.command("drop")
def drop(
    task_ids: TaskIds = None,
    model: Model = "",
    stage: Stage = "",
    code: Code = "",
    since_s: SinceS = 0,
    *,
    every: Every = False,
    dry_run: DryRun = False,
) -> None:
    """Forget dead letters and their inputs; how each job ended can be read until its retention is over."""
    with _store() as store:
        letters = _chosen(store, task_ids, _terms(store, model, stage, code, since_s), every=every)
        for batch in _batches(letters):
            if not dry_run:
                store.run(commands.drop([each.task_id for each in batch]))
            for each in batch:
                print(f"{each.task_id} {'would be dropped' if dry_run else 'dropped'}")


@contextmanager
def _store() -> Iterator[JobStore]:
    with open_store() as client:
        yield JobStore(client, settings().namespace, Flow.of(settings()))


def _terms(store: JobStore, model: str, stage: str, code: str, since_s: float) -> dict[str, Any]:
    """A filter as the store takes it; "within so many seconds" becomes an instant on the store's clock."""
    since_ms = int(_now_ms(store) - since_s * 1000) if since_s else 0
    return {"model": model, "stage": stage, "code": code, "since_ms": since_ms}


def _now_ms(store: JobStore) -> int:
    seconds, micros = store.client.time()
    return int(seconds) * 1000 + int(micros) // 1000


def _chosen(
    store: JobStore, task_ids: Sequence[str] | None, terms: dict[str, Any], *, every: bool
) -> list[DeadLetter]:
    """The dead letters that a command names, by ids, by a filter, or all. SetupError: none of the three."""
    if task_ids:
        letters = store.run(commands.dead_letters_of(task_ids))
        if missing := set(task_ids) - {each.task_id for each in letters}:
            _absent(min(missing))
        return letters
    if any(terms.values()) == every:
        raise SetupError("name task ids, a filter (--model, --stage, --code, --since-s), or --all; not both")
    return list(_matching(store, terms, sys.maxsize))


def _matching(store: JobStore, terms: dict[str, Any], most: int) -> Iterator[DeadLetter]:
    cursor = ""
    while most > 0:
        found = store.run(commands.dead_letters(most=min(PAGE, most), cursor=cursor, **terms))
        yield from found.letters
        most -= len(found.letters)
        cursor = found.cursor
        if not cursor:
            return


def _batches(letters: Sequence[DeadLetter]) -> Iterator[Sequence[DeadLetter]]:
    for start in range(0, len(letters), PAGE):
        yield letters[start : start + PAGE]


def _replay(store: JobStore, letters: Sequence[DeadLetter]) -> commands.Command[list[str]]:
    return commands.replay([(each.task_id, each.head) for each in letters], _now_ms(store))


def _absent(task_id: str) -> NoReturn:
    print(f"penstock: {task_id} is no dead letter", file=sys.stderr)
    raise typer.Exit(EXIT_NOT_FOUND)
