"""The worker process: ``celery -A tasks.worker worker``. Start, run and drain are the three signal handlers.

Start happens before Celery connects to the broker: self-check, trial loads, sessions warm, metrics. So a cold worker
takes nothing, and one that cannot serve stops with one line. Flower uses the same app.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import secrets
import socket
import sys
from typing import Any

import msgspec
from celery import Celery, Task
from celery.signals import (
    celeryd_init,
    setup_logging,
    worker_init,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)
from prometheus_client import start_http_server

from inference.engine import Engine
from inference.graphcache import GraphCache
from inference.remote import Mirror
from jobs import commands
from jobs.connect import redis_client
from jobs.errors import EXIT_CONFIG, ModelUnavailableError, SetupError
from jobs.logs import log_json_lines
from jobs.models import ModelRecord
from jobs.records import STAGES, StageName
from jobs.selfcheck import check_worker
from jobs.settings import Settings, settings
from jobs.store import Flow, JobStore
from tasks import metrics
from tasks.app import WORKER_TIMEOUT_S, make_celery
from tasks.catalog import TRIAL_TIMEOUT_S, Catalog
from tasks.departure import Departure
from tasks.events import BatchedEvents
from tasks.intermediates import Intermediates
from tasks.leases import Leases
from tasks.models_watch import ModelsWatch
from tasks.names import task_name
from tasks.preprocessed import Preprocessed
from tasks.publisher import Publisher
from tasks.stages import Worker, run_stage

log = logging.getLogger(__name__)

POLLS_MISSED_MAX = 3
"""Polls of the models folder, besides a trial and a load, after which a worker counts as one that has no model."""
SILENCE = 1.5
"""Load budgets without a sign of life, after which the process cannot be alive."""


class _Process:
    """This process's worker, once it has started."""

    worker: Worker | None = None
    watch: ModelsWatch | None = None


def _add_tasks(app: Celery) -> None:
    for stage in STAGES:
        app.task(_stage_task(stage), name=task_name(stage), bind=True)


def _stage_task(stage: StageName) -> Any:
    def task(self: Task, number: str, sequence: str, schema: int) -> None:  # noqa: ARG001 - one schema so far
        worker = _Process.worker
        if worker is None:  # not acknowledged: the broker or the sweeper gives it to a worker that did start
            os._exit(1)
        goes_on = False
        try:
            goes_on = run_stage(worker, stage, number, sequence)
        except (MemoryError, SystemExit):  # Celery would not acknowledge: this slot would never be free again
            log.exception("stage given up", extra={"stage": stage, "microbatch": number})
        if not goes_on:
            # The chain ends here; the message is acknowledged. Celery's own way, to raise Ignore, leaves some 100 kB
            # of traceback in a cycle that only a full garbage collection ends.
            self.request.chain = None

    return task


def open_worker(config: Settings, app: Celery) -> Worker:
    """Connect, verify the models, warm the sessions; opens no consumer."""
    client = redis_client(config.store, WORKER_TIMEOUT_S)
    store = JobStore(client, config.namespace, Flow.of(config))
    name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
    intermediates = Intermediates(store, config)
    facts = {"host": socket.gethostname(), "pid": os.getpid(), "mount": intermediates.mount}
    # Signs of life have a client of their own: one that hangs must not cost the lease that the next one would keep.
    beating = JobStore(redis_client(config.store, config.lease_s / 3), config.namespace, Flow.of(config))
    leases = Leases(beating, name, config.lease_s, lambda: msgspec.json.encode(facts))
    store.run(commands.starting(name, int(config.load_budget_s * 1000)))
    # A trial and a load may hold up a poll.
    hold_s = TRIAL_TIMEOUT_S + config.load_budget_s + POLLS_MISSED_MAX * config.models_refresh_s
    _fetch_models(config)
    catalog = Catalog(
        client,
        config.namespace,
        config.models_folder,
        config.pools,
        holder=name,
        hold_s=hold_s,
        custom_ops=config.custom_ops,
    )
    catalog.publish()
    graphs = (
        GraphCache(config.data / "graphs", config.graph_cache_bytes_max) if config.graph_cache_bytes_max else None
    )
    engine = Engine(config.models_folder, config.intra_op_threads, graphs, custom_ops=config.custom_ops)
    for record in catalog.ready():
        _warm(engine, record)
    publisher = Publisher(app)
    departure = Departure(store, leases, publisher)
    leases.on_beat += [departure.watch, intermediates.clean]
    return Worker(
        *(name, store, leases, publisher, intermediates, catalog, engine, departure),
        config.load_budget_s,
        Preprocessed(config.preprocess_cache_bytes_max),
    )


