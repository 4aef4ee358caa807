"""One stage of one micro-batch, in five acts: take the lease, fetch, run, commit, hand on.

Every way out says what becomes of the message. Celery acknowledges it in each case: what is not done stands in the
store, where the sweeper finds it. The stage functions themselves know arrays and nothing of queues.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from inference.engine import Engine
from inference.session import Halt
from jobs import commands
from jobs.commands import Committed, Ended, Handover, Member, Outcome, Taken
from jobs.errors import (
    EXIT_REPLACE,
    DeviceLostError,
    InternalError,
    OutOfMemoryError,
    PenstockError,
    StageTimeoutError,
    StoreUnavailableError,
)
from jobs.estimates import Told, verdict
from jobs.faults import faults
from jobs.models import ModelRecord
from jobs.records import STAGES, StageName, StageRun
from jobs.states import Event
from jobs.store import JobStore
from jobs.tensors import Tensors, pack_items, passed, rows_of, unpack_items
from tasks import metrics
from tasks.catalog import Catalog, Served
from tasks.departure import Departure
from tasks.documents import Journey, completed, decode_journey, encode_journey, refused
from tasks.intermediates import Intermediates
from tasks.leases import Held, Leases
from tasks.preprocessed import Preprocessed, Stored
from tasks.publisher import Publisher

log = logging.getLogger(__name__)

Results: TypeAlias = Sequence[Any]
"""One for each member: what its stage made, or the PenstockError that it met."""

COMMIT_PAUSE_S = 0.2
ESTIMATES_MAX = 16
"""Jobs of a micro-batch whose estimates are judged."""


@dataclass(frozen=True)
class Worker:
    """What a stage needs of its process; made once by ``tasks.worker``."""

    name: str
    store: JobStore
    leases: Leases
    publisher: Publisher
    intermediates: Intermediates
    catalog: Catalog
    engine: Engine
    departure: Departure
    load_budget_s: float
    preprocessed: Preprocessed = field(default_factory=Preprocessed)


def run_stage(worker: Worker, stage: StageName, number: str, sequence: str) -> bool:
    """Run ``stage`` of micro-batch ``number``; whether the chain goes on to the next stage."""
    leases = worker.leases
    worker.departure.hold_back()
    if faults:
        faults.reach(f"{stage}.received")
    taken = worker.store.run(commands.take(number, stage, sequence, leases.holder, leases.lease_ms))
    worker.publisher.publish(taken.publish)
    _count_ended(taken.ended)
    if taken.verdict != "taken":
        metrics.dropped_total.labels(taken.verdict).inc()
        return False

    if faults:
        faults.reach(f"{stage}.taken")
    with leases.holding(taken) as held:
        try:
            return _run_held(worker, held)
        except StoreUnavailableError:  # it was away too long to commit: back, rather than let the lease run out
            _give_back(worker, taken, "unharmed")
        except DeviceLostError:
            worker.departure.now("the device is lost to this process", EXIT_REPLACE, guilty=taken)
        except (Exception, SystemExit):  # a fault of ours outside the stage function; SystemExit would wedge the slot
            log.exception("stage failed", extra={"stage": stage, "microbatch": number})
            _give_back(worker, taken, "failed")
    return False


def _run_held(worker: Worker, held: Held) -> bool:
    """Fetch, run, commit, hand on; whether the chain goes on."""
    taken = held.taken
    items = _fetch(worker, taken)
    if items is None:  # the intermediate is gone: start again at preprocess
        _give_back(worker, taken, "unharmed")
        return False
    work = _run(worker, held, items)
    if isinstance(held.halt.error, StageTimeoutError) and len(taken.members) > 1:  # which of them hangs? each alone
        _give_back(worker, taken, "failed", StageTimeoutError.code)
        return False
    if faults:
        faults.reach(f"{taken.stage}.ran")
    committed = _commit(worker, taken, work)

    if faults:
        faults.reach(f"{taken.stage}.committed")
    worker.publisher.publish(committed.publish)
    if committed.held:
        worker.intermediates.drop(taken.reference)
        _count(taken, work, committed)
    return committed.goes_on


def _give_back(worker: Worker, taken: Taken, how: Literal["unharmed", "failed"], code: str = "internal") -> None:
    """End our lease early; where even that cannot be said, it runs out."""
    with suppress(StoreUnavailableError):
        released = worker.store.run(commands.release(taken, how, code))
        worker.publisher.publish(released.publish)
        _count_ended(released.ended)


@dataclass(frozen=True)
class _Work:
    """What a stage made of a micro-batch: who goes on, with which packed tensors, and who leaves here."""

    going_on: list[str]
    packed: bytes
    outcomes: list[Outcome]
    journey: Journey
    run_s: float
    estimates: list[tuple[Told, int]] = field(default_factory=list)
    """What completed jobs were told, and what they took, in ms."""


def _fetch(worker: Worker, taken: Taken) -> list[Any] | None:
    """Each member's payload, or the tensors that the stage before left for it."""
    if taken.stage == "preprocess":
        heads = ((member.head, member.data) for member in taken.members)
        return [Stored(head.media_type, data, head.input_sha256) for head, data in heads]
    packed = worker.intermediates.get(taken.reference)
    if packed is None:
        return None
    try:
        items = unpack_items(packed)
        return [items[member.place] for member in taken.members]
    except (ValueError, IndexError, MemoryError):
        log.exception("intermediate cannot be read", extra={"microbatch": taken.number})
        return None


