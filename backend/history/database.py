"""The SQLite file of the history: its tables, opening it, and setting it aside when it cannot be used.

``decisions`` holds the last of each model; ``periods`` what was counted in each quarter of an hour, for longer;
``marks`` fits, calibrations and activations. Nothing in it is needed to inspect.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from backend.artifacts.layout import CORRUPT_MARK

_log = logging.getLogger(__name__)

FILE_NAME: Final = "history.sqlite3"
VERSION: Final = 1
PERIOD_S: Final = 900
"""Length of a period, s: shifts and days of every time zone of today begin at a whole one."""

_BUSY_S: Final = 5.0
_UNUSABLE: Final = frozenset(
    {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA}
)

DECISION_COLUMNS: Final = (
    "model", "at", "decision", "score", "threshold", "score_mode", "reject_reason", "verdict", "statistic", "distance",
    "n_regions", "x", "y", "w", "h", "area_mm2", "peak", "serial", "filename", "memory_checksum", "learned",
    "audit_entry_id",
)  # fmt: skip

_SCHEMA: Final = [
    "CREATE TABLE models (id INTEGER PRIMARY KEY, recipe_id TEXT NOT NULL, role_id TEXT NOT NULL, "
    "roi_id TEXT NOT NULL, model_key TEXT NOT NULL, UNIQUE (recipe_id, role_id, roi_id, model_key))",
    # Times are seconds since 1970.
    "CREATE TABLE decisions (id INTEGER PRIMARY KEY AUTOINCREMENT, model INTEGER NOT NULL, at REAL NOT NULL, "
    "decision TEXT, score REAL NOT NULL, threshold REAL, score_mode TEXT NOT NULL, reject_reason TEXT, verdict TEXT, "
    "statistic TEXT, distance REAL, n_regions INTEGER NOT NULL, x INTEGER, y INTEGER, w INTEGER, h INTEGER, "
    "area_mm2 REAL, peak REAL, serial TEXT, filename TEXT NOT NULL, memory_checksum TEXT NOT NULL, "
    "learned INTEGER NOT NULL, audit_entry_id INTEGER)",
    "CREATE INDEX decisions_by_model ON decisions (model, id)",
    "CREATE INDEX decisions_by_time ON decisions (model, at)",
    "CREATE INDEX decisions_ng ON decisions (model, id) WHERE decision = 'ng'",
    "CREATE TABLE periods (model INTEGER NOT NULL, at INTEGER NOT NULL, memory TEXT NOT NULL, n INTEGER NOT NULL, "
    "n_ng INTEGER NOT NULL, n_foreign INTEGER NOT NULL, n_ratio INTEGER NOT NULL, ratio REAL, sketch BLOB NOT NULL, "
    "UNIQUE (model, at, memory))",
    # What drift and counts need, without the sketches.
    "CREATE INDEX periods_in_short ON periods (model, at, memory, n, n_ng, n_ratio, ratio)",
    "CREATE TABLE marks (id INTEGER PRIMARY KEY AUTOINCREMENT, model INTEGER NOT NULL, at REAL NOT NULL, "
    "kind TEXT NOT NULL, memory_checksum TEXT NOT NULL, facts TEXT NOT NULL)",
    "CREATE INDEX marks_by_model ON marks (model, at)",
    f"PRAGMA user_version = {VERSION}",
]


class OtherVersion(sqlite3.DatabaseError):
    """A history that another version of this service wrote."""


def is_unusable(error: BaseException) -> bool:
    """Return whether an error says that the file is no history that this version can read or write."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, OtherVersion) or (code is not None and code & 0xFF in _UNUSABLE)


def open_to_write(path: Path) -> sqlite3.Connection:
    """Return a connection to a file that has the tables.

    Raises:
        sqlite3.Error, OSError: If there can be none; see ``is_unusable``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        # A log beside the file: readers and the writer do not wait for each other, and a crash leaves a whole file.
        # NORMAL: the last decisions before a power cut may be missing, and no decision waits for the disk.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        with connection:
            connection.execute("BEGIN IMMEDIATE")  # of two processes, one makes the tables
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                raise OtherVersion(f"the history has version {version}, this service knows {VERSION}")
            for statement in _SCHEMA if version == 0 else ():
                connection.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection


def open_to_read(path: Path) -> sqlite3.Connection:
    """Return a connection that changes nothing.

    Raises:
        FileNotFoundError: If there is no file, or one that is only just begun.
        sqlite3.Error: If it cannot be read; see ``is_unusable``.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA query_only = 1")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            raise FileNotFoundError(path)
        if version != VERSION:
            raise OtherVersion(f"the history has version {version}, this service knows {VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def set_aside(path: Path) -> None:
    """Rename a history that cannot be used, with the log that belongs to it; a new one can be begun then.

    Raises:
        OSError: If it cannot be renamed.
    """
    mark = f"{CORRUPT_MARK}{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for suffix in ("-wal", "-shm"):
        with suppress(FileNotFoundError):
            path.with_name(path.name + suffix).unlink()
    with suppress(FileNotFoundError):
        path.replace(path.with_name(path.name + mark))
    _log.error("%s cannot be used; it was set aside as %s%s, and a new one is begun", path, path.name, mark)


def fault_of(path: Path) -> str | None:
    """Return what is wrong with the file of a history, None where it is sound."""
    try:
        with closing(open_to_read(path)) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except FileNotFoundError:
        return None
    except sqlite3.Error as error:
        return str(error) if is_unusable(error) else None
    return None if found == "ok" else str(found)