def _warm(engine: Engine, record: ModelRecord) -> None:
    """Make a version ready to run; SetupError where its options, its graph or this machine forbid that."""
    try:
        engine.warm(record)
    except ModelUnavailableError as error:
        if isinstance(error.__cause__, SetupError):
            raise SetupError(error.detail) from None
        raise  # a file that is being replaced, say: the next start may find it whole
    metrics.loaded(record, engine.provider(record))


def _fetch_models(config: Settings) -> None:
    """Fetch what PENSTOCK_MODELS names, where that is a URL; a store that is away is waited for in the background."""
    if not config.models_url:
        return
    mirror = Mirror.open(config.models_url, config.models_folder)
    try:
        mirror.sync()
    except SetupError as error:
        if not mirror.is_filled():
            raise
        log.warning("models not fetched, those of the last time serve: %s", error)


def _share_tmpfs(worker: Worker) -> None:
    """Files serve as intermediates while every worker that gives signs of life names the same tmpfs."""
    described = worker.store.client.hvals(f"{worker.store.prefix}workers")
    mounts = {msgspec.json.decode(each)["mount"] for each in described}
    worker.intermediates.shared = mounts == {worker.intermediates.mount} != {""}


def _expect_another_beat(config: Settings) -> None:
    """End the process, by a thread that needs no interpreter lock, if something holds that lock for too long."""
    faulthandler.dump_traceback_later(SILENCE * config.load_budget_s, exit=True)


@celeryd_init.connect  # type: ignore[untyped-decorator]  # before Celery warns a root user
@setup_logging.connect  # type: ignore[untyped-decorator]
def _log(**_: Any) -> None:
    log_json_lines(settings().log_level)
    for chatty in ("celery.app.trace", "celery.worker.strategy"):  # a line for each message: Flower shows them
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # It warns that our exchange takes no delayed messages; we send none.
    logging.getLogger("celery.worker.consumer.delayed_delivery").setLevel(logging.ERROR)


@worker_init.connect  # type: ignore[untyped-decorator]
def _start(**_: Any) -> None:
    config = settings()
    try:
        check_worker(config)
        worker = open_worker(config, app)
        _show_metrics(config)
    except SetupError as error:
        print(f"penstock: {error}", file=sys.stderr)  # noqa: T201 - the one line that says what to do
        os._exit(EXIT_CONFIG)
    except BaseException:  # Celery would log it and go on, and this worker would take messages that it cannot run
        log.exception("the worker cannot start")
        os._exit(1)
    _Process.watch = ModelsWatch(
        worker.catalog,
        worker.engine,
        worker.leases,
        refresh_s=config.models_refresh_s,
        load_budget_s=config.load_budget_s,
        sync=Mirror.open(config.models_url, config.models_folder).sync if config.models_url else None,
    )
    worker.leases.on_beat += [lambda: _share_tmpfs(worker), lambda: _expect_another_beat(config)]
    _Process.worker = worker


def _show_metrics(config: Settings) -> None:
    host, port = config.worker_metrics_host, config.worker_metrics_port
    try:
        server, _thread = start_http_server(port, host)
    except OSError:
        raise SetupError(
            f"port {port} on {host} is in use: set PENSTOCK_WORKER_METRICS_PORT to a free one, or 0"
        ) from None
    log.info("metrics", extra={"host": host, "port": server.server_port})


@worker_ready.connect  # type: ignore[untyped-decorator]
def _run(sender: Any, **_: Any) -> None:
    worker, watch = _Process.worker, _Process.watch
    if worker is None or watch is None:
        return
    served = {queue.split(".")[0] for queue in sender.app.amqp.queues.consume_from}
    worker.leases.slots = dict.fromkeys(served, sender.controller.concurrency)
    worker.leases.beat()
    worker.leases.start()
    watch.start()
    _share_tmpfs(worker)
    log.info("ready", extra={"worker": worker.name, "queues": sorted(sender.app.amqp.queues.consume_from)})


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _begin_drain(**_: Any) -> None:
    if _Process.watch is not None:
        _Process.watch.pause()
    if _Process.worker is not None:
        _Process.worker.departure.drain(settings().drain_s)


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _end(**_: Any) -> None:
    faulthandler.cancel_dump_traceback_later()
    if _Process.watch is not None:
        _Process.watch.stop()
    if _Process.worker is not None:
        _Process.worker.leases.stop()


try:
    app = make_celery(settings())
except SetupError as problem:
    print(f"penstock: {problem}", file=sys.stderr)  # noqa: T201 - the one line that says what to do
    sys.exit(EXIT_CONFIG)
_add_tasks(app)
app.steps["consumer"].add(BatchedEvents)
