"""What lies in a models folder and is not ours: it is passed over, and named once in the log."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)

_OF_SYSTEMS: Final = frozenset(
    {
        *("lost+found", "$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db"),
        *("desktop.ini", ".ds_store", ".spotlight-v100", ".fseventsd", ".trashes", ".snapshot", ".zfs", "@eadir"),
        *("#recycle", "found.000", ".directory"),
    }
)
_BEGINNINGS_OF_SYSTEMS: Final = ("._", ".trash-", ".fuse_hidden", ".nfs", "~$")
_MOST_NAMED: Final = 1000

_named: set[Path] = set()
_lock = threading.Lock()


def is_of_system(name: str) -> bool:
    """Return whether an operating system, a file server or a file manager puts something of this name into folders."""
    lowered = name.casefold()
    return lowered in _OF_SYSTEMS or lowered.startswith(_BEGINNINGS_OF_SYSTEMS)


def pass_over(path: Path, why: str) -> None:
    """Name something that is passed over in the log, once in the life of the process."""
    with _lock:
        if path in _named or len(_named) >= _MOST_NAMED:
            return
        _named.add(path)
    _log.warning("%s is passed over: %s", path, why)
