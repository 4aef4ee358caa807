"""A stage task, act by act, on a real store with a real tiny model; only the broker is a list."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest.mock import Mock

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from inference.engine import Engine
from inference.session import Halt
from jobs import commands
from jobs.commands import Command, MicroBatch
from jobs.connect import redis_client
from jobs.errors import (
    CancelledError,
    DeviceLostError,
    InternalError,
    InvalidInputError,
    ModelError,
    ModelUnavailableError,
    OutOfMemoryError,
    PenstockError,
    StageTimeoutError,
    StoreUnavailableError,
)
from jobs.estimates import START_P90, Told, verdict
from jobs.payload import TENSORS, Payload
from jobs.records import STAGES, CacheTerms, Job, StageName
from jobs.settings import read_settings
from jobs.store import JobStore
from jobs.tensors import Tensors, pack_item, unpack_item
from tasks import intermediates, stages
from tasks.catalog import Catalog
from tasks.departure import Departure
from tasks.intermediates import Intermediates
from tasks.leases import Leases
from tasks.preprocessed import Preprocessed
from tasks.publisher import Publisher
from tasks.stages import Worker, run_stage
from tests.contract.house import NAMESPACE, House
from tests.servers import RedisServer

T = TypeVar("T")

MODEL = Path(__file__).parents[2] / "models" / "tensor-demo"
INPUT = pack_item({"x": np.linspace(-1, 1, 64, dtype=np.float32)[None, :]})
LEASE_S = 6.0


class Recorder:
    """A publisher that only writes down."""

    def __init__(self) -> None:
        self.published: list[MicroBatch] = []

    def publish(self, microbatches: Sequence[MicroBatch]) -> None:
        self.published += microbatches


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis") / "server").start() as server:
        yield server


class ProcessEndedError(BaseException):
    """The process would have ended; the argument is its exit code."""


@pytest.fixture(scope="module")
def catalog(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    folder = tmp_path_factory.mktemp("models")
    shutil.copytree(MODEL, folder / "tensor-demo")
    with redis_client(server.url, 5.0) as client:
        catalog = Catalog(client, NAMESPACE, folder, ("default",))
        catalog.publish()
        yield catalog


@pytest.fixture(scope="module")
def engine(catalog: Catalog) -> Engine:
    engine = Engine(catalog._folder, 1)
    engine.warm(catalog.served("tensor-demo", 1).record)
    return engine


@pytest.fixture
def house(server: RedisServer) -> Iterator[House]:
    with redis_client(server.url, 5.0) as client:
        client.flushall()
        yield House(client)


@pytest.fixture
def published() -> Recorder:
    return Recorder()


@pytest.fixture
def _private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intermediates, "_TMPFS", tmp_path)
    monkeypatch.setattr(stages, "COMMIT_PAUSE_S", 0.0)


@pytest.fixture
def worker(_private: None, house: House, published: Recorder, catalog: Catalog, engine: Engine) -> Worker:
    leases = Leases(house.store, "me", LEASE_S, lambda: b"{}")
    kept = Intermediates(house.store, read_settings(namespace=NAMESPACE))
    publisher = cast("Publisher", published)
    departure = Departure(house.store, leases, publisher, exit_now=_exit)
    return Worker("me", house.store, leases, publisher, kept, catalog, engine, departure, 120.0)


def _exit(code: int) -> None:
    """In place of the end of the process: no stage goes on after it."""
    raise ProcessEndedError(code)


def _replace(worker: Worker, **parts: Any) -> Worker:
    return Worker(**{**vars(worker), **parts})


@pytest.fixture
def stage_is(monkeypatch: pytest.MonkeyPatch) -> Callable[[StageName, Callable[[list[Any]], Any]], None]:
    """Put another function in the place of a stage's."""

    def put(stage: StageName, function: Callable[[list[Any]], Any]) -> None:
        monkeypatch.setitem(stages._FUNCTIONS, stage, lambda _, __, items, ___: function(items))

    return put


StageIs = Callable[[StageName, Callable[[list[Any]], Any]], None]


def _submit(house: House, *data: bytes, **given: Any) -> tuple[list[str], MicroBatch]:
    """One micro-batch of jobs for the tiny model."""
    given = {"model": "tensor-demo", "media_type": TENSORS, **given}
    (microbatch,) = house.submit(*(house.job(data=each, **given) for each in data or (INPUT,)))
    return house.members(microbatch), microbatch


