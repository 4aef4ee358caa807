"""Fault points: named places where a test makes a process die, hang or fail.

Nothing happens unless ``PENSTOCK_FAULTS`` is set.

    PENSTOCK_FAULTS="inference.ran=kill; session.run=raise:memory?rows-above:8"

Each entry is ``point=action``, optionally ``?condition``. Points are listed in ``POINTS``.

Actions     ``kill`` (SIGKILL to itself), ``stop`` (SIGSTOP to itself), ``hang:SECONDS``, ``raise:memory``
            (MemoryError), ``raise:exit`` (SystemExit), ``raise:cuda`` (a sticky CUDA error, in the runtime's words),
            ``raise:error``
Conditions  ``nth:N`` (the N-th time only, from 1), ``from:N`` (that time and later), ``rows-above:N``, ``poison`` (a
            tensor among the arguments begins with ``POISON``)
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

VARIABLE: Final = "PENSTOCK_FAULTS"
POISON: Final = 666.0
POINTS: Final = frozenset(
    {
        "gateway.stored",  # the record is written, nothing is published
        "gateway.published",  # handed to the broker's thread, nothing is answered
        "sweeper.swept",  # a pass is done in the store, nothing of it is published
        *(
            f"{stage}.{point}"
            for stage in ("preprocess", "inference", "postprocess")
            for point in (
                "received",  # a message arrived, no lease is taken
                "taken",  # the lease is taken, nothing has run
                "run",  # inside the stage function's guard, with its items
                "ran",  # the stage has run, nothing is committed
                "committed",  # committed, neither handed on nor acknowledged
            )
        ),
        "session.run",  # in place of the runtime, with the feeds
    }
)


class Faults:
    """The faults that one process was told to meet."""

    def __init__(self, text: str) -> None:
        self._entries = [_entry(part) for part in text.split(";") if part.strip()]
        self._times: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._entries)

    def reach(self, point: str, tensors: Iterable[Mapping[str, Any]] = ()) -> None:
        """Meet what was ordered for ``point``; ``tensors`` are what it works on, by name."""
        self._times[point] += 1
        for wanted, action, condition in self._entries:
            if wanted == point and self._holds(condition, point, tensors):
                _act(action)

    def _holds(self, condition: str, point: str, tensors: Iterable[Mapping[str, Any]]) -> bool:
        name, _, argument = condition.partition(":")
        arrays = [array for each in tensors for array in each.values()]
        if name == "nth":
            return self._times[point] == int(argument)
        if name == "from":
            return self._times[point] >= int(argument)
        if name == "rows-above":
            return any(len(array) > int(argument) for array in arrays)
        if name == "poison":
            return any((array.reshape(len(array), -1)[:, 0] == POISON).any() for array in arrays)
        return True


def _entry(part: str) -> tuple[str, str, str]:
    point, _, rest = part.strip().partition("=")
    action, _, condition = rest.partition("?")
    if point not in POINTS:
        raise ValueError(f"{VARIABLE}: there is no point {point!r}; there are {', '.join(sorted(POINTS))}")
    return point, action, condition


def _act(action: str) -> None:
    name, _, argument = action.partition(":")
    if name in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[name])
    elif name == "hang":
        time.sleep(float(argument))
    elif name == "raise":
        raise _ERRORS[argument]
    else:
        raise ValueError(f"{VARIABLE}: there is no action {name!r}")


_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
_ERRORS: dict[str, BaseException] = {
    "memory": MemoryError(),
    "exit": SystemExit(3),
    "cuda": RuntimeError("CUDA failure 700: an illegal memory access was encountered"),
    "error": RuntimeError("a fault was ordered"),
}

faults = Faults(os.environ.get(VARIABLE, ""))
"""This process's; call ``reach`` behind ``if faults`` so that it costs nothing."""
