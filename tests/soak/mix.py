"""What the soak submits: of 100 jobs 5 fail, 5 are cancelled, 2 expire, of 3 the client goes, the rest have answers.

A quarter of all jobs go to ``stretch``, whose width is open, in 50 widths. Bodies and answers are made beforehand:
the client must not be what is measured.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tests.end_to_end.reference import inputs, outputs
from tests.faults.checker import ENDINGS
from tests.faults.workload import BAD_PNG
from tests.unit import graphs

Kind = Literal["good", "bad", "cancel", "expire", "gone"]

STRETCH: Final = "stretch"
SHAPES: Final = 50
WIDTH_STEP: Final = 4
ROWS: Final = 1_000
"""Distinct inputs of the model with one shape."""
ROWS_A_SHAPE: Final = 10
SHARES: Final[dict[Kind, int]] = {"bad": 5, "cancel": 5, "expire": 2, "gone": 3, "good": 85}
STRETCHED: Final = 25
"""Of 100 jobs, those good ones that go to the model with many shapes."""
TTL_S: Final = (0.001, 0.004, 0.016)
"""Some pass before a worker can see the job, some while it waits."""
SOAK_ENDINGS: Final[dict[str, set[str]]] = {
    **ENDINGS,
    "expire": {"expired", "completed"},
}


class Request(NamedTuple):
    """A submit as it is sent, and what a completed job must answer."""

    path: str
    media_type: str
    body: bytes
    expected: NDArray[np.float32] | None


class Job(NamedTuple):
    """One job of the load: by which way its client goes, and what it sends."""

    kind: Kind
    request: Request


class Mix:
    """The same jobs in the same order at each run; `job` gives the n-th."""

    def __init__(self) -> None:
        rows = inputs(ROWS, 11)
        self._plain = [_request("tensor-demo", row, y) for row, y in zip(rows, outputs(rows), strict=True)]
        self._late = [
            _request("tensor-demo", row, y, ttl_s=ttl_s)
            for ttl_s in TTL_S
            for row, y in zip(rows[:50], outputs(rows[:50]), strict=True)
        ]
        self._stretched = [_request(STRETCH, row, row * 2) for row in _stretched()]
        self._bad = Request("/predict/digits", "image/png", BAD_PNG, None)
        self._kinds = _kinds()

    def job(self, number: int) -> Job:
        """The ``number``-th job."""
        round_, place = divmod(number, len(self._kinds))
        kind, is_stretched = self._kinds[place]
        if kind == "bad":
            return Job(kind, self._bad)
        some = self._stretched if is_stretched else self._late if kind == "expire" else self._plain
        return Job(kind, some[(round_ * 37 + place) % len(some)])


def place_stretch(models: Path) -> None:
    """Put the model whose width is open into a folder of models."""
    graphs.place(models, graphs.doubling(width="width"), STRETCH)


def _kinds() -> list[tuple[Kind, bool]]:
    """Hundred jobs in an order that only looks like chance, and whether they are stretched."""
    kinds: list[tuple[Kind, bool]] = [(kind, False) for kind, share in SHARES.items() for _ in range(share)]
    kinds[-STRETCHED:] = [("good", True)] * STRETCHED
    random.Random(5).shuffle(kinds)  # noqa: S311 -- an order, not a secret
    return kinds


def _stretched() -> list[NDArray[np.float32]]:
    draw = np.random.default_rng(12)
    widths = [WIDTH_STEP * (1 + number) for number in range(SHAPES)]
    return [draw.standard_normal(width, np.float32) for _ in range(ROWS_A_SHAPE) for width in widths]


def _request(model: str, row: NDArray[np.float32], y: NDArray[np.float32], **options: Any) -> Request:
    body = msgspec.json.encode({"input": row.tolist(), **options})
    return Request(f"/predict/{model}", "application/json", body, y)
