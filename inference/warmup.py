"""What a session runs before it serves: zeros at every size of batch, so that kernels and memory are ready."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jobs.errors import SetupError
from jobs.models import InferenceConfig, Signature, TensorSpec
from jobs.tensors import Tensors


def batches(signature: Signature, config: InferenceConfig) -> Iterator[tuple[int, Tensors]]:
    """Numbers of rows, each with zeros: the buckets, else 1 and the most rows; or what the graph insists on.

    SetupError where ``inference.warm_shapes`` contradicts the graph.
    """
    shapes = _shapes(signature, config)
    fixed = signature.inputs[0].shape[0]
    for rows in (fixed,) if fixed else config.buckets or sorted({1, config.batch_max}):
        yield rows, {spec.name: np.zeros((rows, *shapes[spec.name]), spec.dtype) for spec in signature.inputs}


def is_guess(signature: Signature, config: InferenceConfig) -> bool:
    """Whether the sizes of some input are neither fixed nor given, so that they are guessed to be 1."""
    return any(None in spec.shape[1:] and spec.name not in config.warm_shapes for spec in signature.inputs)


def _shapes(signature: Signature, config: InferenceConfig) -> dict[str, tuple[int, ...]]:
    """The dimensions of each input after its rows."""
    inputs = {spec.name: spec for spec in signature.inputs}
    for name, dims in config.warm_shapes.items():
        if name not in inputs:
            known = ", ".join(inputs)
            raise SetupError(f"inference.warm_shapes: the graph has no input {name!r}; it has {known}")
        _check(inputs[name], dims)
    return {name: config.warm_shapes.get(name) or _guess(spec) for name, spec in inputs.items()}


def _guess(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(dim or 1 for dim in spec.shape[1:])


def _check(spec: TensorSpec, dims: tuple[int, ...]) -> None:
    wanted = spec.shape[1:]
    if len(dims) != len(wanted) or any(fixed not in (None, given) for fixed, given in zip(wanted, dims, strict=True)):
        shape = ", ".join("any" if dim is None else str(dim) for dim in wanted)
        raise SetupError(f"inference.warm_shapes.{spec.name}: {list(dims)} is not [{shape}], the row axis left out")
