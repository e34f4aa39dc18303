"""Every decision, written down before it is given: an SQLite file that only grows.

``decisions`` holds one row per inspection that was answered. Triggers refuse to change or delete a row, so that no
later version of this program does it by mistake; whoever may write the file can still do as he likes.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from backend import __version__
from backend.artifacts.layout import AUDIT_IMAGES
from backend.artifacts.model_key import ModelKey
from backend.artifacts.models_folder import ModelsFolder
from backend.errors import AuditOff, AuditUnavailable, NotFound
from backend.machine_errors import is_exhaustion
from backend.scoring.inspection import Inspection
from backend.services.audit_file import AuditFile, try_to_write
from backend.services.audit_images import AuditImages, KeptImage
from backend.services.audit_table import CONDITIONS, INSERT, VERSION, opened, ready, time_text, version_of

_log = logging.getLogger(__name__)

Source = Literal["infer", "infer_dataset", "trial"]

_GIVE_UP_S = 15.0
_TRIES = 5


class Audit:
    """Keeps decisions in a file and looks them up; several processes may use one file.

    Args:
        path: The file; its folder is made on the first decision.
        keeps: Whether decisions are kept; what was kept before can be looked up all the same.
        images_mb: Most that the images beside the rows take together, 10⁶ bytes; 0 keeps none.
        models: The models folder, which the file may lie in.
    """

    def __init__(self, path: Path, *, keeps: bool, images_mb: float = 0.0, models: ModelsFolder | None = None) -> None:
        self.keeps = keeps
        max_bytes = int(images_mb * 1e6) if keeps else 0
        self.images = AuditImages(path.with_name(AUDIT_IMAGES), max_bytes=max_bytes, models=models)
        self._path = path
        self._file = AuditFile(path, models)
        self._failure: str | None = None
        self._writer = _new_writer()
        self._connection: sqlite3.Connection | None = None  # the writer's

    def keep(
        self,
        key: ModelKey,
        inspection: Inspection,
        *,
        source: Source,
        image_name: str,
        request_id: str,
        caller: str | None,
        serial: str | None = None,
        image: bytes | None = None,
    ) -> int | None:
        """Write a decision down and return its number; it is on the disk then. None where none are kept.

        ``serial`` is what the client calls the part; ``image`` the file as it was sent, which is kept beside the row as
        long as there is room (``AuditImages``).

        Raises:
            AuditUnavailable: If it cannot be written in time, or the audit is closed; then the decision must not be
                given. A disk that answers later leaves a row of a decision that nobody was given, never the reverse.
        """
        if not self.keeps:
            return None
        params = dict(inspection.params)
        params["reject_reason"] = inspection.reject_reason
        if inspection.calibration is not None:
            params["calibration"] = inspection.calibration.summary()
        row_id = self.write(
            {
                "time_utc": time_text(datetime.now(UTC)),
                "source": source,
                "request_id": request_id,
                "caller": caller,
                **asdict(key),
                "image_name": image_name,
                "image_digest": params.pop("image_digest"),
                "score": inspection.score,
                "threshold": inspection.threshold,
                "decision": inspection.decision,
                "n_regions": len(inspection.regions),
                "area_mm2": sum(region.area_mm2 for region in inspection.regions),
                "memory_checksum": params.pop("memory_checksum"),
                "extractor_id": params.pop("extractor_id"),
                "mm_per_px": params.pop("mm_per_px"),
                "service_version": __version__,
                "params": params,
                "serial": serial or None,
            }
        )
        if image is not None:
            self.images.keep(row_id, key, inspection, image)
        return row_id

    def write(self, entry: Mapping[str, Any]) -> int:
        """Write one row down, a value for each column, and return its number; raises as ``keep``."""
        row = {
            **entry,
            "params": json.dumps(entry["params"], allow_nan=False, default=dict),  # read-only mappings
            # A file name may hold half of a surrogate pair, which SQLite does not take.
            "image_name": entry["image_name"].encode("utf-8", "replace").decode(),
        }
        try:
            written = self._writer.submit(self._insert, row)
        except RuntimeError as error:
            if not is_exhaustion(error):
                raise AuditUnavailable(
                    "The service is stopping: the decision is not kept, so it is not given."
                ) from error
            # Its queue holds the row already, for a thread that never came. The next call begins with a new one.
            self._writer.shutdown(wait=False, cancel_futures=True)
            self._writer = _new_writer()
            raise
        try:
            row_id = written.result(_GIVE_UP_S)
            self._failure = None
            return row_id
        except (sqlite3.Error, OSError, CancelledError) as error:  # a TimeoutError is an OSError
            written.cancel()
            self._failure = "Decisions cannot be written to the audit file, so none is given; the log has the reason."
            _log.error("a decision could not be kept", exc_info=error)
            raise AuditUnavailable(
                "The decision could not be written to the audit file, so it is not given. Look whether the disk is "
                "full or the file is locked, then send the image again."
            ) from error

    def find(self, limit: int, **wanted: Any) -> list[dict[str, Any]]:
        """Return the rows that are asked for with their ``id``, newest first, at most ``limit``.

        Args:
            limit: The most rows.
            wanted: id, recipe_id, role_id, roi_id, image_digest, request_id, decision, serial, since (datetime,
                included), until (datetime, not included) and before_id; None asks for all.

        Raises:
            AuditOff: If no decision was ever kept.
            AuditUnavailable: If the file cannot be read.
        """
        self._file.check_folder()
        if not self._path.is_file():
            if self.keeps:
                return []
            raise AuditOff("No decisions are kept here. Set BDI_AUDIT=1 and start the service again.")
        asked = {CONDITIONS[name]: value for name, value in wanted.items() if value is not None}
        where = f" WHERE {' AND '.join(asked)}" if asked else ""
        wanted_names = {name for name, value in wanted.items() if value is not None}
        values = [time_text(value) if isinstance(value, datetime) else value for value in asked.values()]
        try:
            with closing(opened(self._path)) as connection:
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA query_only = 1")
                if "serial" in wanted_names and version_of(connection) < VERSION:
                    return []  # written before decisions had one
                rows = connection.execute(
                    f"SELECT * FROM decisions{where} ORDER BY id DESC LIMIT ?", [*values, limit]
                ).fetchall()
        except sqlite3.Error as error:
            _log.error("the audit file could not be read", exc_info=error)
            raise AuditUnavailable("The audit file cannot be read now. The service's log says why.") from error
        return [{"serial": None, **row, "params": json.loads(row["params"])} for row in rows]

    def kept_image(self, row_id: int) -> KeptImage:
        """Return what is kept of the image of a decision.

        Raises:
            NotFound: If there is no such decision, or nothing is kept of its image.
            AuditOff, AuditUnavailable, ArtefactCorrupt, StorageFailed: As ``find``, and as ``AuditImages.find``.
        """
        rows = self.find(1, id=row_id)
        if not rows:
            raise NotFound("There is no such decision. GET /audit lists those that there are.")
        return self.images.find(row_id, rows[0]["image_digest"])

    def troubles(self, *, tries: bool = True) -> list[str]:
        """Return what keeps decisions from being kept, and where they went if that has changed; looks at the disk.

        Args:
            tries: Try whether the file can be written.

        Raises:
            StorageFailed: If the models folder has vanished, and the file with it.
        """
        if not self.keeps:
            return []
        self._file.check_folder()
        unusable = None
        try:
            if not self._file.is_in_place:
                self._writer.submit(self._current).result(_GIVE_UP_S)
            if tries and self._path.exists():
                try_to_write(self._path)
        except (sqlite3.Error, OSError, RuntimeError) as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
                unusable = f"The audit file cannot be used, so no decision is given: {error}."
        return [each for each in (unusable or self._failure, self._file.moved) if each is not None]

    def close(self) -> None:
        """Finish what waits and close the file."""
        self._writer.shutdown()
        self._disconnect()
        self.images.close()

    def _insert(self, row: Mapping[str, Any]) -> int:
        try:
            for _ in range(_TRIES):
                connection = self._current()
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    row_id = int(connection.execute(INSERT, row).lastrowid or 0)
                self._file.written()
                if self._file.is_in_place:
                    return row_id
            raise sqlite3.OperationalError("the audit file is moved again and again")
        except BaseException:
            self._disconnect()  # The file may have been replaced or its disk gone: begin anew.
            raise

    def _current(self) -> sqlite3.Connection:
        """Return a connection to the file that lies at the path now; called by the writer."""
        last_id = 0
        if self._connection is not None and not self._file.is_in_place:
            with suppress(sqlite3.Error):  # what it still holds beside the file goes into it, wherever it lies now
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                (last_id,) = self._connection.execute("SELECT seq FROM sqlite_sequence").fetchone() or (0,)
            self._connection.close()
            self._connection = None
        elif not self._file.is_as_written:
            self._disconnect()  # An older copy may have been put in its place: what the connection knows may not hold.
        if self._connection is None:
            with self._file.opening():
                self._connection = ready(self._path, after_id=last_id)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _new_writer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="audit")
