"""Kind ``detection``: one output of boxes as ``{"detections": [{"label", "score", "box": [x1, y1, x2, y2]}]}``.

Boxes are in pixels of the picture as it was sent and turned upright, clipped to it, best first: the image kind leaves
the picture's placement beside the outputs. Where another kind made the input, they are in pixels of that input.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from jobs.errors import ModelError, PenstockError, SetupError
from jobs.models import ModelRecord, TensorSpec
from jobs.placement import PLACEMENT, Placement
from jobs.tensors import Tensors
from postprocess.boxes import Format, Found, axis, decode, width
from postprocess.nms import suppress
from postprocess.rows import by_make, finite, named_output, not_finite

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[int, msgspec.Meta(ge=1)]

_RANK = 3
"""Rows, candidates, and the numbers of one."""


class DetectionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``labels`` in the order of the classes; no ``output`` is needed where the graph has one.

    ``format`` is how the output is laid out (``postprocess.boxes``). Of each row's boxes with a score of
    ``score_min`` or more the best ``candidates_max`` are compared; one is dropped where its intersection over union
    with a better one of its class (with any, if ``class_agnostic``) is above ``iou_max``; ``boxes`` come suppressed
    already. ``input_size`` is [height, width], needed only without the image kind and a fixed size in the graph.
    """

    labels: Annotated[list[str], msgspec.Meta(min_length=1)]
    output: str = ""
    format: Format = "yolov8"
    score_min: Share = 0.25
    iou_max: Share = 0.45
    detections_max: Positive = 100
    class_agnostic: bool = False
    candidates_max: Positive = 3_000
    input_size: tuple[Positive, Positive] | None = None


class DetectionKind:
    """See ``postprocess.kinds.Kind``."""

    Options = DetectionOptions
    passes = frozenset[str]()

    def __init__(self, record: ModelRecord, options: DetectionOptions, _folder: Path | None = None) -> None:
        spec = named_output(record.signature.outputs, options.output)
        _check(spec, options)
        self._name = spec.name
        self._options = options
        self._placement = _placement(record, options)

    def run(self, outputs: Sequence[Tensors]) -> list[Any]:
        """A document for one row, a list for more; ModelError for NaN, infinity or a class without label."""
        wanted = [{name: item[name] for name in (self._name, PLACEMENT) if name in item} for item in outputs]
        return [_document(rows) for rows in by_make(wanted, self._of_rows)]

    def _of_rows(self, joined: Tensors) -> list[Any]:
        """For each row its document, or the error of that row."""
        options, output = self._options, joined[self._name]
        size = output.shape[axis(options.format)] if output.ndim == _RANK else 0
        if size != width(options.format, len(options.labels)):
            return [ModelError("the model's output has another shape than its format and labels say")] * len(output)
        fine = np.array(finite({self._name: output}))
        with np.errstate(over="ignore", invalid="ignore"):  # rows that are not finite get an error below
            found = decode(_blanked(output, fine), options.format, options.score_min)
            kept = self._best(found, len(output))
            placements = joined.get(PLACEMENT, np.broadcast_to(self._placement, (len(output), 6)))
            boxes = _placed_back(kept.boxes, placements[kept.rows])
        fine[kept.rows[~(np.isfinite(boxes).all(axis=1) & np.isfinite(kept.scores))]] = False
        return self._documents(kept._replace(boxes=boxes), fine)

    def _best(self, found: Found, count: int) -> Found:
        """What stays of each row's candidates, best first."""
        ends = np.searchsorted(found.rows, np.arange(count + 1))
        return found.take(np.concatenate([self._best_of_row(found, *each) for each in itertools.pairwise(ends)]))

    def _best_of_row(self, found: Found, start: int, end: int) -> NDArray[np.intp]:
        options = self._options
        order = start + np.argsort(-found.scores[start:end], kind="stable")
        if options.format == "boxes":
            return order[: options.detections_max]
        order = order[: options.candidates_max]
        groups = np.zeros(len(order)) if options.class_agnostic else found.classes[order]
        return order[suppress(found.boxes[order], groups, options.iou_max, options.detections_max)]

    def _documents(self, kept: Found, fine: NDArray[np.bool_]) -> list[Any]:
        documents: list[Any] = [{"detections": []} if each else not_finite() for each in fine]
        labels = self._options.labels
        for row, box, score, each in zip(*(array.tolist() for array in kept), strict=True):
            if isinstance(documents[row], PenstockError):
                continue
            if not 0 <= each < len(labels):
                documents[row] = ModelError(f"the model gave a class that has no label; it has {len(labels)} labels")
            elif box[0] < box[2] and box[1] < box[3]:  # what lies in the padding is no part of the picture
                documents[row]["detections"].append({"label": labels[each], "score": score, "box": box})
        return documents


def _blanked(output: NDArray[Any], fine: NDArray[np.bool_]) -> NDArray[Any]:
    """The output with zeros for the rows that are not fine, which then hold nothing of any score."""
    return output if fine.all() else np.where(fine[:, np.newaxis, np.newaxis], output, np.zeros((), output.dtype))


def _placed_back(boxes: NDArray[np.float64], placements: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes in pixels of each one's picture, clipped to it."""
    height, wide, scale_y, scale_x, offset_y, offset_x = placements.T
    offset = np.stack([offset_x, offset_y] * 2, axis=1)
    scale = np.stack([scale_x, scale_y] * 2, axis=1)
    clipped: NDArray[np.float64] = np.clip((boxes - offset) / scale, 0, np.stack([wide, height] * 2, axis=1))
    return clipped


def _check(spec: TensorSpec, options: DetectionOptions) -> None:
    """SetupError where the output cannot be of the format."""
    if spec.name == PLACEMENT:
        raise SetupError(f"the graph's output is called {PLACEMENT}, which detection needs; give it another name")
    count, wanted = len(options.labels), width(options.format, len(options.labels))
    if len(spec.shape) != _RANK or spec.dtype not in ("float16", "float32", "float64"):
        raise SetupError(f"postprocess.options.output: {spec.name} must be floats of three axes")
    if spec.shape[axis(options.format)] not in (None, wanted):
        raise SetupError(
            f"postprocess.options.labels: with {count} labels, axis {axis(options.format)} of {spec.name} would be "
            f"{wanted} in format {options.format}, but it is {spec.shape[axis(options.format)]}"
        )


def _placement(record: ModelRecord, options: DetectionOptions) -> NDArray[np.float64]:
    """The placement where none comes with the item: the model's input as it is."""
    size = options.input_size or _input_size(record.signature.inputs[0])
    if size is not None:
        return Placement(*size).row()
    if record.config.preprocess.kind != "image":
        raise SetupError("postprocess.options.input_size: the graph takes pictures of any size; give [height, width]")
    return Placement(np.inf, np.inf).row()


def _input_size(spec: TensorSpec) -> tuple[int, int] | None:
    """Height and width of an input of pictures (NCHW or NHWC with 1 or 3 channels), where the graph fixes them."""
    shape = spec.shape[1:]
    if len(shape) != _RANK:
        return None
    height, wide = shape[1:] if shape[0] in (1, 3) else shape[:2]
    return (height, wide) if height and wide else None


def _document(rows: list[Any]) -> Any:
    errors = [each for each in rows if isinstance(each, PenstockError)]
    if errors:
        return errors[0]
    return rows[0] if len(rows) == 1 else rows