def _run(worker: Worker, microbatch: MicroBatch, stage: StageName = "preprocess") -> bool:
    return run_stage(worker, stage, microbatch.number, microbatch.sequence)


def _document(house: House, task_id: str) -> Any:
    return json.loads(house.view(task_id).document)


def _raise(error: BaseException) -> Callable[[list[Any]], Any]:
    def function(_: list[Any]) -> Any:
        raise error

    return function


# --- The way of a job that meets no trouble ---


def test_three_stages_make_a_result_from_an_input(worker: Worker, house: House, engine: Engine) -> None:
    (task_id,), microbatch = _submit(house)

    went_on = [_run(worker, microbatch, stage) for stage in STAGES]

    document = _document(house, task_id)
    record = worker.catalog.served("tensor-demo", 1).record
    (expected,) = engine.run(record, [unpack_item(INPUT)])
    assert isinstance(expected, dict)
    assert went_on == [True, True, False]
    assert document["result"] == {name: array[0].tolist() for name, array in expected.items()}
    assert [each["name"] for each in document["stages"]] == list(STAGES)
    assert [each["batch_rows"] for each in document["stages"]] == [0, 1, 0]
    assert document["provenance"]["model_sha256"] == record.digest
    assert document["provenance"]["provider"] == "CPU"


def test_each_of_many_jobs_gets_its_own_result(worker: Worker, house: House, engine: Engine) -> None:
    inputs = [np.full((1, 64), value, np.float32) for value in (0.1, 0.2, 0.3)]
    members, microbatch = _submit(house, *(pack_item({"x": each}) for each in inputs))
    for stage in STAGES:
        _run(worker, microbatch, stage)

    record = worker.catalog.served("tensor-demo", 1).record
    for task_id, each in zip(members, inputs, strict=True):
        (expected,) = engine.run(record, [{"x": each}])
        assert isinstance(expected, dict)
        result = _document(house, task_id)["result"]
        for name, array in expected.items():
            np.testing.assert_allclose(result[name], array[0], rtol=1e-5)


class Asking:
    """A postprocessing that reads the input ``x`` beside the outputs, and tells what it was given."""

    passes = frozenset(("x",))

    def run(self, outputs: Sequence[Tensors]) -> list[Any]:
        return [{name: array[:, :1].tolist() for name, array in item.items()} for item in outputs]


def test_inputs_that_postprocessing_asks_for_come_with_the_outputs_of_their_own_job(
    worker: Worker, house: House, engine: Engine
) -> None:
    served = dataclasses.replace(worker.catalog.served("tensor-demo", 1), postprocess=Asking())
    worker = _replace(worker, catalog=Mock(served=lambda *_: served))
    inputs = [np.full((rows, 64), value, np.float32) for rows, value in ((1, 0.5), (3, 0.25), (1, 2.0))]
    members, microbatch = _submit(house, *(pack_item({"x": each}) for each in inputs), b"no tensor")
    for stage in STAGES:
        _run(worker, microbatch, stage)

    for task_id, each in zip(members, inputs, strict=False):
        (expected,) = engine.run(served.record, [{"x": each}])
        assert isinstance(expected, dict)
        result = _document(house, task_id)["result"]
        assert result.pop("input:x") == each[:, :1].tolist()
        np.testing.assert_allclose(result["y"], expected["y"][:, :1], rtol=1e-5)
    assert house.view(members[-1]).state == "failed"


def test_an_item_that_the_model_failed_on_is_handed_on_as_its_error(worker: Worker) -> None:
    served = dataclasses.replace(worker.catalog.served("tensor-demo", 1), postprocess=Asking())
    good, bad = {"x": np.ones((1, 64), np.float32)}, {"x": np.ones((1, 63), np.float32)}

    first, second = stages._infer(worker, served, [good, bad], Halt())

    assert first.keys() == {"y", "input:x"}
    assert isinstance(second, ModelError)


def test_jobs_that_joined_end_with_the_one_that_ran_and_their_companions_go_on(worker: Worker, house: House) -> None:
    """Of a bad input that several ask for at once, beside a good one: the commit ends jobs that it never carried."""
    terms = CacheTerms(b"k" * 32, 60_000, refresh=False)
    bad = [house.job(data=b"no tensors", model="tensor-demo", media_type=TENSORS) for _ in range(3)]
    good = house.job(data=INPUT, model="tensor-demo", media_type=TENSORS)
    (microbatch,) = house.submit(*(msgspec.structs.replace(job, cache=terms) for job in bad), good)
    assert house.members(microbatch) == [bad[0].task_id, good.task_id]

    went_on = [_run(worker, microbatch, stage) for stage in STAGES]

    assert went_on == [True, True, False]
    assert [house.view(job.task_id).state for job in (*bad, good)] == ["failed"] * 3 + ["completed"]