def _run(worker: Worker, held: Held, items: list[Any]) -> _Work:
    """Run the stage function; an outcome for each member, whatever is raised. DeviceLostError."""
    taken, started = held.taken, time.perf_counter()
    model, version = taken.members[0].head.model, taken.members[0].head.version
    record = ModelRecord(model, version, "loading")
    rows, provider = 0, ""
    results: Results
    try:
        served = worker.catalog.served(model, version)
        record = served.record
        if taken.stage == "inference":
            rows, provider = sum(map(rows_of, items)), _ensure_loaded(worker, record)
        held.late_at = time.monotonic() + record.config.limits.stage_s_max
        results = _results(lambda some: _FUNCTIONS[taken.stage](worker, served, some, held.halt), taken, items)
    except PenstockError as error:
        results = [error] * len(items)
    except DeviceLostError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the model's version could not be loaded
        results = [_fault(error, taken)] * len(items)
    held.late_at = math.inf
    run_s = time.perf_counter() - started
    journey = _journey(worker, taken, run_s, rows, provider)
    return _sort(taken, results, journey, record, run_s)


def _results(run: Callable[[list[Any]], Results], taken: Taken, items: list[Any]) -> Results:
    """What the stage function makes of all items, or of each alone where all together raise."""
    try:
        if faults:
            faults.reach(f"{taken.stage}.run", [each for each in items if isinstance(each, dict)])
        results = run(items)
        if len(results) != len(items):
            raise RuntimeError(f"{len(results)} results for {len(items)} items")  # noqa: TRY301 - as if it had raised
    except DeviceLostError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - user code and libraries raise what they like
        if len(items) > 1:
            return [result for item in items for result in _results(run, taken, [item])]
        return [error if isinstance(error, PenstockError) else _fault(error, taken)]
    return results


def _fault(error: BaseException, taken: Taken) -> PenstockError:
    """An error that a stage did not foresee, in our words."""
    if isinstance(error, MemoryError):
        return OutOfMemoryError(f"The stage {taken.stage} ran out of memory.")
    log.error("stage failed", exc_info=error, extra={"stage": taken.stage, "microbatch": taken.number})
    return InternalError(f"The stage {taken.stage} failed.")


def _sort(taken: Taken, results: Results, journey: Journey, record: ModelRecord, run_s: float) -> _Work:
    """Who goes on, who has ended, who is tried again."""
    last = _following(taken.stage) is None
    going_on: dict[str, Tensors] = {}
    outcomes: list[Outcome] = []
    for member, result in zip(taken.members, results, strict=True):
        if isinstance(result, PenstockError):
            outcomes.append(refused(member, result, taken.stage, journey, record))
            _log_refusal(member, result, taken.stage)
        elif last:
            outcomes.append(_completed(member, result, taken, journey, record))
        else:
            going_on[member.task_id] = result
    try:
        packed = pack_items(list(going_on.values())) if going_on else b""
    except Exception as error:  # noqa: BLE001 - a stage that gave no tensors
        fault = _fault(error, taken)
        left = [member for member in taken.members if member.task_id in going_on]
        outcomes += [refused(member, fault, taken.stage, journey, record) for member in left]
        return _Work([], b"", outcomes, journey, run_s)
    estimates = _estimates(taken, outcomes, journey) if last else []
    return _Work(list(going_on), packed, outcomes, journey, run_s, estimates)


def _completed(member: Member, result: Any, taken: Taken, journey: Journey, record: ModelRecord) -> Outcome:
    try:
        return completed(member, result, journey, record)
    except Exception as error:  # noqa: BLE001 - what JSON cannot carry sinks this job alone
        return refused(member, _fault(error, taken), taken.stage, journey, record)


def _commit(worker: Worker, taken: Taken, work: _Work) -> Committed:
    """Write what the stage made, and again while the store is away and the lease may still be ours.

    The epoch makes that safe: the second of two equal commits finds its lease gone and writes nothing.
    """
    name = f"{taken.number}-{taken.stage}-{taken.epoch}"
    give_up_at = time.monotonic() + worker.leases.lease_ms / 1000
    reference, held = b"", verdict(work.estimates)
    while True:
        try:
            if work.going_on and not reference:
                reference = worker.intermediates.put(name, work.packed)
            handover = Handover(
                following=_following(taken.stage),
                going_on=work.going_on,
                reference=reference,
                stages=encode_journey(work.journey),
                cost_us=int(work.run_s * 1e6 / len(taken.members)),
                held=held,
            )
            return worker.store.run(commands.commit(taken, handover, work.outcomes))
        except StoreUnavailableError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(COMMIT_PAUSE_S)


