"""Many jobs, few calls: sessions by model version, and batches that no bad item can sink.

Items of one make are joined into calls of at most ``batch_max`` rows. A call that fails is halved until the
guilty item stands alone; only that one gets the error. An item larger than ``batch_max`` rows runs in slices.

Tensors whose names begin with ``ASIDE`` go past the graph and come out beside its outputs, unless the graph has an
input of that name.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from inference.customops import libraries
from inference.files import digests
from inference.graphcache import GraphCache
from inference.repository import GRAPH
from inference.session import Halt, Session, is_fixed
from jobs.errors import ModelError, ModelUnavailableError, OutOfMemoryError, PenstockError, SetupError
from jobs.models import InferenceConfig, ModelRecord
from jobs.tensors import ASIDE, Tensors, join, make_of, rows_of, split

log = logging.getLogger(__name__)

Outcome: TypeAlias = Tensors | PenstockError


@dataclasses.dataclass(slots=True)
class _Place:
    """Where the session of a version with these very files lies; the lock is held while it is opened."""

    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    session: Session | None = None
    inference: InferenceConfig | None = None
    """How it was opened."""


class Engine:
    """Runs every model of one worker process; safe to use from many threads.

    ``intra_op_threads`` holds for models that do not set their own. Optimised graphs are kept in ``graphs``;
    ``custom_ops``: whether models may bring libraries.
    """

    def __init__(
        self,
        models: Path,
        intra_op_threads: int,
        graphs: GraphCache | None = None,
        *,
        custom_ops: bool = False,
    ) -> None:
        self._models = models
        self._custom_ops = custom_ops
        self._threads = intra_op_threads
        self._graphs = graphs
        self._places: defaultdict[tuple[str, int, str], _Place] = defaultdict(_Place)
        self._lock = threading.Lock()

    def loaded(self, record: ModelRecord) -> bool:
        """Whether the version's session is open; if not, the next call opens it, which takes a while."""
        place = self._place(record)
        return place.session is not None and place.inference == record.config.inference

    def warm(self, record: ModelRecord) -> None:
        """Open and warm the version's session, if it is not; ModelUnavailableError where that fails."""
        self._session(record)

    def drop(self, record: ModelRecord) -> None:
        """Keep the version's session no longer; runs under way end as they would."""
        with self._lock:
            self._places.pop((record.name, record.version, record.files_digest), None)

    def provider(self, record: ModelRecord) -> str:
        """Where the version runs, ``CPU`` or ``CUDA``; opens it if need be."""
        return self._session(record).provider

    def run(self, record: ModelRecord, items: Sequence[Tensors], halt: Halt | None = None) -> list[Outcome]:
        """Run the items, row axis first; gives the outputs of each, or its own error, in order.

        ``halt`` ends it early from another thread. DeviceLostError where this process can run nothing any more.
        """
        try:
            session = self._session(record)
        except ModelUnavailableError as error:
            return [error for _ in items]
        rows_max = session.fixed_rows or record.config.inference.batch_max
        return _Run(session, rows_max, halt or Halt()).all(items)

    def _place(self, record: ModelRecord) -> _Place:
        with self._lock:
            return self._places[record.name, record.version, record.files_digest]

    def _session(self, record: ModelRecord) -> Session:
        place = self._place(record)
        session = place.session
        if session is not None and place.inference == record.config.inference:
            return session
        with place.lock:
            if place.session is None or place.inference != record.config.inference:
                place.session = self._open(record)
                place.inference = record.config.inference
            return place.session

    def _open(self, record: ModelRecord) -> Session:
        folder = self._models / record.name / str(record.version)
        called = f"version {record.version} of {record.name}"
        self._verify(folder, record, called)
        try:
            config = record.config.inference
            session = Session.open(
                folder / GRAPH,
                threads=config.intra_op_threads or self._threads,
                mem_pattern=is_fixed(record.signature),
                config=config,
                slot=None if self._graphs is None else self._graphs.slot(folder / GRAPH, record.digest),
                custom_ops=libraries(record.config, folder, self._models, allowed=self._custom_ops),
            )
            session.warm(config)
        except SetupError as error:
            raise ModelUnavailableError(f"{called}: {error}") from error  # a start tells it from what may pass
        return session

    def _verify(self, folder: Path, record: ModelRecord, called: str) -> None:
        """ModelUnavailableError where a file differs from what the trial load saw."""
        try:
            found = digests(folder, self._models)
        except SetupError as error:
            log.error("files of a model cannot be verified: %s", error)  # noqa: TRY400 - the text says it all
            raise ModelUnavailableError(f"the files of {called} cannot be read by this worker") from None
        if found != record.files:
            names = [name for name, _ in found.items() ^ record.files.items()]
            log.error("files of a model are not those that were verified: %s in %s", sorted({*names}), folder)
            raise ModelUnavailableError(f"the files of {called} are not those that were verified")


