"""The order in which a worker looks into its queues, where Redis is the broker."""

from __future__ import annotations

from kombu.utils.scheduling import cycle_by_name

from jobs.settings import read_settings
from tasks.app import make_celery
from tasks.names import queue_names


def test_interactive_goes_before_bulk_and_later_stages_before_earlier() -> None:
    options = make_celery(read_settings()).conf.broker_transport_options
    cycle = cycle_by_name(options["queue_order_strategy"])()
    cycle.update({*queue_names(["default"]), "celery"})

    assert cycle.consume(7) == [
        "default.postprocess.interactive",
        "default.inference.interactive",
        "default.preprocess.interactive",
        "default.postprocess.bulk",
        "default.inference.bulk",
        "default.preprocess.bulk",
        "celery",
    ]


def test_a_queue_that_was_just_served_keeps_its_place() -> None:
    cycle = cycle_by_name("tasks.order:InteractiveFirst")()
    cycle.update(queue_names(["default"]))
    before = cycle.consume(6)

    cycle.rotate(before[0])

    assert cycle.consume(6) == before
