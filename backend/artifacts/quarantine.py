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
from pathlib import Path

from backend.artifacts.files import names_in, sync_folder
from backend.artifacts.layout import CORRUPT_MARK, ArtifactPath, Kind, classify_path, unreplaced

_log = logging.getLogger(__name__)

_LISTED = 3
_HARMLESS: frozenset[Kind] = frozenset({"version", "kept_memory"})
"""What no answer depends on but that to whoever wants it back: no reason for ``/health``."""


class Quarantine:
    """What is known to be damaged below one models folder."""

    def __init__(self, models_dir: Path) -> None:
        self._models_dir = models_dir
        self._lock = threading.Lock()
        self._damaged: set[ArtifactPath] = set()
        self._since: dict[ArtifactPath, bool] = {}  # what was remembered or forgotten since the last walk began

    @property
    def reason(self) -> str | None:
        """What is damaged and how to mend it, or None; never waits, names no path."""
        with self._lock:
            found = sorted({_description(artifact) for artifact in self._damaged})
        more = len(found) - _LISTED
        return " ".join(found[:_LISTED] + ([f"And {more} more; see the log."] if more > 0 else [])) or None

    def set_aside(self, path: Path) -> None:
        """Rename a damaged file and remember it. Hold the ROI's lock, and have read the file under it.

        Raises:
            OSError: If it cannot be renamed.
        """
        now = datetime.now(UTC)
        while (aside := path.with_name(f"{path.name}{CORRUPT_MARK}{now:%Y%m%dT%H%M%SZ}")).exists():
            now += timedelta(seconds=1)  # an older one is not overwritten
        path.rename(aside)
        sync_folder(path.parent)
        self.remember(path)
        _log.error("%s is damaged; it was set aside as %s", path, aside.name)

    def remember(self, path: Path) -> None:
        """Remember a damaged file."""
        self._note(self._artifact(path), is_damaged=True)

    def forget(self, path: Path) -> None:
        """Forget about a file: it is sound, replaced, or deleted on purpose."""
        self._note(self._artifact(path), is_damaged=False)

    def begin_walk(self) -> None:
        """Say that a walk over the folder begins; what is remembered or forgotten from now on goes before its finds."""
        with self._lock:
            self._since = {}

    def update(self, found: Iterable[ArtifactPath]) -> None:
        """Take over what a walk over the folder has found; a damaged file still in its place is found by its reader."""
        missing = unreplaced(
            artifact for artifact in found if artifact.key is not None and artifact.kind not in _HARMLESS
        )
        damaged = {_as_one(artifact) for artifact in missing}
        with self._lock:
            for artifact, is_damaged in self._since.items():
                damaged = damaged | {artifact} if is_damaged else damaged - {artifact}
            self._damaged = damaged

    def _note(self, artifact: ArtifactPath, *, is_damaged: bool) -> None:
        if artifact.kind in _HARMLESS:
            return
        with self._lock:
            if is_damaged or artifact in self._damaged:
                self._since[artifact] = is_damaged
            if is_damaged:
                self._damaged.add(artifact)
            else:
                self._damaged.discard(artifact)

    def _artifact(self, path: Path) -> ArtifactPath:
        return _as_one(classify_path(path.relative_to(self._models_dir).as_posix()).in_use)


def set_aside_copies(path: Path) -> list[Path]:
    """Return what was set aside of a file, oldest first.

    Raises:
        StorageFailed: If the folder cannot be read.
    """
    return [path.with_name(name) for name in sorted(names_in(path.parent)) if name.startswith(path.name + CORRUPT_MARK)]


def _as_one(artifact: ArtifactPath) -> ArtifactPath:
    """Return an image for its facts: the upload that mends either writes the facts last."""
    return replace(artifact, kind="image") if artifact.kind == "facts" else artifact


def _description(artifact: ArtifactPath) -> str:
    if artifact.kind == "memory":
        return f"The memory of {artifact.key} was damaged and is set aside: fit it again with /fit_ok."
    if artifact.kind == "calibration":
        return f"The calibration of {artifact.key} was damaged and is set aside: calibrate it again."
    what = f"A stored {artifact.label} image of {artifact.key}" if artifact.label else f"A file of {artifact.key}"
    return f"{what} was damaged and is set aside: upload it again, or delete it."
