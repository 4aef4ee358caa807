"""Kind ``image``: a picture file to the one input of a graph.

JSON is ``{"base64": "..."}``; raw bodies are PNG, JPEG, WebP, BMP or GIF. The door reads only the header
(format by content, number of pixels) and stores the file as it came; the stage decodes it. One picture is
one row. Where detection follows, the picture's placement goes along beside the graph's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.errors import InvalidInputError, PenstockError, SetupError, UnsupportedMediaTypeError
from jobs.models import ModelRecord, TensorSpec
from jobs.payload import Payload
from jobs.placement import PLACEMENT, Placement
from jobs.tensors import DTYPES, Tensors
from preprocess.files import POINTER, file_of_json
from preprocess.fit import Fit, fitted
from preprocess.header import read_header
from preprocess.limits import check_size
from preprocess.pixels import Mode, check_pixels, decode

MEDIA_TYPES = frozenset(("image/png", "image/jpeg", "image/webp", "image/bmp", "image/gif"))

Positive = Annotated[int, msgspec.Meta(ge=1)]
Side = Annotated[int, msgspec.Meta(ge=1, le=16_384)]
Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
Layout = Literal["NCHW", "NHWC", "flat"]


class ImageOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From 8-bit pixels to the model's numbers, in this order: resize, invert, scale, mean, std, layout.

    ``resize`` is [height, width] (none: the picture must have the model's size), ``fit`` how a picture of another
    aspect gets there (``preprocess.fit``). ``invert`` takes pixels from 255; then pixels are multiplied by ``scale``,
    less ``mean``, divided by ``std`` (a value for each channel, or one for all). Integer inputs of a graph are
    rounded and clipped to the dtype.
    """

    mode: Mode = "RGB"
    resize: tuple[Side, Side] | None = None
    fit: Fit = "stretch"
    pad_value: Byte = 114
    filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bilinear"
    invert: bool = False
    scale: float = 1.0
    mean: list[float] = []
    std: list[float] = []
    layout: Layout = "NCHW"
    pixels_max: Positive = 25_000_000


