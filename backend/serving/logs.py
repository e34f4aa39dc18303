"""The log: one JSON object a line, to standard error and to a file that is rotated; written on a thread of its own.

Nothing of a body, a key or an image is ever handed to it. What a caller chose (ids, file names) stands in JSON strings,
where a line break is ``\\n``: nobody can write a line of his own.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import queue
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from backend.settings import Settings

_log = logging.getLogger(__name__)

REQUEST_ID: ContextVar[str | None] = ContextVar("REQUEST_ID", default=None)

MAX_WAITING = 10_000
"""Lines that wait for a slow disk; further ones are dropped and counted."""

_FILE_LOCK_S = 10.0
_ENDING_S = 2.0


@contextmanager
def json_lines(settings: Settings, stream: IO[str] | None = None, *, max_waiting: int = MAX_WAITING) -> Iterator[None]:
    """Let everything in the ``with`` block be logged as JSON lines, by the settings ``log_…``.

    Where the root logger has a handler already, an application around this one, or a test, has its own way to log, and
    this changes nothing. Several processes may write to one file.

    Args:
        settings: What is logged, and where.
        stream: Standard error by default.
        max_waiting: How many lines may wait for a slow disk.

    Raises:
        OSError: If the file cannot be opened.
    """
    names = ("", "backend", "uvicorn", "uvicorn.access", "httpx")
    root, ours, uvicorn, access, httpx = loggers = [logging.getLogger(name) for name in names]
    if root.handlers:
        yield
        return
    # It remarks on tags that nobody needs, on standard error and not in JSON. What counts it raises.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    outputs: list[logging.Handler] = [_output_to(stream or sys.stderr)]
    if settings.log_file is not None:
        outputs.append(_SharedFile(settings.log_file, settings.log_max_mb, settings.log_files))
    # A queue and a thread for each: a pipe that nobody reads must not keep lines from the file.
    listeners = [_Listener(queue.Queue(max_waiting), output) for output in outputs]
    handlers: list[logging.Handler] = [_Handover(listener.queue) for listener in listeners]
    for handler in handlers:
        handler.setFormatter(_JsonLines())
    before = [(logger, logger.level, logger.handlers, logger.propagate) for logger in loggers]
    # The libraries' own details would bury ours, and nobody here knows what they hold.
    root.setLevel("INFO" if settings.log_level == "DEBUG" else settings.log_level)
    ours.setLevel(settings.log_level)
    root.handlers = handlers
    uvicorn.handlers, uvicorn.propagate = [], True
    access.handlers, access.propagate = [], False  # our own access log has more
    httpx.setLevel("WARNING")  # it would log the page's queries, which may hold what is nobody's business
    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = _log_uncaught, _log_unraisable  # Python's own write to standard error
    for listener in listeners:
        listener.start()
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = hooks
        # What waits is written, but not to somebody who does not read.
        stuck = [listener for listener in listeners if not listener.stop_within(_ENDING_S)]
        for logger, level, old, propagate in before:
            # What comes now would be written at once, and wait for ever: the last words of uvicorn, or of Python.
            logger.handlers = [logging.NullHandler()] if stuck else old
            logger.propagate = propagate
            logger.setLevel(level)
        for output, listener in zip(outputs, listeners, strict=True):
            if listener not in stuck:
                output.close()


class _Listener(logging.handlers.QueueListener):
    """Writes to one output, on a daemon thread; ends without it where that does not go on."""

    def __init__(self, waiting: queue.Queue[logging.LogRecord], output: logging.Handler) -> None:
        super().__init__(waiting, output)
        self._writes: threading.Thread | None = None

    @property
    def is_alive(self) -> bool:
        """True while its thread runs."""
        return self._writes is not None and self._writes.is_alive()

    def start(self) -> None:
        """Begin to write."""
        super().start()
        self._writes = self._thread

    def stop_within(self, limit_s: float) -> bool:
        """Write what waits and end; return whether that was done in time."""
        try:
            self.enqueue_sentinel()
        except queue.Full:
            return False
        if self._writes is not None:
            self._writes.join(limit_s)
        return not self.is_alive


class _Descriptor(logging.Handler):
    """Writes lines to a descriptor, past Python's buffers.

    A thread that waits in a buffer's write holds the buffer's lock, for which the interpreter waits when it ends; and
    the lock of a handler, for which the logging library does.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def createLock(self) -> None:  # noqa: N802
        """Make none: one thread alone calls this."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        left = memoryview(f"{self.format(record)}\n".encode())
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError:  # closed by its reader: there is nobody to tell
            return


def _output_to(stream: IO[str] | None) -> logging.Handler:
    if stream is None:
        return logging.NullHandler()
    try:
        return _Descriptor(stream.fileno())
    except (OSError, ValueError, AttributeError):  # in memory
        return logging.StreamHandler(stream)


def _log_uncaught(args: threading.ExceptHookArgs) -> None:
    _log.error("a thread ended with an error", exc_info=args.exc_value)


def _log_unraisable(args: sys.UnraisableHookArgs) -> None:
    _log.error("an error that nobody could be given: %s", args.err_msg, exc_info=args.exc_value)


class _JsonLines(JsonFormatter):
    """JSON objects with the id of the request that is worked on, without the fields that have nothing to say."""

    def __init__(self) -> None:
        super().__init__(
            ["timestamp", "levelname", "name", "message"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "traceback"},
            reserved_attrs=[*RESERVED_ATTRS, "color_message"],
            timestamp=True,
            json_ensure_ascii=True,  # also against U+2028, which some viewers break lines at, and lone surrogates
        )

    def process_log_record(self, log_data: dict[str, object]) -> dict[str, object]:
        """Return what is written of a record."""
        log_data["request_id"] = log_data.get("request_id") or REQUEST_ID.get()
        return {name: value for name, value in log_data.items() if value is not None}


class _Handover(logging.handlers.QueueHandler):
    """Hands lines to the thread that writes; where that cannot keep up, drops them and counts how many."""

    dropped = 0

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; it is made here, before what was logged can change."""
        if self.dropped:
            record.dropped_before = self.dropped
        return super().format(record)

    def enqueue(self, record: logging.LogRecord) -> None:
        """Hand one line over, without waiting: a slow disk must not hold up inspections, nor fill the memory."""
        try:
            super().enqueue(record)
            self.dropped = 0
        except queue.Full:
            self.dropped += 1


class _SharedFile(logging.handlers.RotatingFileHandler):
    """A rotated file that several processes write to: for each line it is locked, opened and closed.

    Kept open, it could not be renamed on Windows, and elsewhere the others would go on writing to the renamed one.
    """

    def __init__(self, path: Path, max_mb: float, files: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()  # to fail at once where it cannot be written
        super().__init__(path, maxBytes=int(max_mb * 1e6), backupCount=files, encoding="utf-8", delay=True)
        self._turn = FileLock(
            path.with_name(f".{path.name}.lock"), timeout=_FILE_LOCK_S, poll_interval=0.005, thread_local=False
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            with self._turn:
                super().emit(record)
                self.close()
        except (Timeout, OSError):
            self.handleError(record)
