"""Messages that no worker of ours should ever meet, put straight into the broker's queue."""

from __future__ import annotations

import base64
import json
import os
import pickle
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import amqp

from tests.faults.fault_system import FaultSystem
from tests.system import ENTRY_QUEUE

PREPROCESS: Final = "penstock.preprocess"
HUGE_BYTES: Final = 50_000_000
JSON: Final = "application/json"
PICKLE: Final = "application/x-python-serialize"


class Canary:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self._folder),)


def random_bytes(system: FaultSystem, _: Path) -> None:
    """Not even an envelope."""
    put_raw(system, os.urandom(300), "application/octet-stream", {})


def a_pickle(system: FaultSystem, canary: Path) -> None:
    """A message that runs code where it is unpickled."""
    put(system, pickle.dumps([[Canary(canary)], {}, {}]), PREPROCESS, PICKLE)


def an_unknown_task(system: FaultSystem, _: Path) -> None:
    """A task that no worker has."""
    put(system, _body("1", "1", 1), "penstock.nothing")


def fifty_megabytes(system: FaultSystem, _: Path) -> None:
    """A message far larger than any of ours."""
    put(system, _body("9" * HUGE_BYTES, "1", 1), PREPROCESS)


def an_older_schema(system: FaultSystem, _: Path) -> None:
    """What a Penstock long before this one might have sent."""
    put(system, _body("1", "1", -1), PREPROCESS)


def a_newer_schema(system: FaultSystem, _: Path) -> None:
    """What a Penstock after this one may send."""
    put(system, _body("1", "1", 99), PREPROCESS)


def other_arguments(system: FaultSystem, _: Path) -> None:
    """The right task with arguments of another form."""
    put(system, _body({"number": ["1"]}), PREPROCESS)


KINDS: Final[dict[str, Callable[[FaultSystem, Path], None]]] = {
    "random bytes": random_bytes,
    "a pickle": a_pickle,
    "an unknown task": an_unknown_task,
    "50 MB": fifty_megabytes,
    "an older schema": an_older_schema,
    "a newer schema": a_newer_schema,
    "other arguments": other_arguments,
}


def put(system: FaultSystem, body: bytes, task: str, content_type: str = JSON) -> None:
    """Put a message in Celery's form into the queue of preprocess."""
    number = str(uuid.uuid4())
    headers = {"task": task, "id": number, "root_id": number, "lang": "py", "argsrepr": "-", "kwargsrepr": "-"}
    if system.rabbit is not None:
        put_raw(system, body, content_type, headers)
        return
    envelope = {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "binary" if content_type == PICKLE else "utf-8",
        "content-type": content_type,
        "headers": headers,
        "properties": {
            "correlation_id": number,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "penstock", "routing_key": ENTRY_QUEUE},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": number,
        },
    }
    put_raw(system, json.dumps(envelope).encode(), content_type, headers)


def put_raw(system: FaultSystem, raw: bytes, content_type: str, headers: dict[str, Any]) -> None:
    """Put bytes as they are into the queue of preprocess."""
    if system.rabbit is None:
        system.redis.lpush(system._list, raw)
        return
    encoding = "binary" if content_type == PICKLE else "utf-8"
    properties = {"content_type": content_type, "content_encoding": encoding, "delivery_mode": 2}
    with system._channel() as channel:
        message = amqp.Message(raw, application_headers=headers, **properties)
        channel.basic_publish(message, routing_key=ENTRY_QUEUE)


def _body(*arguments: Any) -> bytes:
    embedded = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return json.dumps([list(arguments), {}, embedded]).encode()