class ImageKind:
    """See ``preprocess.kinds.Kind``."""

    Options = ImageOptions
    media_types = MEDIA_TYPES

    def __init__(self, record: ModelRecord, options: ImageOptions, _folder: Path | None = None) -> None:
        if len(record.signature.inputs) != 1:
            raise SetupError("preprocess.kind: image needs a graph with one input; use tensor")
        self._options = options
        self._spec = record.signature.inputs[0]
        self._bytes_max = record.config.limits.input_bytes_max
        self._channels = len(options.mode)
        self._mean = _per_channel("mean", options.mean, self._channels, 0.0)
        self._std = _per_channel("std", options.std, self._channels, 1.0)
        if not self._std.all() or not np.isfinite(self._std).all():
            raise SetupError("preprocess.options.std: a value is 0 or not finite; give positive numbers")
        self._with_placement = record.config.postprocess.kind == "detection"
        self._check_signature()

    def from_json(self, raw: bytes | msgspec.Raw) -> Payload:
        """See ``Kind``."""
        return self._admit(file_of_json(raw, self._bytes_max), POINTER)

    def from_bytes(self, media_type: str, body: bytes) -> Payload:
        """See ``Kind``."""
        if media_type not in self.media_types:
            raise UnsupportedMediaTypeError(f"this model takes application/json or {_names()}")
        check_size(len(body), self._bytes_max)
        return self._admit(body, None)

    def run(self, payloads: Sequence[Payload]) -> list[Tensors | PenstockError]:
        """See ``Kind``."""
        return [self._run(payload) for payload in payloads]

    def _admit(self, data: bytes, pointer: str | None) -> Payload:
        header = read_header(data)
        if header is None:
            raise InvalidInputError(f"the bytes are not an image of {_names()}", pointer=pointer)
        try:
            check_pixels(header.width, header.height, self._options.pixels_max)
        except InvalidInputError as error:
            error.pointer = pointer
            raise
        return Payload(header.media_type, data)

    def _run(self, payload: Payload) -> Tensors | PenstockError:
        if payload.media_type not in self.media_types:
            return InvalidInputError("the stored input is not an image; submit it again")
        try:
            image = decode(payload.media_type, payload.data, self._options.mode, self._options.pixels_max)
            resized, placement = self._resized(image)
            array = self._array(resized)
        except PenstockError as error:
            return error
        return {self._spec.name: array} | ({PLACEMENT: placement.row()} if self._with_placement else {})

    def _array(self, image: Image.Image) -> NDArray[Any]:
        """Upright 8-bit pixels of the right size as one row of the graph's input."""
        pixels = np.atleast_3d(np.asarray(image))
        array = _laid_out(self._cast(self._scaled(pixels)), self._options.layout)[np.newaxis]
        if not _fits(array.shape, self._spec):
            raise InvalidInputError(
                f"the image is {image.width} x {image.height}; this model takes one size and does not resize"
            )
        return array

    def _resized(self, image: Image.Image) -> tuple[Image.Image, Placement]:
        options = self._options
        if options.resize is None:
            return image, Placement(image.height, image.width)
        resample = Image.Resampling[options.filter.upper()]
        return fitted(image, options.resize, options.fit, resample, options.pad_value)

    def _scaled(self, pixels: NDArray[Any]) -> NDArray[Any]:
        values = pixels.astype(np.float32)
        if self._options.invert:
            values = 255 - values
        scaled: NDArray[Any] = (values * np.float32(self._options.scale) - self._mean) / self._std
        return scaled

    def _cast(self, values: NDArray[Any]) -> NDArray[Any]:
        dtype = DTYPES[self._spec.dtype]
        if dtype.kind in "iu":
            bounds = np.iinfo(dtype)
            values = values.astype(np.float64).round().clip(bounds.min, bounds.max)
        return values.astype(dtype)

    def _check_signature(self) -> None:
        """SetupError where no picture can have the shape of the graph's input."""
        options, spec = self._options, self._spec
        if spec.dtype == "bool":
            raise SetupError("preprocess.kind: image cannot fill an input of bool; use tensor")
        rank = 2 if options.layout == "flat" else 4
        if len(spec.shape) != rank:
            raise SetupError(
                f"preprocess.options.layout: {options.layout} has {rank} axes, the input {len(spec.shape)}"
            )
        if self._with_placement and spec.name == PLACEMENT:
            raise SetupError(f"the graph's input is called {PLACEMENT}, which detection needs; give it another name")
        if options.resize is None and options.fit != "stretch":
            raise SetupError(f"preprocess.options.fit: {options.fit} needs a size; give resize = [height, width]")
        if options.resize is not None:
            shape = _shape(*options.resize, self._channels, options.layout)
            if not _fits((1, *shape), spec):
                raise SetupError(
                    f"preprocess.options: resize, mode and layout give rows of shape {list(shape)}, "
                    f"the graph's input takes {list(spec.shape[1:])}"
                )


def _names() -> str:
    return ", ".join(sorted(MEDIA_TYPES))


def _per_channel(key: str, values: list[float], channels: int, default: float) -> NDArray[Any]:
    if len(values) not in (0, 1, channels):
        raise SetupError(f"preprocess.options.{key}: {len(values)} values; give 1 or {channels}")
    return np.asarray(values or [default], np.float32)


def _laid_out(values: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """Height x width x channels in the layout of the graph, without the row axis."""
    if layout == "flat":
        return values.reshape(-1)
    return np.ascontiguousarray(values.transpose(2, 0, 1)) if layout == "NCHW" else values


def _shape(height: int, width: int, channels: int, layout: Layout) -> tuple[int, ...]:
    """The shape that ``_laid_out`` gives."""
    if layout == "flat":
        return (height * width * channels,)
    return (channels, height, width) if layout == "NCHW" else (height, width, channels)


def _fits(shape: tuple[int, ...], spec: TensorSpec) -> bool:
    return all(dim in (None, got) for dim, got in zip(spec.shape[1:], shape[1:], strict=True))
