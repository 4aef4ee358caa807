"""Two graphs side by side on the same inputs: size, speed, and how far their outputs are apart."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from inference.session import Session
from jobs.errors import PenstockError, SetupError
from jobs.models import InferenceConfig
from jobs.tensors import Tensors, rows_of

RUNS = 20
"""Timed runs of each graph on each sample."""
_CONFIG = InferenceConfig(providers=("cpu",))


class Comparison(msgspec.Struct, frozen=True):
    """What changed. Sizes are of the whole version's folder, durations the median of single runs.

    Differences are absolute, over all numbers of all outputs; ``agreement`` is the share of rows whose argmax over
    the last axis is the same (1 where no output has one of several numbers).
    """

    rows: int
    bytes_before: int
    bytes_after: int
    run_s_before: float
    run_s_after: float
    difference_max: float
    difference_mean: float
    agreement: float


def compare(before: Path, after: Path, samples: Sequence[Tensors], runs: int = RUNS) -> Comparison:
    """Run both graphs on every sample, taking turns. SetupError where there is no sample or one cannot be run."""
    if not samples:
        raise SetupError("there are no sample inputs to compare on; put some beside the model")
    old, new = (Session.open(path, threads=1, config=_CONFIG) for path in (before, after))
    pairs = [(_run(old, "old", sample), _run(new, "new", sample)) for sample in samples]
    differences = np.concatenate([_differences(*pair) for pair in pairs])
    same = np.concatenate([_same(*pair) for pair in pairs])
    times = _times(old, new, samples, runs)
    return Comparison(
        rows=sum(map(rows_of, samples)),
        bytes_before=_size(before.parent),
        bytes_after=_size(after.parent),
        run_s_before=statistics.median(times[0]),
        run_s_after=statistics.median(times[1]),
        difference_max=float(differences.max(initial=0.0)),
        difference_mean=float(differences.mean()) if differences.size else 0.0,
        agreement=float(same.mean()) if same.size else 1.0,
    )


def _run(session: Session, which: str, sample: Tensors) -> Tensors:
    try:
        return session.run(sample)
    except PenstockError as error:
        raise SetupError(f"the {which} version cannot run a sample: {error.detail}") from None


def _times(old: Session, new: Session, samples: Sequence[Tensors], runs: int) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for sample in samples:
            for session, taken in zip((old, new), times, strict=True):
                began = time.perf_counter()
                session.run(sample)
                taken.append(time.perf_counter() - began)
    return times


def _differences(old: Tensors, new: Tensors) -> NDArray[np.float64]:
    """Absolute differences of all numbers; infinite where one is no finite number and the other is not the same."""
    _check_alike(old, new)
    return np.concatenate([_apart(old[name], new[name]).ravel() for name in old])


def _apart(old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.float64]:
    a, b = old.astype(np.float64), new.astype(np.float64)
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    finite = np.isfinite(a) & np.isfinite(b)
    apart = np.abs(np.subtract(a, b, where=finite, out=np.full_like(a, np.inf)))
    return np.where(equal, 0.0, apart)


def _same(old: Tensors, new: Tensors) -> NDArray[np.bool_]:
    """For each row of each output with an axis to choose along, whether both choose the same."""
    chosen = [
        (old[name].argmax(axis=-1) == new[name].argmax(axis=-1)).ravel()
        for name in old
        if old[name].ndim > 1 and old[name].shape[-1] > 1
    ]
    return np.concatenate(chosen) if chosen else np.zeros(0, np.bool_)


def _check_alike(old: Tensors, new: Tensors) -> None:
    if list(old) != list(new) or any(old[name].shape != new[name].shape for name in old):
        shapes = [{name: list(array.shape) for name, array in each.items()} for each in (old, new)]
        raise SetupError(f"the new version's outputs are {shapes[1]}, the old one's {shapes[0]}")


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())
