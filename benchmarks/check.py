"""Judge the rows of one run: which jobs ended, which answers are wrong, which jobs were lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.inputs import inputs

TOLERANCE = 1e-4
"""Most that an output may differ from ONNX Runtime called directly: other batch sizes round differently."""

FAILED = {"failed", "expired", "cancelled"}
"""Terminal states without a result."""

Model = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Row:
    """One job as ``load.c`` wrote it; instants in ns of the monotonic clock, 0 where it never ended."""

    counter: int
    submitted_at: int
    ended_at: int
    polls: int
    status: str
    detail: str

    @property
    def accepted(self) -> bool:
        """Whether the gateway answered 202 (or at once 200) to its submit."""
        return self.status not in {"refused", "unanswered"}


class Ended(NamedTuple):
    """How a job ended: its status, and the list under ``y`` where it completed."""

    status: str
    detail: str


@dataclass(frozen=True)
class Verdict:
    """Counts over all accepted jobs of a run, ramp and drain included."""

    accepted: int
    completed: int
    late: int
    """Completed after the load had stopped; the drain collected them."""
    lost: int
    """Accepted, and neither completed nor reported as failed."""
    failed: int
    wrong: int
    """Completed with another argmax than ONNX Runtime's, or other numbers."""


def read_rows(path: Path) -> list[Row]:
    """Read the file that ``load.c`` wrote."""
    rows = []
    for line in path.read_text().splitlines():
        counter, submitted_at, ended_at, polls, status, detail = line.split("\t")
        rows.append(Row(int(counter), int(submitted_at), int(ended_at), int(polls), status, detail))
    return rows


def open_model(path: Path) -> Model:
    """ONNX Runtime called directly: inputs float32 [rows, 64] → outputs float32 [rows, 10]."""
    import onnxruntime  # noqa: PLC0415 - heavy, and only the checker needs it

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda rows: session.run(["y"], {"x": rows})[0]


def judge(rows: Iterable[Row], drained: Mapping[str, Ended], seed: int, model: Model) -> Verdict:
    """``drained`` says how the jobs that were in flight when the load stopped have ended, by task id."""
    accepted = [row for row in rows if row.accepted]
    late = {row.counter: drained[row.detail] for row in accepted if row.detail in drained}
    ended = {row.counter: Ended(row.status, row.detail) for row in accepted} | late
    answers = {counter: end.detail for counter, end in ended.items() if end.status == "completed"}
    failed = sum(end.status in FAILED for end in ended.values())
    return Verdict(
        accepted=len(accepted),
        completed=len(answers),
        late=sum(end.status == "completed" for end in late.values()),
        lost=len(accepted) - len(answers) - failed,
        failed=failed,
        wrong=count_wrong(answers, seed, model),
    )


def count_wrong(answers: dict[int, str], seed: int, model: Model) -> int:
    """Count the answers (counter → list under ``y``) that are not what the model says of that job's input."""
    if not answers:
        return 0
    expected = model(inputs(seed, list(answers)))
    return sum(not is_right(answer, wanted) for answer, wanted in zip(answers.values(), expected, strict=True))


def is_right(answer: str, expected: Sequence[float] | NDArray[np.float32]) -> bool:
    """Whether numbers and argmax are the model's, within the tolerance (which may decide a tie)."""
    try:
        given = np.asarray(json.loads(answer), np.float64)
    except ValueError:
        return False
    wanted = np.asarray(expected, np.float64)
    if given.shape != wanted.shape or not np.abs(given - wanted).max() <= TOLERANCE:
        return False
    return bool(wanted[given.argmax()] >= wanted.max() - TOLERANCE)
