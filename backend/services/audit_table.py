"""The table of the audit: its columns, its versions, and the connections to the SQLite file that holds it."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

VERSION = 2
"""2: decisions have a serial."""
_BUSY_S = 5.0

# One decision as it is kept; units and meanings as in the answer to ``/infer``.
_COLUMNS = {
    "time_utc": "TEXT NOT NULL",
    "source": "TEXT NOT NULL",
    "request_id": "TEXT NOT NULL",
    "caller": "TEXT",
    "recipe_id": "TEXT NOT NULL",
    "role_id": "TEXT NOT NULL",
    "roi_id": "TEXT NOT NULL",
    "model_key": "TEXT NOT NULL",
    "image_name": "TEXT NOT NULL",
    "image_digest": "TEXT NOT NULL",
    "score": "REAL NOT NULL",
    "threshold": "REAL",
    "decision": "TEXT",
    "n_regions": "INTEGER NOT NULL",
    "area_mm2": "REAL NOT NULL",
    "memory_checksum": "TEXT NOT NULL",
    "extractor_id": "TEXT NOT NULL",
    "mm_per_px": "REAL NOT NULL",
    "service_version": "TEXT NOT NULL",
    "params": "TEXT NOT NULL",
    "serial": "TEXT",
}
_SERIALS = ["CREATE INDEX decisions_by_serial ON decisions (serial) WHERE serial IS NOT NULL"]
_SCHEMA = [
    f"CREATE TABLE decisions (id INTEGER PRIMARY KEY AUTOINCREMENT, {', '.join(map(' '.join, _COLUMNS.items()))})",
    "CREATE INDEX decisions_by_roi ON decisions (role_id, roi_id, id)",
    "CREATE INDEX decisions_by_time ON decisions (time_utc)",
    "CREATE INDEX decisions_by_image ON decisions (image_digest)",
    "CREATE INDEX decisions_by_request ON decisions (request_id)",
    *_SERIALS,
    *(
        f"CREATE TRIGGER decisions_no_{verb.lower()} BEFORE {verb} ON decisions "
        "BEGIN SELECT RAISE(ABORT, 'decisions are never changed'); END"
        for verb in ("UPDATE", "DELETE")
    ),
    f"PRAGMA user_version = {VERSION}",
]
_UPGRADE = ["ALTER TABLE decisions ADD COLUMN serial TEXT", *_SERIALS, f"PRAGMA user_version = {VERSION}"]
"""From version 1."""

_STEPS: dict[int, list[str]] = {0: _SCHEMA, 1: _UPGRADE, VERSION: []}
"""What brings a file of a version to this one."""

INSERT = f"INSERT INTO decisions ({', '.join(_COLUMNS)}) VALUES ({', '.join(f':{name}' for name in _COLUMNS)})"
CONDITIONS = {
    **{
        name: f"{name} = ?"
        for name in ("recipe_id", "role_id", "roi_id", "image_digest", "request_id", "decision", "serial")
    },
    "since": "time_utc >= ?",
    "until": "time_utc < ?",
    "before_id": "id < ?",
    "id": "id = ?",
}


def opened(path: Path) -> sqlite3.Connection:
    """Return a connection to a file as it is."""
    # Transactions are ours: what the module begins by itself takes its lock too late. Another thread may close it.
    return sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)


def ready(path: Path, *, after_id: int = 0) -> sqlite3.Connection:
    """Return a connection to a file that has the table; in a new one ids go on after ``after_id``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = opened(path)
    try:
        # A log beside the file, so that a reader and a writer do not wait for each other. FULL, because in this mode
        # NORMAL does not wait for the disk, and the decisions of the last seconds before a power cut would be gone.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # Each decision goes on into the file itself, which is what an operator moves away.
        connection.execute("PRAGMA wal_autocheckpoint = 1")
        with connection:
            connection.execute("BEGIN IMMEDIATE")  # before it is read: of two processes, one makes the table
            version = version_of(connection)
            if version not in _STEPS:
                raise sqlite3.DatabaseError(f"the audit file has version {version}, this service knows {VERSION}")
            for statement in _STEPS[version]:
                connection.execute(statement)
            if after_id and not version:
                connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('decisions', ?)", [after_id])
    except BaseException:
        connection.close()
        raise
    return connection


def version_of(connection: sqlite3.Connection) -> int:
    """Return the version of a file's table; 0 without one."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def time_text(time: datetime) -> str:
    """Return a time as ISO 8601 in UTC with microseconds: such texts sort as the times do."""
    with suppress(OverflowError):  # the first or the last day that there is, in another time zone
        time = time.astimezone(UTC)
    return time.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
