"""Logs: one JSON object a line, whatever a client sent; no payload; bounded."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from jobs.logs import JsonLines

TEXT_MAX = 4_000


def _line(
    message: str, *args: object, extra: dict[str, Any] | None = None, error: BaseException | None = None
) -> str:
    exc_info = (type(error), error, error.__traceback__) if error else None
    record = logging.getLogger("penstock.test").makeRecord(
        *("penstock.test", logging.WARNING, __file__, 1, message, args, exc_info), extra=extra
    )
    record.created = 1_795_000_000.123
    return JsonLines().format(record)


def _read(line: str) -> dict[str, Any]:
    assert len(line.splitlines()) == 1
    read: dict[str, Any] = json.loads(line)
    return read


def _raised(text: str) -> BaseException:
    with pytest.raises(LookupError) as raised:
        raise LookupError(text)
    return raised.value


def test_a_record_is_one_json_object() -> None:
    read = _read(_line("swept %d", 3, extra={"kind": "lost-worker", "count": 3}))

    assert read == {
        "at": "2026-11-18T11:06:40.123Z",
        "level": "warning",
        "logger": "penstock.test",
        "event": "swept 3",
        "kind": "lost-worker",
        "count": 3,
    }


@pytest.mark.parametrize(
    "hostile",
    [
        'a\r\n{"level": "error", "event": "forged"}',
        "a\nb",
        "a\rb",
        "a\x00b",
        "a\x1b[31mb",
        "a\x0bb\x0cc\x1cd\x1ee",
        '"}\n{"',
    ],
)
def test_a_client_cannot_forge_a_line(hostile: str) -> None:
    for line in (_line(hostile), _line("%s", hostile), _line("x", extra={"request_id": hostile})):
        assert not set(line) & set(map(chr, range(32)))
        read = _read(line)
        assert hostile in (read["event"], read.get("request_id"))
        assert read["level"] == "warning"


def test_an_exception_is_one_field_of_the_line() -> None:
    read = _read(_line("failed", error=_raised("why")))

    assert read["exception"].startswith("Traceback")
    assert read["exception"].rstrip().endswith("LookupError: why")


def test_an_exception_is_bounded_and_its_end_is_kept() -> None:
    read = _read(_line("failed", error=_raised("x" * 100_000 + "the end")))

    assert len(read["exception"]) == TEXT_MAX
    assert read["exception"].rstrip().endswith("the end")


def test_an_event_is_bounded() -> None:
    assert len(_read(_line("x" * 100_000))["event"]) == TEXT_MAX


def test_a_payload_is_never_logged() -> None:
    assert "secret" not in _line("stage failed", extra={"data": b"secret"})


@pytest.mark.parametrize("value", [{1: 2}, {"a": {1, 2}}, object, 1 + 2j, None, 1e999])
def test_what_json_cannot_carry_is_told_as_text(value: Any) -> None:
    assert _read(_line("x", extra={"value": value}))["event"] == "x"


def test_an_exception_that_was_not_raised_is_no_field() -> None:
    record = logging.makeLogRecord({"msg": "x", "exc_info": sys.exc_info()})

    assert "exception" not in _read(JsonLines().format(record))