def test_the_last_commit_publishes_what_the_window_now_has_room_for(
    worker: Worker, house: House, published: Recorder
) -> None:
    first, *_ = house.fill_window("tensor-demo")
    job = house.job(model="tensor-demo", media_type=TENSORS, data=INPUT)
    house.submit(job)

    _run(worker, first)  # its input is no tensor, so that it fails here and leaves the window

    assert [house.members(each) for each in published.published] == [[job.task_id]]


def _told(house: House, told: Told, took_ms: int, data: bytes = INPUT) -> Job:
    """A job for the tiny model that was let in so long ago with an estimate."""
    job = house.job(model="tensor-demo", media_type=TENSORS, data=data)
    queued_at_ms = job.head.queued_at_ms - took_ms
    return replace(job, head=replace(job.head, queued_at_ms=queued_at_ms, estimate=told))


def test_the_jobs_that_completed_tell_the_store_how_their_estimates_held(worker: Worker, house: House) -> None:
    exceeded, held = Told(1, 100, 100, 200), Told(3, 3_600_000, 3_600_000, 7_200_000)
    fails = _told(house, Told(0, 10, 10, 20), 60_000, b"not a tensor")
    (microbatch,) = house.submit(_told(house, exceeded, 60_000), _told(house, held, 60_000), fails)

    for stage in STAGES:
        _run(worker, microbatch, stage)

    pace = house.look().lines[microbatch.line].pace
    assert pace["f50:1"] > 0 > pace["f50:3"]
    assert pace["f90:1"] > START_P90 > pace["f90:3"]
    assert {each for each in pace if each.startswith("f")} == {"fill", "f50:1", "f90:1", "f50:3", "f90:3"}


