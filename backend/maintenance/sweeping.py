"""Tidying up after a crash, behind a running service, and looking after the models folder from then on.

Another process may work on the same folder at this very moment, so nothing is deleted that could be its own: a
temporary file whose writer holds a lock on it, a mark whose process lives, anything in a ROI that is locked.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path, PurePosixPath

from backend.artifacts.files import SETTLED_S, is_ownerless
from backend.artifacts.job_files import is_abandoned
from backend.artifacts.layout import Place, files_below, leftover_of, place_of
from backend.artifacts.model_key import ModelKey
from backend.artifacts.quarantine import unreplaced
from backend.errors import InspectionError
from backend.storage import ArtefactStore

_log = logging.getLogger(__name__)

ROUND_S = 600.0


class Upkeep:
    """Sweeps once in the background, then walks the folder now and then: what it holds, and what is damaged in it."""

    def __init__(self, store: ArtefactStore, *, round_s: float = ROUND_S) -> None:
        self._store = store
        self._round_s = round_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Begin, on a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """End after the current step."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        pause_s = min(SETTLED_S, self._round_s)  # what a crash left seconds ago is too young for the first sweep
        while not self._stop.is_set():
            try:
                look_over(self._store)
                if swept := sweep(self._store, stop=self._stop):
                    _log.info("swept what a crash had left: %s", ", ".join(f"{n} {what}" for what, n in swept.items()))
            except (InspectionError, OSError):
                _log.exception("the models folder cannot be looked over")
            self._stop.wait(pause_s)
            pause_s = self._round_s


def look_over(store: ArtefactStore) -> None:
    """Measure the models folder, and find what was set aside as damaged and not replaced, in one walk.

    Raises:
        OSError: If a folder cannot be read.
    """
    store.disk.walk_begins()
    used, places = 0, []
    for path, status in files_below(store.models_dir):
        used += status.st_size
        place = place_of(PurePosixPath(path.relative_to(store.models_dir).as_posix()))
        if place is not None and place.key is not None:
            places.append(place)
    store.disk.measured(used)
    store.quarantine.update(unreplaced(places))


def sweep(store: ArtefactStore, *, stop: threading.Event | None = None) -> Counter[str]:
    """Delete what crashes have left below a models folder, and return what it was.

    Temporary files and folders, marks of processes that are gone, images without facts and embeddings without an image;
    and an index that a crash has taken is written again.
    """
    swept: Counter[str] = Counter()
    now_s = time.time()
    rois: dict[ModelKey, list[tuple[Path, Place]]] = {}
    for path, _ in files_below(store.models_dir):
        if stop is not None and stop.is_set():
            return swept
        relative = PurePosixPath(path.relative_to(store.models_dir).as_posix())
        place, leftover = place_of(relative), leftover_of(relative)
        if place is None:
            continue
        if leftover is not None:
            swept["temporary files"] += _sweep_temp(store.models_dir / leftover, now_s)
        elif place.kind == "job_mark":
            swept["marks of processes that are gone"] += _sweep_mark(path, now_s)
        elif place.key is not None:
            roi = ModelKey(recipe_id=place.key.recipe_id, role_id=place.key.role_id, roi_id=place.key.roi_id)
            rois.setdefault(roi, []).append((path, place))
    for roi, files in rois.items():
        if stop is None or not stop.is_set():
            swept.update(_sweep_roi(store, roi, [place for _, place in files]))
    return +swept


def _sweep_temp(temp: Path, now_s: float) -> int:
    if not is_ownerless(temp, now_s):
        return 0
    with suppress(OSError):  # another process sweeps as well, or it is not ours to delete
        if temp.is_dir():
            shutil.rmtree(temp)
        else:
            temp.unlink()
        return 1
    return 0


def _sweep_mark(path: Path, now_s: float) -> int:
    with suppress(OSError):
        if now_s - path.stat().st_mtime < SETTLED_S:
            return 0
        if not path.with_suffix(".json").exists() if path.suffix == ".cancel" else is_abandoned(path):
            path.unlink(missing_ok=True)
            return 1
    return 0


def _sweep_roi(store: ArtefactStore, roi: ModelKey, places: list[Place]) -> Counter[str]:
    """Sweep what only who holds the ROI's lock writes."""
    swept: Counter[str] = Counter()
    described = {(place.label, place.digest) for place in places if place.kind == "facts"}
    digests = {digest for _, digest in described}
    doubtful = any(place.kind == "image" and (place.label, place.digest) not in described for place in places)
    doubtful |= any(place.kind == "embeddings" and place.digest not in digests for place in places)
    memories = {place.key for place in places if place.kind == "memory" and not place.set_aside}
    bare = memories - {place.key for place in places if place.kind == "index"}
    if not doubtful and not bare:
        return swept
    try:
        with store.lock(roi, timeout_s=0):
            if doubtful:
                swept["files of images that were never stored"] += store.images(roi).sweep()
            for key in bare:
                swept["indices that were written again"] += store.renew_index(key) if key is not None else 0
    except InspectionError:  # locked, damaged, or not to be read: whoever works on it will see
        _log.info("%s was not swept", roi)
    return swept
