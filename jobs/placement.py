"""How a picture lies in a model's input: what turns boxes back into the picture's own pixels.

Preprocessing leaves it beside the graph's input, detection reads it beside the graph's outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jobs.tensors import ASIDE

PLACEMENT = f"{ASIDE}image"
"""Name of the tensor: float64 [rows, 6], the fields of ``Placement``."""


class Placement(NamedTuple):
    """The upright picture's size in pixels; on each axis, input = pixel * scale + offset."""

    height: float
    width: float
    scale_y: float = 1.0
    scale_x: float = 1.0
    offset_y: float = 0.0
    offset_x: float = 0.0

    def row(self) -> NDArray[np.float64]:
        """One row of the tensor."""
        return np.array([self], np.float64)
