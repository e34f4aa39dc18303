"""The log: one JSON object a line, to standard error and to a file that is rotated; written on a thread of its own.

Nothing of a body, a key or an image is ever handed to it. What a caller chose himself (ids, file names) stands in JSON
strings, where a line break is ``\\n``: nobody can write a line of his own.
"""

from __future__ import annotations

import copy
import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from backend.settings import Settings

REQUEST_ID: ContextVar[str | None] = ContextVar("REQUEST_ID", default=None)

_FIELDS = ["timestamp", "levelname", "name", "message"]
_UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")
_MAX_WAITING = 10_000


@contextmanager
def json_lines(settings: Settings, stream: IO[str] | None = None) -> Iterator[None]:
    """Let everything in the ``with`` block be logged as JSON lines, by the settings ``log_…``.

    Where the root logger has a handler already, an application around this one, or a test, has its own way to log, and
    this changes nothing. Several processes may write to one file.

    Args:
        settings: What is logged, and where.
        stream: Standard error by default.

    Raises:
        OSError: If the file cannot be opened.
    """
    root = logging.getLogger()
    if root.handlers:
        yield
        return
    outputs: list[logging.Handler] = [logging.StreamHandler(stream or sys.stderr)]
    if settings.log_file is not None:
        outputs.append(_rotating_file(settings.log_file, settings.log_max_mb, settings.log_files))
    for output in outputs:
        output.setFormatter(_formatter())
    handler = _Handover(_MAX_WAITING)
    listener = logging.handlers.QueueListener(handler.queue, *outputs)
    before = [(logger, logger.handlers, logger.propagate) for logger in map(logging.getLogger, _UVICORN)]
    ours = logging.getLogger("backend")
    levels = root.level, ours.level
    # The libraries' own details would bury ours, and nobody here knows what they hold.
    root.setLevel("INFO" if settings.log_level == "DEBUG" else settings.log_level)
    ours.setLevel(settings.log_level)
    root.addHandler(handler)
    for logger, *_ in before:
        logger.handlers, logger.propagate = [], logger.name != "uvicorn.access"  # our own line tells more
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(levels[0])
        ours.setLevel(levels[1])
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
        listener.stop()  # writes what waits
        for output in outputs:
            output.close()


class _Handover(logging.handlers.QueueHandler):
    """Hands records to the thread that writes; where that cannot keep up, drops them and tells how many."""

    queue: queue.Queue[logging.LogRecord]

    def __init__(self, max_waiting: int) -> None:
        super().__init__(queue.Queue(max_waiting))
        self._dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return a copy of the record that later changes of its arguments cannot reach."""
        # Not the base class's own: it writes the traceback into the message, where it is no field of its own.
        record = copy.copy(record)
        record.msg, record.args = record.getMessage(), None
        if getattr(record, "request_id", None) is None:
            record.request_id = REQUEST_ID.get()
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Hand one record over, without waiting."""
        # A slow disk must not hold up inspections, nor fill the memory.
        if self._dropped:
            record.dropped_before = self._dropped
        try:
            self.queue.put_nowait(record)
            self._dropped = 0
        except queue.Full:
            self._dropped += 1


def _formatter() -> logging.Formatter:
    return _JsonLines(
        _FIELDS,
        rename_fields={"levelname": "level", "name": "logger", "exc_info": "traceback"},
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],
        timestamp=True,
        json_ensure_ascii=True,  # also against U+2028, which some viewers break lines at, and lone surrogates
    )


class _JsonLines(JsonFormatter):
    """JSON objects without the fields that have nothing to say."""

    def process_log_record(self, log_data: dict[str, object]) -> dict[str, object]:
        """Return what is written of a record."""
        return {name: value for name, value in log_data.items() if value is not None}


def _rotating_file(path: Path, max_mb: float, files: int) -> logging.Handler:
    # Not the standard library's: two processes that rotate one file tear it apart.
    from concurrent_log_handler import ConcurrentRotatingFileHandler

    path.parent.mkdir(parents=True, exist_ok=True)
    return ConcurrentRotatingFileHandler(
        str(path), maxBytes=int(max_mb * 1_000_000), backupCount=files, encoding="utf-8"
    )
