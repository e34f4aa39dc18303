"""Where the audit's file lies: whether it is still the one that was opened, and what must go before another is opened.

SQLite keeps a log beside the file, under the file's name. Where the file is moved or removed while it is open, that log
stays, and would be taken for the log of whatever file comes to lie at the path next.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from filelock import FileLock

from backend.artifacts.files import identity, stamp
from backend.artifacts.models_folder import ModelsFolder

_log = logging.getLogger(__name__)

MOVED_SHOWN_S: Final = 3600.0
"""How long health says that the file was moved, s; the log says it for good."""

_LOCK_PATIENCE_S: Final = 5.0
_TRY_S: Final = 0.2
_LOGS: Final = ("-wal", "-shm")


class AuditFile:
    """The path of the audit's file.

    Args:
        path: The file.
        models: The models folder, if the file lies in it: then it is not made where that has vanished.
    """

    def __init__(self, path: Path, models: ModelsFolder | None = None) -> None:
        self.path = path
        self._models = models if models is not None and path.is_relative_to(models.path) else None
        self._opened: dict[Path, tuple[int, int] | None] = {}
        self._written: tuple[int, int, int] | None = None
        self._moved_s: float | None = None  # monotonic
        self._moved_at = ""

    @property
    def moved(self) -> str | None:
        """Since when decisions are kept in another file than before, in a sentence, or None."""
        if self._moved_s is None or time.monotonic() - self._moved_s > MOVED_SHOWN_S:
            return None
        return (
            "The audit file was moved or removed while the service ran; decisions are kept in a new one at its path "
            f"since {self._moved_at}."
        )

    @property
    def is_in_place(self) -> bool:
        """Whether the path still leads to the file that was opened, if one was; raises StorageFailed if unknown."""
        return all(identity(path) == opened for path, opened in self._opened.items())

    @property
    def is_as_written(self) -> bool:
        """Whether nobody else has changed the file since ``written`` was called; another process may have by right."""
        return stamp(self.path) == self._written

    def written(self) -> None:
        """Say that the file is now as one's own connection knows it."""
        self._written = stamp(self.path)

    def check_folder(self) -> None:
        """Raise StorageFailed if the models folder has vanished, and the file with it."""
        if self._models is not None:
            self._models.check()

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Open the file in the ``with`` block, after its connection before was closed; what opened it is remembered.

        Raises:
            OSError: If another process opens it for long.
            StorageFull, StorageFailed: If the models folder has vanished, or cannot be made.
        """
        if self._models is not None:
            self._models.ensure()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=_LOCK_PATIENCE_S, thread_local=False):
            is_gone = identity(self.path) is None
            is_another = not is_gone and self._opened.get(self.path, identity(self.path)) != identity(self.path)
            for log in map(self._beside, _LOGS):
                if is_gone or (is_another and identity(log) == self._opened.get(log)):
                    log.unlink(missing_ok=True)
            if self._opened and (is_gone or is_another):
                self._moved_s, self._moved_at = time.monotonic(), f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
                _log.error("the audit file %s was moved or removed; decisions go to a new one there", self.path)
            yield
            self.written()
            self._opened = {path: identity(path) for path in (self.path, *map(self._beside, _LOGS))}

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)


def try_to_write(path: Path) -> None:
    """Raise sqlite3.Error if the file is no audit, is damaged at its end, or may not be written."""
    # Not ``connect(path)``, which would make it.
    address = f"{path.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=_TRY_S, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT * FROM decisions ORDER BY id DESC LIMIT 1").fetchall()
        connection.execute("ROLLBACK")
