"""How a new memory, and the index beside it, take the place of the old ones."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from backend.artifacts.files import TEMP_PREFIX, replace, sync_folder

_log = logging.getLogger(__name__)


def index_of(memory: Path) -> Path:
    """Return where the FAISS index of a memory lies."""
    return memory.with_name("index.faiss")


def switch_memory(new: Path, memory: Path) -> None:
    """Rename a new memory over the old one, durably; the old one's index does not outlive it.

    Raises:
        OSError: If it cannot be renamed, or not be made durable.
    """
    index = index_of(memory)
    hidden = index.with_name(f"{TEMP_PREFIX}{index.name}")
    try:
        if index.exists():
            replace(index, hidden)
            sync_folder(memory.parent)
        replace(new, memory)
    except BaseException:
        with suppress(OSError):
            if new.exists() and hidden.exists():
                replace(hidden, index)
        raise
    sync_folder(memory.parent)
    with suppress(OSError):  # It is swept at the next start.
        hidden.unlink(missing_ok=True)


def put_index(new_index: Path, memory: Path) -> None:
    """Put an index beside its memory. The fit does not fail with it: the memory is in force and on disk already."""
    try:
        replace(new_index, index_of(memory))
        sync_folder(memory.parent)
    except OSError:
        _log.exception("the FAISS index could not be put beside its memory; it is written at the next start")
