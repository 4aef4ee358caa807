"""The inputs that ``load.c`` submits, made again for the checker: same seed and counter, same 64 numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

VALUES = 64
STEPS = 20_001
"""A number is one of -1.0000, -0.9999 ... 1.0000."""
PRIME = 2_147_483_647
FACTOR = 16_807
"""Park and Miller's generator; its products fit 64 bits."""


def inputs(seed: int, counters: Sequence[int]) -> NDArray[np.float32]:
    """Make the input of each job again, float32 [jobs, 64]."""
    counter = np.asarray(counters, np.int64)
    state = np.maximum((seed * 7919 + counter * 104_729 + 1) % PRIME, 1)
    steps = np.empty((len(counter), VALUES), np.int64)
    steps[:, 0] = counter % STEPS
    steps[:, 1] = counter // STEPS % STEPS
    for column in range(2, VALUES):
        state = state * FACTOR % PRIME
        steps[:, column] = state % STEPS
    return ((steps - STEPS // 2) / 10_000).astype(np.float32)
