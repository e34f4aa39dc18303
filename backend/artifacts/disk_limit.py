"""How much the models folder may hold."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import NamedTuple

from backend.artifacts.files import stamp, writing
from backend.artifacts.layout import walk
from backend.errors import StorageFull

_GB = 1_000_000_000


class DiskSpace(NamedTuple):
    """Room on a disk, bytes."""

    total: int
    free: int


def disk_space(folder: Path) -> DiskSpace:
    """Return the room on the disk that a folder lies on, or would lie on."""
    found = shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists()))
    return DiskSpace(found.total, found.free)


class DiskLimit:
    """Counts the bytes below a models folder, and refuses a write that would pass the limit.

    Walking the folder takes as long as it has files, so it is walked now and then, and what this process writes and
    deletes meanwhile is added. Writes at the same moment may pass the limit together.

    Args:
        models_dir: The folder.
        max_gb: Most that it may hold, 10⁹ bytes; 0 sets no limit.

    Attributes:
        used_bytes: What it holds, or None before it was walked. Whoever walks sets it; what is written meanwhile counts
            from the next walk on.
    """

    def __init__(self, models_dir: Path, max_gb: float = 0.0) -> None:
        self._models_dir = models_dir
        self._max_bytes = int(max_gb * _GB)
        self.used_bytes: int | None = None
        self._lock = threading.Lock()

    def check(self, more_bytes: int) -> None:
        """Raise StorageFull if the folder would hold more than it may after a write that adds so many bytes."""
        if not self._max_bytes or more_bytes <= 0:
            return
        if self.used_bytes is None:
            with writing():
                self.used_bytes = sum(entry.n_bytes for entry in walk(self._models_dir))
        used = self.used_bytes
        if used + more_bytes > self._max_bytes:
            raise StorageFull(
                f"The models folder holds {used / _GB:.3g} GB of the {self._max_bytes / _GB:.3g} GB that "
                "BDI_MAX_DISK_GB allows. What was stored before serves on. Delete images that are no longer needed, or "
                "raise the limit.",
                details={"used_bytes": used, "max_bytes": self._max_bytes, "needed_bytes": more_bytes},
            )

    def short_of(self, n_bytes: int, error: StorageFull) -> int:
        """Return how many bytes more than there is room for a write would have taken that failed with an error."""
        if (limit := error.details) and "max_bytes" in limit:
            return int(limit["used_bytes"] + limit["needed_bytes"] - limit["max_bytes"])
        try:
            return max(1, n_bytes - shutil.disk_usage(self._models_dir).free)
        except OSError:
            return n_bytes

    def count(self, more_bytes: int) -> None:
        """Count bytes that were written or, below 0, deleted."""
        with self._lock:
            if self.used_bytes is not None:
                self.used_bytes = max(0, self.used_bytes + more_bytes)


def size_of(path: Path) -> int:
    """Return a file's size in bytes, 0 when there is none."""
    found = stamp(path)
    return 0 if found is None else found[1]