def test_of_a_large_microbatch_as_many_estimates_are_judged_as_tell_it(
    worker: Worker, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []

    def note(held: list[tuple[Told, int]]) -> str:
        judged.append(len(held))
        return verdict(held)

    monkeypatch.setattr(stages, "verdict", note)
    jobs = [_told(house, Told(1, 100, 100, 200), 60_000) for _ in range(40)]
    (microbatch,) = house.submit(*jobs)

    for stage in STAGES:
        _run(worker, microbatch, stage)

    assert judged == [0, 0, 14]  # every third


@pytest.mark.parametrize("shared", [True, False])
def test_intermediates_are_dropped_once_they_were_used(
    worker: Worker, house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: Any
) -> None:
    monkeypatch.setattr(intermediates, "INLINE_BYTES_MAX", 0)
    worker.intermediates.shared = shared
    (task_id,), microbatch = _submit(house)
    for stage in STAGES:
        _run(worker, microbatch, stage)

    assert house.view(task_id).state == "completed"
    assert house.client.keys(house.key("intermediate:*")) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# --- Messages that are dropped ---


@pytest.fixture
def never(stage_is: StageIs) -> None:
    """No stage function may run."""
    for stage in STAGES:
        stage_is(stage, _raise(KeyboardInterrupt()))


def _dropped(worker: Worker, house: House, microbatch: MicroBatch, stage: StageName = "preprocess") -> bool:
    """Whether a message is dropped without a trace in the micro-batch's record."""
    key = house.key(f"microbatch:{microbatch.number}")
    before = house.client.hgetall(key)
    return not _run(worker, microbatch, stage) and house.client.hgetall(key) == before


@pytest.mark.usefixtures("never")
def test_what_another_holds_is_dropped(worker: Worker, house: House) -> None:
    _, microbatch = _submit(house)
    house.take(microbatch, "another")

    assert _dropped(worker, house, microbatch)


@pytest.mark.usefixtures("never")
def test_what_was_published_again_since_is_dropped(worker: Worker, house: House) -> None:
    _, microbatch = _submit(house)
    house.look_is_due(microbatch.number)
    house.store.run(commands.republish(house.sweep().doubtful))

    assert _dropped(worker, house, microbatch)


@pytest.mark.usefixtures("never")
def test_what_has_passed_this_stage_is_dropped(worker: Worker, house: House) -> None:
    _, microbatch = _submit(house)
    house.hand_on(house.take(microbatch))

    assert _dropped(worker, house, microbatch)


@pytest.mark.usefixtures("never")
def test_what_has_ended_is_dropped(worker: Worker, house: House) -> None:
    _, microbatch = _submit(house)
    house.finish(microbatch)

    assert _dropped(worker, house, microbatch, "postprocess")


@pytest.mark.usefixtures("never")
def test_a_micro_batch_whose_jobs_are_all_late_is_not_run(worker: Worker, house: House) -> None:
    members, microbatch = _submit(house, INPUT, INPUT)
    for task_id in members:
        house.deadline_passes(task_id)

    assert not _run(worker, microbatch)
    assert {house.view(task_id).state for task_id in members} == {"expired"}


@pytest.mark.usefixtures("never")
def test_a_redelivery_of_what_a_dead_worker_held_is_left_to_the_sweeper(worker: Worker, house: House) -> None:
    members, microbatch = _submit(house)
    house.take(microbatch, "dead")
    house.lease_runs_out(microbatch.number)

    assert not _run(worker, microbatch)
    assert [house.members(each) for each in house.sweep().publish] == [members]


# --- One bad item among good ones ---


def test_one_bad_input_among_good_ones_fails_alone(worker: Worker, house: House) -> None:
    (good, bad, other), microbatch = _submit(house, INPUT, b"no tensor", INPUT)

    went_on = [_run(worker, microbatch, stage) for stage in STAGES]

    assert went_on == [True, True, False]
    assert [house.view(each).state for each in (good, bad, other)] == ["completed", "failed", "completed"]
    assert _document(house, bad)["error"]["code"] == "invalid-input"
    assert _document(house, bad)["error"]["stage"] == "preprocess"
    assert _document(house, good)["result"] == _document(house, other)["result"]


def test_a_micro_batch_of_bad_inputs_ends_its_chain(worker: Worker, house: House) -> None:
    members, microbatch = _submit(house, b"no", b"tensors")

    assert not _run(worker, microbatch)
    assert {house.view(each).state for each in members} == {"failed"}


def test_one_bad_output_fails_at_the_last_stage_alone(worker: Worker, house: House, stage_is: StageIs) -> None:
    (good, bad), microbatch = _submit(house, INPUT, INPUT)
    stage_is("postprocess", lambda _: [{"y": 1}, InvalidInputError("not this one")])
    for stage in STAGES:
        _run(worker, microbatch, stage)

    assert _document(house, good)["result"] == {"y": 1}
    assert _document(house, bad)["error"]["stage"] == "postprocess"


# --- A stage that fails as a whole ---


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "met",
    [
        (MemoryError(), OutOfMemoryError),
        (SystemExit(3), InternalError),
        (RuntimeError("secret"), InternalError),
        (RecursionError(), InternalError),
        (ModelUnavailableError("not here"), ModelUnavailableError),
    ],
)
def test_whatever_a_stage_raises_is_an_outcome_of_each_job(
    worker: Worker,
    house: House,
    stage_is: StageIs,
    stage: StageName,
    met: tuple[BaseException, type[PenstockError]],
) -> None:
    error, outcome = met
    members, microbatch = _submit(house, INPUT, INPUT, attempts_max=1)
    for before in STAGES[: STAGES.index(stage)]:
        _run(worker, microbatch, before)
    stage_is(stage, _raise(error))

    assert not _run(worker, microbatch, stage)

    for task_id in members:
        document = _document(house, task_id)
        assert (document["status"], document["error"]["code"]) == ("failed", outcome.code)
        assert "secret" not in document["error"]["message"]


def test_a_transient_failure_of_a_stage_is_tried_again(worker: Worker, house: House, stage_is: StageIs) -> None:
    members, microbatch = _submit(house, INPUT, INPUT)
    stage_is("preprocess", _raise(MemoryError()))

    assert not _run(worker, microbatch)

    assert [(house.view(each).state, house.view(each).attempt) for each in members] == [("queued", 2)] * 2
    assert house.client.zcard(house.key("retries")) == 2


@pytest.mark.parametrize("results", [[], [{"y": 1}], [{"y": 1}] * 3])
def test_a_stage_that_gives_another_number_of_results_gives_nobody_another_s(
    worker: Worker, house: House, stage_is: StageIs, results: list[Any]
) -> None:
    members, microbatch = _submit(house, INPUT, INPUT, attempts_max=1)
    stage_is("preprocess", lambda _: results)

    assert not _run(worker, microbatch)
    assert [_document(house, each)["error"]["code"] for each in members] == ["internal"] * 2


