"""Results of preprocessing, kept in this worker by input: the same input of the same version is not run again.

Bounded in bytes, the least recently used goes first; errors are not kept. What is handed out is read-only, as it may
be handed out again. Not promised: that two workers, or two threads at once, do not both run an input.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.payload import Payload
from jobs.tensors import Tensors
from preprocess.kinds import Kind
from tasks import metrics

ENTRY_BYTES = 1024
"""What an entry takes besides the numbers of its arrays (measured: 0.7 kB with one array)."""

_Key: TypeAlias = tuple[weakref.ref[Kind], str, bytes]
"""The kind (made once for a version, its files and options), the media type, the input's SHA-256.

A dead reference equals no other, so a kind that was replaced answers nothing.
"""


class Stored(Payload, array_like=True, frozen=True):
    """The payload of a job, with the SHA-256 of its data as the job's head has it."""

    sha256: bytes


class Preprocessed:
    """A cache before the ``run`` of every kind; safe to share between threads. ``bytes_max`` 0: none."""

    def __init__(self, bytes_max: int = 0) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._kept: OrderedDict[_Key, Tensors] = OrderedDict()
        self._lock = threading.Lock()

    def run(self, kind: Kind, payloads: Sequence[Stored]) -> Sequence[Any]:
        """What ``kind.run`` gives, in order; it runs those that are not known, equal ones once."""
        if not self._bytes_max:
            return kind.run(payloads)
        keys: list[_Key] = [(weakref.ref(kind), each.media_type, each.sha256) for each in payloads]
        found: dict[_Key, Any] = self._find(keys)
        open_ = {key: each for key, each in zip(keys, payloads, strict=True) if key not in found}
        results = kind.run(list(open_.values())) if open_ else []
        for key, result in zip(open_, results, strict=True):
            found[key] = self._keep(key, result) if isinstance(result, dict) else result
        metrics.preprocess_cache_total.labels("miss").inc(len(open_))
        metrics.preprocess_cache_total.labels("hit").inc(len(keys) - len(open_))
        return [found[key] for key in keys]

    def _find(self, keys: Iterable[_Key]) -> dict[_Key, Any]:
        with self._lock:
            found = {key: self._kept[key] for key in keys if key in self._kept}
            for key in found:
                self._kept.move_to_end(key)
        return found

    def _keep(self, key: _Key, made: Tensors) -> Tensors:
        """Keep a copy where there is room for it; what is to be handed out."""
        if _size(made) > self._bytes_max:
            return made
        kept = {name: _immutable(array) for name, array in made.items()}
        with self._lock:
            self._bytes += _size(kept) - _size(self._kept.pop(key, None))
            self._kept[key] = kept
            while self._bytes > self._bytes_max:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
        return kept


def _size(item: Mapping[str, NDArray[Any]] | None) -> int:
    return 0 if item is None else ENTRY_BYTES + sum(array.nbytes for array in item.values())


def _immutable(array: NDArray[Any]) -> NDArray[Any]:
    """A copy on bytes, which nobody can make writable again; a view would keep the whole of what it looks at."""
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)
