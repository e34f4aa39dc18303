"""Damaged files, set aside and remembered.

A file that does not match its digest is renamed to ``<name>.corrupt-<UTC time>`` and stays there for whoever wants to
know what happened. While no new file has taken its place, what it held counts as damaged, never as "never there": the
files on disk say so, to every process and after every restart. What is remembered here is for ``/health`` alone, which
must not touch the disk.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

from backend.artifacts.files import names_in, sync_folder
from backend.artifacts.layout import Place, place_of

_log = logging.getLogger(__name__)

_MARK = ".corrupt-"
_TOLD = 3


class Quarantine:
    """What is known to be damaged below one models folder."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._lock = threading.Lock()
        self._damaged: dict[Place, bool] = {}  # and whether the file was set aside

    @property
    def reason(self) -> str | None:
        """What is damaged and how to mend it, or None; never waits, tells no path."""
        with self._lock:
            sentences = sorted({_sentence(place) for place in self._damaged})
        more = len(sentences) - _TOLD
        return " ".join(sentences[:_TOLD] + ([f"And {more} more; see the log."] if more > 0 else [])) or None

    def set_aside(self, path: Path) -> None:
        """Rename a damaged file and remember it. Hold the ROI's lock, and have read the file under it.

        Raises:
            OSError: If it cannot be renamed.
        """
        now = datetime.now(UTC)
        while (aside := path.with_name(f"{path.name}{_MARK}{now:%Y%m%dT%H%M%SZ}")).exists():
            now += timedelta(seconds=1)  # an older one is not overwritten
        path.rename(aside)
        sync_folder(path.parent)
        self.remember(path, is_aside=True)
        _log.error("%s is damaged; it was set aside as %s", path, aside.name)

    def remember(self, path: Path, *, is_aside: bool) -> None:
        """Remember a damaged file."""
        place = self._place(path)
        if place is not None:
            with self._lock:
                self._damaged[place] = is_aside

    def forget(self, path: Path) -> None:
        """Forget about a file: it is sound, replaced, or deleted on purpose."""
        place = self._place(path)
        with self._lock:
            if place is not None:
                self._damaged.pop(place, None)

    def update(self, set_aside: Iterable[Place]) -> None:
        """Take over what a walk over the folder has found set aside and not replaced; see ``unreplaced``."""
        found = {_identity(place) for place in set_aside}
        with self._lock:
            kept = {place: False for place, is_aside in self._damaged.items() if not is_aside}
            self._damaged = {**dict.fromkeys(found, True), **kept}

    def _place(self, path: Path) -> Place | None:
        place = place_of(PurePosixPath(path.relative_to(self._models_dir).as_posix()))
        return None if place is None else _identity(place)


def set_aside_copies(path: Path) -> list[Path]:
    """Return what was set aside of a file, oldest first.

    Raises:
        StorageFailed: If the folder cannot be read.
    """
    return [path.with_name(name) for name in sorted(names_in(path.parent)) if name.startswith(path.name + _MARK)]


def unreplaced(places: Iterable[Place]) -> set[Place]:
    """Return the places of all files that were set aside and have no successor."""
    aside: set[Place] = set()
    live: set[Place] = set()
    for place in places:
        (aside if place.set_aside else live).add(_identity(place))
    return aside - live


def _identity(place: Place) -> Place:
    return replace(place, set_aside="")


def _sentence(place: Place) -> str:
    if place.kind == "memory":
        return f"The memory of {place.key} was damaged and is set aside: fit it again with /fit_ok."
    if place.kind == "calibration":
        return f"The calibration of {place.key} was damaged and is set aside: calibrate it again."
    what = f"A stored {place.label} image of {place.key}" if place.label else f"A file of {place.key}"
    return f"{what} was damaged and is set aside: upload it again, or delete it."