def test_a_model_that_this_worker_does_not_have_is_tried_again(worker: Worker, house: House) -> None:
    (task_id,), microbatch = _submit(house, model="unknown")

    assert not _run(worker, microbatch)
    assert house.view(task_id).attempt == 2


def test_an_interrupt_ends_the_worker_and_leaves_the_lease_to_run_out(
    worker: Worker, house: House, stage_is: StageIs
) -> None:
    (task_id,), microbatch = _submit(house)
    stage_is("preprocess", _raise(KeyboardInterrupt()))

    with pytest.raises(KeyboardInterrupt):
        _run(worker, microbatch)

    assert house.view(task_id).state == "processing"
    assert worker.leases._held == {}


# --- Leases during a run ---


def test_the_lease_is_held_while_the_stage_runs(worker: Worker, house: House, stage_is: StageIs) -> None:
    _, microbatch = _submit(house)
    held: list[list[tuple[str, int]]] = []

    def look(payloads: list[Any]) -> Any:
        held.append([(each.taken.number, each.taken.epoch) for each in worker.leases.held()])
        return [unpack_item(each.data) for each in payloads]

    stage_is("preprocess", look)
    _run(worker, microbatch)

    assert held == [[(microbatch.number, 1)]]
    assert worker.leases._held == {}


def test_a_lease_that_was_lost_during_the_run_writes_nothing(
    worker: Worker, house: House, published: Recorder, stage_is: StageIs
) -> None:
    (task_id,), microbatch = _submit(house)

    def slow(payloads: list[Any]) -> Any:
        house.lease_runs_out(microbatch.number)
        assert house.sweep().recovered == 1
        return [unpack_item(each.data) for each in payloads]

    stage_is("preprocess", slow)
    went_on = _run(worker, microbatch)

    assert (went_on, published.published) == (False, [])
    assert (house.view(task_id).state, house.view(task_id).attempt) == ("queued", 1)
    assert house.client.exists(house.key(f"microbatch:{microbatch.number}")) == 0


def test_a_job_that_expires_during_the_run_stays_expired(worker: Worker, house: House, stage_is: StageIs) -> None:
    (late, other), microbatch = _submit(house, INPUT, INPUT)
    _run(worker, microbatch)
    _run(worker, microbatch, "inference")

    def slow(outputs: list[Any]) -> Any:
        house.deadline_passes(late)
        house.sweep()
        return [{"y": 1} for _ in outputs]

    stage_is("postprocess", slow)
    _run(worker, microbatch, "postprocess")

    assert [house.view(each).state for each in (late, other)] == ["expired", "completed"]


def test_a_session_is_loaded_under_a_longer_lease(worker: Worker, house: House, catalog: Catalog) -> None:
    _, microbatch = _submit(house)
    _run(worker, microbatch)
    key = house.key(f"microbatch:{microbatch.number}")
    left_s: list[float] = []

    class Cold(Engine):
        def warm(self, record: Any) -> None:
            left_s.append((int(house.client.hget(key, "lease")) - house.now_ms) / 1000)
            super().warm(record)

    cold = _replace(worker, engine=Cold(catalog._folder, 1))

    assert _run(cold, microbatch, "inference")
    assert LEASE_S < left_s[0] <= 120


# --- The store and the intermediates fail ---


def test_a_missing_intermediate_starts_the_micro_batch_again_at_preprocess(
    worker: Worker, house: House, published: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intermediates, "INLINE_BYTES_MAX", 0)
    (task_id,), microbatch = _submit(house)
    _run(worker, microbatch)
    house.client.delete(*house.client.keys(house.key("intermediate:*")))

    assert not _run(worker, microbatch, "inference")

    (again,) = published.published
    assert (again.number, again.stage) == (microbatch.number, "preprocess")
    assert [_run(worker, again, stage) for stage in STAGES] == [True, True, False]
    assert (_document(house, task_id)["status"], _document(house, task_id)["attempt"]) == ("completed", 1)


class Away(JobStore):
    """A store that does not answer the first commits; ``written`` tells whether it wrote them all the same."""

    def __init__(self, store: JobStore, times: int, *, written: bool) -> None:
        super().__init__(store.client, NAMESPACE, store._flow)
        self.left, self.written = times, written

    def run(self, command: Command[T]) -> T:
        if command.script == "commit" and self.left:
            self.left -= 1
            if self.written:
                super().run(command)
            raise StoreUnavailableError("away")
        return super().run(command)


def test_a_commit_is_tried_again_while_the_store_is_away(worker: Worker, house: House) -> None:
    (task_id,), microbatch = _submit(house)

    assert _run(_replace(worker, store=Away(house.store, 3, written=False)), microbatch)
    assert house.take(microbatch, stage="inference").members[0].task_id == task_id


