"""Tidying up after a crash, behind a running service, and looking after the models folder from then on.

Another process may work on the same folder at this very moment, so nothing is deleted that could be its own: a
temporary file that is not a day old or that a lock holds, a mark whose process lives, anything in a ROI that is locked.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from backend.artifacts.files import is_leftover
from backend.artifacts.job_files import is_abandoned
from backend.artifacts.layout import Entry, orphans, walk
from backend.artifacts.model_key import ModelKey
from backend.errors import InspectionError
from backend.storage import ArtefactStore

_log = logging.getLogger(__name__)

ROUND_S = 600.0


class Upkeep(threading.Thread):
    """Sweeps in the background, at once and then now and then."""

    def __init__(self, store: ArtefactStore, *, round_s: float = ROUND_S) -> None:
        super().__init__(name="upkeep", daemon=True)
        self._store = store
        self._round_s = round_s
        self._end = threading.Event()

    def close(self) -> None:
        """End after the current step."""
        self._end.set()
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        """Sweep until ``close`` is called."""
        while not self._end.is_set():
            try:
                if swept := sweep(self._store, stop=self._end):
                    _log.info("swept what a crash had left: %s", ", ".join(f"{n} {what}" for what, n in swept.items()))
            except (InspectionError, OSError):
                _log.exception("the models folder cannot be looked over")
            self._end.wait(self._round_s)


def sweep(store: ArtefactStore, *, stop: threading.Event | None = None) -> Counter[str]:
    """Walk over a models folder, delete what crashes have left in it, and return what it was.

    That is temporary files and folders, marks of processes that are gone, images without facts and embeddings without
    an image; and an index that a crash has taken is written again. The store learns from the walk how much the folder
    holds, and what was set aside as damaged and not replaced.

    Raises:
        OSError: If a folder cannot be read.
        StorageFailed: If the models folder has vanished.
    """
    stop = stop or threading.Event()
    swept: Counter[str] = Counter()
    by_roi: dict[ModelKey | None, list[Entry]] = defaultdict(list)
    store.folder.check()
    store.quarantine.begin_walk()
    for entry in walk(store.models_dir):
        if stop.is_set():
            return swept
        by_roi[None if entry.artifact.key is None else entry.artifact.key.roi].append(entry)
    store.disk.used_bytes = sum(entry.n_bytes for entries in by_roi.values() for entry in entries)
    store.quarantine.update(entry.artifact for entries in by_roi.values() for entry in entries)
    for entry in by_roi.pop(None, []):
        if entry.artifact.kind in ("temporary", "job_mark") and is_leftover(entry.path):
            swept["temporary files"] += _delete(entry.path)
    for roi, entries in by_roi.items():
        if roi is not None and not stop.is_set():
            swept.update(_sweep_roi(store, roi, entries))
    return +swept


def _delete(path: Path) -> bool:
    """Delete a temporary file or folder, or the mark of a process that is gone; return whether it was done."""
    is_needed = path.suffix == ".cancel" and path.with_suffix(".json").exists()
    if is_needed or (path.suffix == ".alive" and not is_abandoned(path)):
        return False
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:  # another process sweeps as well, or it is not ours to delete
        return False
    return True


def _sweep_roi(store: ArtefactStore, roi: ModelKey, entries: Sequence[Entry]) -> Counter[str]:
    """Sweep what only who holds the ROI's lock writes."""
    swept: Counter[str] = Counter()
    indexed = {entry.artifact.key for entry in entries if entry.artifact.kind == "index"}
    memories = [entry.artifact for entry in entries if entry.artifact.kind == "memory"]
    versioned = {
        entry.artifact.key
        for entry in entries
        if entry.artifact.kind in ("version", "kept_memory") and entry.artifact.key is not None
    }
    bare = [each.key for each in memories if each.key is not None and not each.set_aside and each.key not in indexed]
    try:
        untidy = [key for key in versioned if store.versions(key).is_untidy()]
        if not orphans(entries) and not bare and not untidy:
            return swept
        with store.lock(roi, timeout_s=0):
            present = [*walk(store.models_dir, store.roi_folder(roi))]
            is_whole = all(entry.artifact.kind != "unreadable" for entry in present)
            left = orphans(present) if is_whole else []  # else nobody knows what belongs to what
            store.remove(*(entry.path for entry in left))
            swept["files of images that were never stored"] = len(left)
            for key in bare:
                swept["indices that were written again"] += store.renew_index(key)
            for key in untidy:
                swept["files of versions that are not kept"] += store.versions(key).sweep()
    except InspectionError:  # locked, damaged, or not to be read: whoever works on it will see
        _log.info("%s was not swept", roi)
    return swept
