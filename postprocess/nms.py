"""Non-maximum suppression: of boxes of one class that cover the same thing, the one with the best score stays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def suppress(boxes: NDArray[np.float64], groups: NDArray[Any], iou_max: float, kept_max: int) -> list[int]:
    """Indices of the boxes that stay, at most ``kept_max``, in order.

    ``boxes`` is [n, 4], x1 y1 x2 y2, best first; one hides later ones of its group whose intersection over union with
    it is above ``iou_max``. A box without area hides nothing and is hidden by nothing. Greedy, as in torchvision's
    ``batched_nms``: a pass over the rest for each box that stays, so at most n * ``kept_max`` comparisons. Groups are
    compared, not moved apart by an offset: coordinates may be as large as they like and lose no precision.
    """
    corners, areas = np.ascontiguousarray(boxes.T), _areas(boxes.T)
    alive = np.ones(len(boxes), bool)
    kept: list[int] = []
    for index in range(len(boxes)):
        if not alive[index]:
            continue
        kept.append(index)
        if len(kept) == kept_max:
            break
        rest = slice(index + 1, None)
        hidden = _iou(corners[:, index, np.newaxis], areas[index], corners[:, rest], areas[rest]) > iou_max
        alive[rest] &= ~(hidden & (groups[rest] == groups[index]))
    return kept


def _areas(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of corners [4, n]; 0 where a box is turned inside out."""
    x1, y1, x2, y2 = corners
    areas: NDArray[np.float64] = np.maximum(x2 - x1, 0) * np.maximum(y2 - y1, 0)
    return areas


def _iou(
    one: NDArray[np.float64], area: np.float64, others: NDArray[np.float64], areas: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Intersection over union of one box with each other; 0 where nothing has an area."""
    common = _areas(np.concatenate([np.maximum(one[:2], others[:2]), np.minimum(one[2:], others[2:])]))
    union = area + areas - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
