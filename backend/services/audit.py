"""Every decision, written down before it is given: an SQLite file that only grows.

``decisions`` holds one row per inspection that was answered. Triggers refuse to change or delete a row, so that no
later version of this program does it by mistake; whoever may write the file can still do as he likes.
"""

from __future__ import annotations

import json
import logging
import queue
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from backend.artifacts.model_key import ModelKey
from backend.errors import AuditOff, AuditUnavailable
from backend.scoring.inspection import Decision, Inspection

_log = logging.getLogger(__name__)

Source = Literal["infer", "infer_dataset"]

VERSION = 1
_BUSY_S = 5.0
_GIVE_UP_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One decision as it is kept; units and meanings as in the answer to ``/infer``."""

    time_utc: str
    source: Source
    request_id: str
    caller: str | None
    recipe_id: str
    role_id: str
    roi_id: str
    model_key: str
    image_name: str
    image_digest: str
    score: float
    threshold: float | None
    decision: Decision | None
    n_regions: int
    area_mm2: float
    memory_checksum: str
    extractor_id: str
    mm_per_px: float
    service_version: str
    params: Mapping[str, Any]


# By annotation; everything else is text.
_SQL_TYPES = {
    "float": "REAL NOT NULL",
    "float | None": "REAL",
    "int": "INTEGER NOT NULL",
    "str | None": "TEXT",
    "Decision | None": "TEXT",
}
_COLUMNS = {each.name: _SQL_TYPES.get(str(each.type), "TEXT NOT NULL") for each in fields(Entry)}
_SCHEMA = [
    f"CREATE TABLE decisions (id INTEGER PRIMARY KEY AUTOINCREMENT, {', '.join(map(' '.join, _COLUMNS.items()))})",
    "CREATE INDEX decisions_by_roi ON decisions (role_id, roi_id, id)",
    "CREATE INDEX decisions_by_time ON decisions (time_utc)",
    "CREATE INDEX decisions_by_image ON decisions (image_digest)",
    "CREATE INDEX decisions_by_request ON decisions (request_id)",
    *(
        f"CREATE TRIGGER decisions_no_{verb.lower()} BEFORE {verb} ON decisions "
        "BEGIN SELECT RAISE(ABORT, 'decisions are never changed'); END"
        for verb in ("UPDATE", "DELETE")
    ),
    f"PRAGMA user_version = {VERSION}",
]
_INSERT = f"INSERT INTO decisions ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which entries are asked for; None asks for all. ``since`` is included, ``until`` is not."""

    recipe_id: str | None = None
    role_id: str | None = None
    roi_id: str | None = None
    image_digest: str | None = None
    request_id: str | None = None
    decision: Decision | None = None
    since: datetime | None = None
    until: datetime | None = None
    before_id: int | None = None


def entry_of(
    key: ModelKey,
    inspection: Inspection,
    *,
    source: Source,
    image_name: str,
    request_id: str,
    caller: str | None,
    service_version: str,
) -> Entry:
    """Return what is kept of an inspection, with everything that its score and its decision followed from."""
    params = dict(inspection.params)
    if inspection.calibration is not None:
        params["calibration"] = inspection.calibration.to_fields()
    return Entry(
        time_utc=_text(datetime.now(UTC)),
        source=source,
        request_id=request_id,
        caller=caller,
        recipe_id=key.recipe_id,
        role_id=key.role_id,
        roi_id=key.roi_id,
        model_key=key.model_key,
        image_name=image_name,
        image_digest=params.pop("image_digest"),
        score=inspection.score,
        threshold=inspection.threshold,
        decision=inspection.decision,
        n_regions=len(inspection.regions),
        area_mm2=sum(region.area_mm2 for region in inspection.regions),
        memory_checksum=params.pop("memory_checksum"),
        extractor_id=params.pop("extractor_id"),
        mm_per_px=params.pop("mm_per_px"),
        service_version=service_version,
        params=params,
    )


