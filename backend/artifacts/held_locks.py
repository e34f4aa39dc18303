"""Whether the lock files that are held still lie where the other processes look for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import BaseFileLock

from backend.artifacts.files import LOCK_NAME, identity
from backend.errors import StorageFailed


class HeldLocks:
    """The locks that this process holds, by the folders that they are of."""

    def __init__(self) -> None:
        self._identities: dict[Path, tuple[int, int] | None] = {}

    @contextmanager
    def holding(self, lock: BaseFileLock, folder: Path, *, is_right: Callable[[], bool]) -> Iterator[None]:
        """Watch over a lock that was acquired while the ``with`` block runs, and release it afterwards.

        Raises:
            StorageFailed: If its file is gone by now, or the folder is not the right one.
        """
        is_outermost = lock.lock_counter == 1
        try:
            if is_outermost:
                self._identities[folder] = identity(folder / LOCK_NAME)
                if self._identities[folder] is None or not is_right():
                    raise _folder_changed()
            yield
        finally:
            if is_outermost:
                self._identities.pop(folder, None)
            lock.release()

    def check(self, *paths: Path) -> None:
        """Raise StorageFailed if a folder above, whose lock is held, is not the one any more that the lock is of."""
        for folder in {folder for path in paths for folder in path.parents}:
            if folder in self._identities and identity(folder / LOCK_NAME) != self._identities[folder]:
                raise _folder_changed()


def _folder_changed() -> StorageFailed:
    return StorageFailed(
        "The folder of this ROI was moved or replaced while something was stored in it. What was stored before serves "
        "on where it is now. Send the call again."
    )
