"""Outputs of object detectors as boxes: which candidates a batch holds, decoded over all its rows at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Format = Literal["yolov8", "yolov5", "boxes"]


class Found(NamedTuple):
    """Candidates of a batch in the order of its rows, n in all."""

    rows: NDArray[np.intp]
    """The row of each."""
    boxes: NDArray[np.float64]
    """[n, 4]: x1, y1, x2, y2 in pixels of the model's input."""
    scores: NDArray[np.float64]
    classes: NDArray[np.intp]

    def take(self, indices: NDArray[np.intp]) -> Found:
        """The candidates at ``indices``, in that order."""
        return Found(self.rows[indices], self.boxes[indices], self.scores[indices], self.classes[indices])


def width(form: Format, classes: int) -> int:
    """How many numbers a candidate has."""
    return {"yolov8": 4 + classes, "yolov5": 5 + classes, "boxes": 6}[form]


def axis(form: Format) -> int:
    """On which axis of the output the numbers of a candidate lie; axis 0 is the rows."""
    return 1 if form == "yolov8" else 2


def decode(output: NDArray[Any], form: Format, score_min: float) -> Found:
    """Find all candidates of a score of ``score_min`` or more, each with its best class (of equals the first)."""
    return _FORMATS[form](output, score_min)


def _yolov8(output: NDArray[Any], score_min: float) -> Found:
    """[rows, 4 + classes, anchors]: centre and size, then a score for each class (Ultralytics YOLOv8 to v12)."""
    rows, anchors = np.nonzero(output[:, 4:].max(axis=1) >= score_min)
    return _best(rows, output[rows, :4, anchors], output[rows, 4:, anchors])


def _yolov5(output: NDArray[Any], score_min: float) -> Found:
    """[rows, anchors, 5 + classes]: centre and size, the score of any object, then one for each class (v5, v7)."""
    rows, anchors = np.nonzero(output[..., 4] * output[..., 5:].max(axis=2) >= score_min)
    picked = output[rows, anchors]
    return _best(rows, picked[:, :4], picked[:, 4:5] * picked[:, 5:])


def _boxes(output: NDArray[Any], score_min: float) -> Found:
    """[rows, n, 6]: x1, y1, x2, y2, score, class; already suppressed (YOLOv10, exports with NMS in the graph)."""
    rows, places = np.nonzero(output[..., 4] >= score_min)
    picked = output[rows, places].astype(np.float64)
    return Found(rows, picked[:, :4], picked[:, 4], _whole(picked[:, 5]))


def _best(rows: NDArray[np.intp], centred: NDArray[Any], scores: NDArray[Any]) -> Found:
    classes = scores.argmax(axis=1)
    best = np.take_along_axis(scores, classes[:, np.newaxis], axis=1)[:, 0]
    centre, half = centred[:, :2].astype(np.float64), centred[:, 2:4].astype(np.float64) / 2
    return Found(rows, np.hstack([centre - half, centre + half]), best.astype(np.float64), classes)


def _whole(classes: NDArray[np.float64]) -> NDArray[np.intp]:
    """Classes as indices; -1 where a number is none."""
    fine = (classes == np.floor(classes)) & (np.abs(classes) < np.iinfo(np.int32).max)
    return np.where(fine, classes, -1).astype(np.intp)


_FORMATS: dict[Format, Callable[[NDArray[Any], float], Found]] = {
    "yolov8": _yolov8,
    "yolov5": _yolov5,
    "boxes": _boxes,
}