class Audit:
    """Keeps decisions in a file and looks them up; several processes may use one file.

    Args:
        path: The file; its folder is made on the first decision.
        keeps: Whether decisions are kept; what was kept before can be looked up all the same.
    """

    def __init__(self, path: Path, *, keeps: bool) -> None:
        self._path = path
        self._keeps = keeps
        self._waiting: queue.SimpleQueue[tuple[Sequence[Any], Future[None]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._writer: threading.Thread | None = None

    @property
    def keeps(self) -> bool:
        """Whether decisions are kept."""
        return self._keeps

    def keep(self, entry: Entry) -> None:
        """Write a decision down; it is on the disk when this returns. Does nothing where none are kept.

        Entries that arrive while the disk is busy with others go to it together: it takes as long for ten as for one.

        Raises:
            AuditUnavailable: If it cannot be written in time; the decision must not be given then. A disk that answers
                later leaves a row of a decision that nobody was given, never the other way round.
        """
        if not self._keeps:
            return
        with self._lock:
            if self._writer is None:
                self._writer = threading.Thread(target=self._write, name="audit", daemon=True)
                self._writer.start()
        row, kept = _row(entry), Future[None]()
        self._waiting.put((row, kept))
        try:
            kept.result(_GIVE_UP_S)
        except (sqlite3.Error, OSError) as error:  # a TimeoutError is an OSError
            _log.error("a decision could not be kept", exc_info=error)
            raise AuditUnavailable(
                "The decision could not be written to the audit file, so it is not given. Look whether the disk is "
                "full or the file is locked, then send the image again."
            ) from error

    def find(self, wanted: Query, limit: int) -> list[tuple[int, Entry]]:
        """Return the entries that a query asks for with their numbers, newest first, at most ``limit``.

        Raises:
            AuditOff: If no decision was ever kept.
            AuditUnavailable: If the file cannot be read.
        """
        if not self._path.is_file():
            if self._keeps:
                return []
            raise AuditOff("No decisions are kept here. Set BDI_AUDIT=1 and start the service again.")
        conditions, values = _conditions(wanted)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        names = ", ".join(_COLUMNS)
        try:
            with closing(_opened(self._path)) as connection:
                connection.execute("PRAGMA query_only = 1")
                rows = connection.execute(
                    f"SELECT id, {names} FROM decisions{where} ORDER BY id DESC LIMIT ?", [*values, limit]
                ).fetchall()
        except sqlite3.Error as error:
            _log.error("the audit file could not be read", exc_info=error)
            raise AuditUnavailable("The audit file cannot be read now. The service's log says why.") from error
        return [(row[0], _entry(row[1:])) for row in rows]

    def close(self) -> None:
        """Finish what waits and close the file."""
        with self._lock:
            writer, self._writer = self._writer, None
        if writer is not None:
            self._waiting.put(None)
            writer.join(_GIVE_UP_S)

    def _write(self) -> None:
        connection: sqlite3.Connection | None = None
        while True:
            batch = [self._waiting.get()]
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            waiting = [each for each in batch if each is not None]
            try:
                if waiting:
                    connection = connection or _ready(self._path)
                    with connection:
                        connection.execute("BEGIN IMMEDIATE")
                        connection.executemany(_INSERT, [row for row, _ in waiting])
            except Exception as error:
                for _, kept in waiting:
                    kept.set_exception(error)
                if connection is not None:  # The file may have been replaced or its disk gone: begin anew.
                    connection.close()
                    connection = None
            else:
                for _, kept in waiting:
                    kept.set_result(None)
            if len(waiting) < len(batch):
                if connection is not None:
                    connection.close()
                return


def _opened(path: Path) -> sqlite3.Connection:
    # Transactions are ours: what the module begins by itself takes its lock too late.
    return sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)


def _ready(path: Path) -> sqlite3.Connection:
    """Return a connection to a file that has the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = _opened(path)
    try:
        # A log beside the file, so that a reader and a writer do not wait for each other. FULL, because in this mode
        # NORMAL does not wait for the disk, and the decisions of the last seconds before a power cut would be gone.
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        with connection:
            connection.execute("BEGIN IMMEDIATE")  # before it is read: of two processes, one makes the table
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                raise sqlite3.DatabaseError(f"the audit file has version {version}, this service knows {VERSION}")
            for statement in () if version else _SCHEMA:
                connection.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection


def _row(entry: Entry) -> list[Any]:
    values = {name: getattr(entry, name) for name in _COLUMNS}
    values["params"] = json.dumps(entry.params, allow_nan=False, default=dict)  # read-only mappings
    # A file name may hold half of a surrogate pair, which SQLite does not take.
    values["image_name"] = entry.image_name.encode("utf-8", "replace").decode()
    return list(values.values())


def _entry(row: Sequence[Any]) -> Entry:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["params"] = json.loads(values["params"])
    return Entry(**values)


def _conditions(wanted: Query) -> tuple[list[str], list[Any]]:
    comparisons = {"since": "time_utc >= ?", "until": "time_utc < ?", "before_id": "id < ?"}
    asked = {each.name: value for each in fields(wanted) if (value := getattr(wanted, each.name)) is not None}
    values = [_text(value) if isinstance(value, datetime) else value for value in asked.values()]
    return [comparisons.get(name, f"{name} = ?") for name in asked], values


def _text(time: datetime) -> str:
    """Return a time as ISO 8601 in UTC with microseconds: such texts sort as the times do."""
    with suppress(OverflowError):  # the first or the last day that there is, in another time zone
        time = time.astimezone(UTC)
    return time.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
