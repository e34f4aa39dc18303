"""The lock of each ROI: one writer at a time, in this process and in others on the same folder."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

from filelock import FileLock, Timeout

from backend.artifacts.files import LOCK_NAME, make_folder, writing
from backend.deadlines import remaining_s
from backend.errors import Busy

LOCK_TIMEOUT_S = 600.0
"""How long jobs and commands wait; a request waits ``LOCK_WAIT_S``."""

LOCK_WAIT_S = 5.0

MAX_WAITING = 16
"""Most threads that wait for one ROI: the others are for the other ROIs."""


class RoiLocks:
    """The locks of the ROIs' folders; a thread that holds one may take it again."""

    def __init__(self) -> None:
        self._locks: dict[Path, FileLock] = {}
        self._waiting: Counter[Path] = Counter()
        self._guard = threading.Lock()

    def acquire(self, folder: Path, timeout_s: float | None = None) -> FileLock:
        """Return the lock of a folder, acquired; the folder is made where it is missing.

        Raises:
            Busy: If another writer holds it for longer than ``timeout_s`` (None: as long as a request or a job may
                wait), or many wait for it already.
            StorageFull, StorageFailed: If the folder or the lock's file cannot be made.
        """
        if timeout_s is None:
            left_s = remaining_s()
            timeout_s = LOCK_TIMEOUT_S if left_s is None else min(LOCK_WAIT_S, left_s)
        make_folder(folder)
        lock = self._locks.setdefault(folder, FileLock(folder / LOCK_NAME))
        busy = "Another fit or upload holds this ROI. Inspections go on; send this call again in a moment."
        with self._guard:
            if timeout_s and not lock.is_locked and self._waiting[folder] >= MAX_WAITING:
                raise Busy(busy)
            self._waiting[folder] += 1
        try:
            with writing():
                lock.acquire(timeout=timeout_s)
        except Timeout as error:
            raise Busy(busy) from error
        finally:
            with self._guard:
                self._waiting[folder] -= 1
                if not self._waiting[folder]:
                    del self._waiting[folder]
        return lock
