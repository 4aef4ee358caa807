"""JSON pointers (RFC 6901) to what is wrong in a request: every kind's begin with ``/input``."""

from __future__ import annotations

from jobs.errors import PenstockError

INPUT = "/input"


def pointer_to(name: str) -> str:
    """The field ``name`` of the input."""
    return f"{INPUT}/" + name.replace("~", "~0").replace("/", "~1")


def lower(error: PenstockError, name: str) -> None:
    """Let ``error``, met by a kind that read the field ``name`` as if it were the whole input, point into it."""
    error.pointer = pointer_to(name) + (error.pointer or "").removeprefix(INPUT)