def _estimates(taken: Taken, outcomes: Sequence[Outcome], journey: Journey) -> list[tuple[Told, int]]:
    """The estimates of jobs that completed at their first attempt, and what they took, in ms.

    At most ``ESTIMATES_MAX`` of them, evenly spread: those of one micro-batch held, or did not, for the same reasons.
    """
    completed = {outcome.task_id for outcome in outcomes if outcome.event == Event.COMPLETE}
    return [
        (member.head.estimate, journey.ended_at_ms - member.head.queued_at_ms)
        for member in taken.members[:: math.ceil(len(taken.members) / ESTIMATES_MAX)]
        if member.head.estimate and member.attempt == 1 and member.task_id in completed
    ]


def _journey(worker: Worker, taken: Taken, run_s: float, rows: int, provider: str) -> Journey:
    """The journey so far, this stage included."""
    before = decode_journey(taken.stages) if taken.stages else Journey(taken.now_ms, taken.now_ms)
    queued_s = max(0.0, (taken.now_ms - before.ended_at_ms) / 1000)
    run = StageRun(taken.stage, queued_s, round(run_s, 6), len(taken.members), rows, worker.name)
    return Journey(
        before.started_at_ms,
        taken.now_ms + int(run_s * 1000),
        (*before.runs, run),
        provider or before.provider,
    )


def _ensure_loaded(worker: Worker, record: ModelRecord) -> str:
    """Load the version if it is not loaded, under longer leases; the provider that runs it."""
    if not worker.engine.loaded(record):
        with worker.leases.extended(worker.load_budget_s):
            worker.engine.warm(record)
        metrics.loaded(record, worker.engine.provider(record))
    return worker.engine.provider(record)


def _following(stage: StageName) -> StageName | None:
    place = STAGES.index(stage) + 1
    return STAGES[place] if place < len(STAGES) else None


def _infer(worker: Worker, served: Served, items: list[Any], halt: Halt) -> Results:
    """The outputs of each item, and beside them those of its inputs that postprocessing asks for."""
    outcomes = worker.engine.run(served.record, items, halt)
    if not served.postprocess.passes:
        return outcomes
    return [
        outcome if isinstance(outcome, PenstockError) else outcome | _passed(item, served.postprocess.passes)
        for item, outcome in zip(items, outcomes, strict=True)
    ]


def _passed(item: Tensors, names: frozenset[str]) -> Tensors:
    return {passed(name): item[name] for name in names}


_FUNCTIONS: dict[StageName, Callable[[Worker, Served, list[Any], Halt], Results]] = {
    "preprocess": lambda worker, served, payloads, _: worker.preprocessed.run(served.preprocess, payloads),
    "inference": _infer,
    "postprocess": lambda _, served, outputs, __: served.postprocess.run(outputs),
}


def _count(taken: Taken, work: _Work, committed: Committed) -> None:
    """Metrics of a stage that was committed."""
    metrics.stage_seconds.labels(taken.stage).observe(work.run_s)
    if taken.stage == "preprocess":
        metrics.microbatch_size.observe(len(taken.members))
        metrics.queue_wait_seconds.observe((taken.now_ms - m.head.queued_at_ms) / 1000 for m in taken.members)
    elif taken.stage == "inference":
        metrics.batch_rows.observe(work.journey.runs[-1].batch_rows)
    for outcome in work.outcomes:
        if outcome.event == "retry":
            metrics.retries_total.labels(taken.stage, outcome.code).inc()
    _count_ends(taken, work, committed)
    _count_estimates(work.estimates)


def _count_ends(taken: Taken, work: _Work, committed: Committed) -> None:
    """Each job that this commit ended is counted here and nowhere else; those that joined are not timed."""
    _count_ended(committed.ended)
    ended = {each.task_id for each in committed.ended}
    metrics.end_to_end_seconds.observe(
        (work.journey.ended_at_ms - member.head.queued_at_ms) / 1000
        for member in taken.members
        if member.task_id in ended
    )


def _count_estimates(estimates: Sequence[tuple[Told, int]]) -> None:
    """How the estimates that jobs were given at submit held."""
    metrics.estimate_error_seconds.observe(abs(took_ms - told.median_ms) / 1000 for told, took_ms in estimates)
    covered = sum(took_ms <= told.p90_ms for told, took_ms in estimates)
    metrics.estimates_total.labels("yes").inc(covered)
    metrics.estimates_total.labels("no").inc(len(estimates) - covered)


def _count_ended(ended: Sequence[Ended]) -> None:
    for (line, state), count in Counter((each.line, each.state) for each in ended).items():
        model, version = line.split("/")[2:]
        metrics.jobs_total.labels(model, version, state).inc(count)


def _log_refusal(member: Member, error: PenstockError, stage: StageName) -> None:
    log.info(
        "job refused by a stage",
        extra={
            "task_id": member.task_id,
            "request_id": member.head.request_id,
            "model": member.head.model,
            "stage": stage,
            "code": error.code,
            "attempt": member.attempt,
        },
    )
