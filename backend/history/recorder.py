"""The history of decisions: taken from inspections without making them wait, written by one thread of its own.

Whatever becomes of the file, inspections go on: what cannot be written is dropped and counted.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar

from backend.artifacts.files import identity
from backend.artifacts.model_key import ModelKey
from backend.artifacts.models_folder import ModelsFolder
from backend.calib import Calibration
from backend.errors import HistoryUnavailable
from backend.history.database import fault_of, is_unusable, open_to_read, open_to_write, set_aside
from backend.history.record import Decision, Mark, MarkKind
from backend.history.writing import Writer
from backend.memory_bank.bank import MemoryBank
from backend.scoring.inspection import Inspection

_log = logging.getLogger(__name__)

MAX_WAITING: Final = 10_000
_AT_ONCE: Final = 1000
_GATHER_S: Final = 0.5
_READ_PATIENCE_S: Final = 2.0
_CLOSE_PATIENCE_S: Final = 10.0

T = TypeVar("T")


class History:
    """Keeps the last decisions of each model, and what was counted of those before.

    Args:
        path: The file; made with the first decision.
        kept: Decisions that are kept of each model; 0 records nothing.
        models: The models folder that the file lies in: nothing is written where that has vanished.
    """

    def __init__(self, path: Path, *, kept: int, models: ModelsFolder | None = None) -> None:
        self.kept = kept
        self._models = models
        self._path = path
        self._waiting: deque[Decision | Mark] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._writer: Writer | None = None  # the thread's
        self._file: tuple[int, int] | None = None  # what the writer has open
        self._accepted = self._settled = self._dropped = 0
        self._is_urgent = self._is_closed = self._is_suspect = False
        self._fault: str | None = None

    @property
    def dropped(self) -> int:
        """Decisions and marks that could not be kept since the start."""
        return self._dropped

    @property
    def fault(self) -> str | None:
        """What is wrong now, in a sentence; None while all is well."""
        return self._fault

    def record(
        self,
        key: ModelKey,
        inspection: Inspection,
        *,
        filename: str,
        serial: str | None = None,
        audit_entry_id: int | None = None,
        at: float | None = None,
    ) -> None:
        """Have a decision kept; never waits, never fails."""
        if not self.kept:
            return
        try:
            decision = Decision.of(
                key,
                inspection,
                at=time.time() if at is None else at,
                filename=filename,
                serial=serial or None,
                audit_entry_id=audit_entry_id,
            )
        except Exception:
            _log.exception("a decision could not be taken into the history")
            with self._changed:
                self._dropped += 1
        else:
            self._take(decision)

    def mark(
        self, key: ModelKey, kind: MarkKind, memory_checksum: str, *, at: float | None = None, **facts: Any
    ) -> None:
        """Have a change of a model kept beside the decisions; never waits. A fit that changed nothing is not kept.

        Args:
            key: The model.
            kind: What has changed it.
            memory_checksum: The memory in force from now on.
            at: When, s since 1970; now by default.
            facts: What else is known of it, JSON types.
        """
        if self.kept:
            at = time.time() if at is None else at
            self._take(Mark(key=key, at=at, kind=kind, memory_checksum=memory_checksum, facts=facts))

    def mark_fit(self, key: ModelKey, bank: MemoryBank, threshold: float | None) -> None:
        """Mark a fit, with the threshold that was in force after it; see ``mark``."""
        self.mark(key, "fit", bank.checksum, n_ok=len(bank.image_digests), threshold=threshold)

    def mark_calibration(self, key: ModelKey, calibration: Calibration) -> None:
        """Mark a calibration; see ``mark``."""
        self.mark(
            key,
            "calibration",
            calibration.memory_checksum,
            threshold=calibration.threshold,
            score_mode=calibration.score_mode,
            n_ok=calibration.n_ok,
            n_ng=calibration.n_ng,
        )

    def flush(self, timeout_s: float = _READ_PATIENCE_S) -> None:
        """Wait until what was taken so far is written or dropped, but no longer than ``timeout_s``."""
        with self._changed:
            wanted = self._accepted
            if self._settled < wanted:
                self._is_urgent = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._settled >= wanted, timeout_s)

    def read(self, ask: Callable[[sqlite3.Connection], T], *, empty: T) -> T:
        """Return what a question to the file is answered with; ``empty`` where there is no file.

        Raises:
            HistoryUnavailable: If it cannot be read now.
            StorageFailed: If the models folder has vanished.
        """
        if self._models is not None:
            self._models.check()
        self.flush()
        try:
            return self._read(ask)
        except FileNotFoundError:
            return empty
        except (sqlite3.Error, OSError, ValueError) as error:
            _log.error("the history could not be read", exc_info=error)
            if self.kept and self._has_been_set_aside():
                return empty
            raise HistoryUnavailable(
                "The history of decisions cannot be read now; inspections go on. Send the call again. The service's "
                "log says why it could not."
            ) from error

    def close(self) -> None:
        """Write what waits and end."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_CLOSE_PATIENCE_S)

    def _read(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        with closing(open_to_read(self._path)) as connection:
            return ask(connection)

    def _has_been_set_aside(self) -> bool:
        """Have the writer look at the file, and set it aside if it is damaged; return whether it is gone."""
        with self._changed:
            self._is_suspect = True
            self._start()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._is_suspect, _READ_PATIENCE_S)
        return not self._path.exists()

    def _take(self, record: Decision | Mark) -> None:
        with self._changed:
            if self._is_closed or len(self._waiting) >= MAX_WAITING:
                self._dropped += 1
                return
            self._waiting.append(record)
            self._accepted += 1
            self._start()
            if len(self._waiting) in (1, _AT_ONCE):
                self._changed.notify_all()

    def _start(self) -> None:
        """Start the thread; call it under the lock."""
        if self._thread is None and not self._is_closed:
            self._thread = threading.Thread(target=self._run, name="history", daemon=True)
            self._thread.start()

    def _is_due(self) -> bool:
        return self._is_urgent or self._is_closed or self._is_suspect or len(self._waiting) >= _AT_ONCE

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._waiting) or self._is_closed or self._is_suspect)
                self._changed.wait_for(self._is_due, _GATHER_S)  # many decisions cost little more than one
                is_suspect = self._is_suspect
            if is_suspect:
                self._examine()
            with self._changed:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _AT_ONCE))]
                if not batch and self._is_closed:
                    break
            is_written = not batch or self._write(batch)
            with self._changed:
                self._settled += len(batch)
                self._dropped += 0 if is_written else len(batch)
                self._is_urgent = self._is_urgent and bool(self._waiting)
                self._changed.notify_all()
        self._disconnect()

    def _write(self, batch: list[Decision | Mark]) -> bool:
        error: Exception | None = None
        for _ in range(2):  # the second time in a new file
            try:
                self._connected().write(batch)
            except Exception as found:
                error = found
                self._disconnect()
                if not (is_unusable(error) or isinstance(error, ValueError)) or not self._set_aside():
                    break
            else:
                if self._fault is not None:
                    _log.info("the history is written again")
                self._fault = None
                return True
        if self._fault is None:  # once, not at every inspection
            _log.error("the history cannot be written; inspections go on without it", exc_info=error)
        self._fault = (
            "The history of decisions cannot be written; inspections go on. See whether the disk is full, or whether "
            "history.sqlite3 in the models folder may be written."
        )
        return False

    def _connected(self) -> Writer:
        if self._models is not None:
            self._models.ensure()
        if self._writer is not None and self._file != identity(self._path):
            self._disconnect()  # moved, or deleted: what is written to it nobody will read
        if self._writer is None:
            self._writer = Writer(open_to_write(self._path), self.kept)
            self._file = identity(self._path)
        return self._writer

    def _disconnect(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _set_aside(self) -> bool:
        try:
            set_aside(self._path)
        except OSError:
            _log.exception("the history cannot be used, and could not be set aside")
            return False
        return True

    def _examine(self) -> None:
        """Set the file aside if it is damaged."""
        self._disconnect()
        if fault_of(self._path) is not None:
            self._set_aside()
        with self._changed:
            self._is_suspect = False
            self._changed.notify_all()