class _Run:
    """One ``Engine.run``: cuts items into calls of at most ``rows_max`` rows and settles each."""

    def __init__(self, session: Session, rows_max: int, halt: Halt) -> None:
        self._session = session
        self._inputs = {spec.name for spec in session.signature.inputs}
        self._rows_max = rows_max
        self._halt = halt

    def all(self, items: Sequence[Tensors]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        for indices in self._calls(items):
            outcomes.update(zip(indices, self._settle([items[index] for index in indices]), strict=True))
        return [outcomes[index] for index in range(len(items))]

    def _calls(self, items: Sequence[Tensors]) -> Iterator[list[int]]:
        """Cut into calls (indices) of one make and ``rows_max`` rows, unless one item has more."""
        makes: defaultdict[object, list[int]] = defaultdict(list)
        for index, item in enumerate(items):
            makes[make_of(item)].append(index)
        for indices in makes.values():
            call: list[int] = []
            rows = 0
            for index in indices:
                count = rows_of(items[index])
                if call and rows + count > self._rows_max:
                    yield call
                    call, rows = [], 0
                call.append(index)
                rows += count
            yield call

    def _settle(self, items: list[Tensors]) -> list[Outcome]:
        """Run items of one make together if that works, else each half by itself."""
        try:
            return [*split(self._outputs(join(items)), [rows_of(item) for item in items])]
        except PenstockError as error:
            if self._halt.error:
                return [error] * len(items)
            if len(items) == 1:
                return [self._alone(items[0], error)]
        middle = len(items) // 2
        return self._settle(items[:middle]) + self._settle(items[middle:])

    def _alone(self, item: Tensors, error: PenstockError) -> Outcome:
        """Settle an item that failed alone: where memory was short, its rows are tried in slices."""
        rows = rows_of(item)
        while isinstance(error, OutOfMemoryError) and rows > 1 and self._session.fixed_rows is None:
            rows = min(rows, self._rows_max) // 2 or 1
            try:
                return self._sliced(item, rows)
            except PenstockError as again:
                error = again
        return error

    def _outputs(self, feeds: Tensors) -> Tensors:
        """Run any number of rows: more than ``rows_max`` in slices."""
        if rows_of(feeds) > self._rows_max:
            return self._sliced(feeds, self._rows_max)
        return self._call(feeds)

    def _sliced(self, feeds: Tensors, size: int) -> Tensors:
        starts = range(0, rows_of(feeds), size)
        slices = [{name: array[at : at + size] for name, array in feeds.items()} for at in starts]
        outputs = [self._call(each) for each in slices]
        if len({make_of(each) for each in outputs}) > 1:
            raise ModelError("the model gave outputs of different shapes for the rows of one input")
        return join(outputs)

    def _call(self, feeds: Tensors) -> Tensors:
        """One call of the session, and what goes past it."""
        aside = {name: array for name, array in feeds.items() if name.startswith(ASIDE) and name not in self._inputs}
        if not aside:
            return self._fed(feeds)
        return aside | self._fed({name: array for name, array in feeds.items() if name not in aside})

    def _fed(self, feeds: Tensors) -> Tensors:
        """Run the session; a graph with a fixed number of rows is filled up with zeros."""
        rows, fixed = rows_of(feeds), self._session.fixed_rows
        if fixed is None or fixed == rows:
            return self._session.run(feeds, self._halt)
        filled = {name: _filled(array, fixed) for name, array in feeds.items()}
        outputs = self._session.run(filled, self._halt)
        return {name: array[:rows] for name, array in outputs.items()}


def _filled(array: NDArray[Any], rows: int) -> NDArray[Any]:
    return np.concatenate([array, np.zeros((rows - len(array), *array.shape[1:]), array.dtype)])
