"""Locks on ROIs: one writer at a time, in this process and in others on the same models folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from backend.artifacts.files import make_folder, writing
from backend.errors import Unavailable

LOCK_FILE = ".lock"


class RoiLocks:
    """The locks that the threads of this process hold."""

    def __init__(self) -> None:
        self._held: set[tuple[int, Path]] = set()  # by thread

    @contextmanager
    def hold(self, folder: Path, *, name: str, timeout_s: float) -> Iterator[None]:
        """Hold a ROI; its folder is made where there is none.

        Args:
            folder: The ROI's folder.
            name: What an error calls the ROI.
            timeout_s: How long to wait for another writer.

        Raises:
            Unavailable: If another writer holds it for longer.
            StorageFull, StorageFailed: If the folder cannot be made.
        """
        make_folder(folder)
        lock = FileLock(folder / LOCK_FILE, timeout=timeout_s, thread_local=False)
        with writing():
            try:
                lock.acquire()
            except Timeout as error:  # an OSError, too
                message = f"Another fit of {name} has been running for a long time. Try again later."
                raise Unavailable(message) from error
        held = threading.get_ident(), folder
        self._held.add(held)
        try:
            yield
        finally:
            self._held.discard(held)
            lock.release()

    @contextmanager
    def hold_at_once(self, folder: Path, *, name: str) -> Iterator[None]:
        """Hold a ROI if nobody else does, or if this thread does already; raises as ``hold``."""
        if (threading.get_ident(), folder) in self._held:
            yield
        else:
            with self.hold(folder, name=name, timeout_s=0):
                yield