def test_a_commit_whose_answer_was_lost_is_not_done_twice(worker: Worker, house: House) -> None:
    (task_id,), microbatch = _submit(house)
    for stage in STAGES[:2]:
        _run(worker, microbatch, stage)

    assert not _run(_replace(worker, store=Away(house.store, 1, written=True)), microbatch, "postprocess")
    assert _document(house, task_id)["status"] == "completed"


def test_a_commit_is_given_up_when_the_lease_must_be_gone(
    worker: Worker, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task_id,), microbatch = _submit(house)
    monkeypatch.setattr(worker.leases, "lease_ms", -1)
    away = _replace(worker, store=Away(house.store, 10**9, written=False))

    assert not _run(away, microbatch)

    assert house.view(task_id).state == "processing"  # the sweeper gives it to another


# --- Stages that are ended ---


def _halting(worker: Worker, error: PenstockError) -> Callable[[list[Any]], Any]:
    """A stage function during which the run is ended, as the thread of the leases does."""

    def stage(items: list[Any]) -> list[Any]:
        for held in worker.leases.held():
            held.halt.now(error)
        return [error] * len(items)

    return stage


def test_jobs_whose_stage_took_too_long_together_come_back_as_suspects(
    worker: Worker, house: House, stage_is: StageIs
) -> None:
    members, microbatch = _submit(house, INPUT, INPUT)
    stage_is("preprocess", _halting(worker, StageTimeoutError("too long")))

    assert not _run(worker, microbatch)

    assert house.client.zcard(house.key("suspects:default")) == 1  # the other is in the window already
    assert [house.view(each).attempt for each in members] == [1, 1]


def test_a_job_whose_stage_took_too_long_alone_is_tried_again(
    worker: Worker, house: House, stage_is: StageIs
) -> None:
    (task_id,), microbatch = _submit(house)
    stage_is("preprocess", _halting(worker, StageTimeoutError("too long")))

    _run(worker, microbatch)

    assert (house.view(task_id).state, house.view(task_id).attempt) == ("queued", 2)


def test_a_job_cancelled_during_its_run_is_cancelled(worker: Worker, house: House, stage_is: StageIs) -> None:
    (task_id,), microbatch = _submit(house)

    def cancelled(items: list[Any]) -> Any:
        house.store.run(commands.cancel(task_id))
        return _halting(worker, CancelledError("cancelled"))(items)

    stage_is("preprocess", cancelled)
    _run(worker, microbatch)

    assert house.view(task_id).state == "cancelled"


def test_a_lost_device_ends_the_process_and_gives_its_jobs_back(
    worker: Worker, house: House, stage_is: StageIs
) -> None:
    members, microbatch = _submit(house, INPUT, INPUT)

    def lost(_: list[Any]) -> Any:
        raise DeviceLostError

    stage_is("preprocess", lost)
    with pytest.raises(ProcessEndedError) as ended:
        _run(worker, microbatch)

    assert ended.value.args == (75,)
    assert [house.view(each).state for each in members] == ["queued", "queued"]
    assert [house.view(each).attempt for each in members] == [1, 1]


def test_a_fault_outside_the_stage_function_costs_neither_slot_nor_job(
    worker: Worker, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task_id,), microbatch = _submit(house)
    monkeypatch.setattr(stages, "_commit", Mock(side_effect=SystemExit))

    assert not _run(worker, microbatch)

    assert house.view(task_id).state == "queued"


# --- The preprocessing cache ---


def test_an_input_that_was_preprocessed_before_is_answered_alike_and_not_run_again(
    worker: Worker, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = worker.catalog.served("tensor-demo", 1).preprocess
    run, ran = kind.run, list[int]()

    def counted(payloads: Sequence[Payload]) -> Any:
        ran.append(len(payloads))
        return run(payloads)

    monkeypatch.setattr(kind, "run", counted)
    caching = _replace(worker, preprocessed=Preprocessed(1_000_000))
    other = pack_item({"x": np.ones((1, 64), np.float32)})

    results = []
    for inputs in ((INPUT, INPUT), (other, INPUT)):
        members, microbatch = _submit(house, *inputs)
        assert [_run(caching, microbatch, stage) for stage in STAGES] == [True, True, False]
        results += [_document(house, task_id)["result"] for task_id in members]

    assert ran == [1, 1]
    assert results[0] == results[1] == results[3] != results[2]
