"""Logs as JSON lines on standard error: instant, level, logger, event, and the fields given as ``extra``.

No payload is ever logged, and what a client sent is escaped by JSON itself, so that it cannot forge a line.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any

import msgspec

from jobs.records import instant

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message", "data"}
_TEXT_MAX = 4_000


class JsonLines(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line: dict[str, Any] = {
            "at": instant(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage()[:_TEXT_MAX],
        }
        line.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = "".join(traceback.format_exception(*record.exc_info))[-_TEXT_MAX:]
        return msgspec.json.encode(line, enc_hook=str).decode()


def log_json_lines(level: str) -> None:
    """Send the logs of this process to standard error as JSON lines, Python's warnings among them.

    What a server has set up for its own loggers before it came to us (uvicorn does) is taken down.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for logger in root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers.clear()
            logger.propagate = True
    logging.captureWarnings(capture=True)
