"""The models folder itself: whether it is there, or has vanished, as a disk does that is no longer mounted.

A folder that has vanished looks like a new one. The marker, an empty file, tells them apart: it is made when something
is first stored, and a process that has seen the folder with it goes on with no other one.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from backend.artifacts.files import identity, make_folder, write_atomic, writing
from backend.artifacts.folders import roi_folders
from backend.artifacts.layout import MARKER
from backend.errors import StorageFailed, Unavailable

_log = logging.getLogger(__name__)


class ModelsFolder:
    """A models folder; nothing is made before the first write.

    Args:
        path: Where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None  # the identity of the folder when it was last known to be ours

    def check(self) -> None:
        """Raise StorageFailed if the folder was there, and has vanished; or if the system does not say."""
        now = identity(self.path)
        if now is not None and identity(self.path / MARKER) is not None:
            self._seen = now
        elif self._seen is not None:
            if now != self._seen or not any(self.path.iterdir()):
                raise StorageFailed(
                    "The models folder has vanished: its disk is no longer mounted, or it was moved, emptied or "
                    "deleted. Bring it back; what was stored in it serves on then. If it is to begin anew, start the "
                    "service again."
                )
            self._mark_again()

    def adopt(self) -> None:
        """See whether the folder is there, and give the marker to one of an older version that holds ROIs."""
        self.check()
        if self._seen is None and next(roi_folders(self.path), None) is not None:
            self._seen = identity(self.path)
            self._mark_again()

    def ensure(self) -> None:
        """Make the folder where there never was one.

        Raises:
            StorageFull, StorageFailed: If it cannot be made, or has vanished.
        """
        self.adopt()
        if self._seen is None:
            with writing():
                make_folder(self.path)
                write_atomic(self.path / MARKER, b"")
                self._seen = identity(self.path)

    def _mark_again(self) -> None:
        """Put the marker into the very folder that was seen, in which files of ours lie without it."""
        _log.info("the models folder gets its marker, %s", MARKER)
        with suppress(Unavailable):  # The folder is known by its identity as well, to this process.
            write_atomic(self.path / MARKER, b"")
