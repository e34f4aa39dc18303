"""The files of the ROIs below one models folder: where they lie, who may write them, and how damage is found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from backend.artifacts.disk_limit import DiskLimit, size_of
from backend.artifacts.files import read_file, remove, write_atomic
from backend.artifacts.folders import child_folder
from backend.artifacts.formats import OutdatedFormat
from backend.artifacts.held_locks import HeldLocks
from backend.artifacts.model_key import DEFAULT_RECIPE, RECIPES_FOLDER, ModelKey, folder_name
from backend.artifacts.models_folder import ModelsFolder
from backend.artifacts.quarantine import Quarantine, set_aside_copies
from backend.artifacts.roi_locks import RoiLocks
from backend.artifacts.second_names import give_second_name
from backend.artifacts.stored_model import unusable
from backend.errors import ArtefactCorrupt, ArtefactOutdated, InspectionError, StorageFull

_log = logging.getLogger(__name__)

T = TypeVar("T")


class RoiFiles:
    """Reads, writes and locks the files of ROIs."""

    def __init__(self, models_dir: Path, *, max_disk_gb: float = 0.0) -> None:
        """Use ``models_dir``; nothing is made before the first write."""
        self.models_dir = models_dir
        self.folder = ModelsFolder(models_dir)
        self.quarantine = Quarantine(models_dir)
        self.disk = DiskLimit(models_dir, max_disk_gb)
        self._locks = RoiLocks()
        self._held = HeldLocks()

    def roi_folder(self, key: ModelKey) -> Path:
        """Return the folder of a ROI, whether it exists or not; raises StorageFailed if the models folder vanished."""
        self.folder.check()
        root = self.models_dir
        if key.recipe_id != DEFAULT_RECIPE:
            root = root / RECIPES_FOLDER / folder_name(key.recipe_id)
        return child_folder(child_folder(root, key.role_id), key.roi_id)

    def model_folder(self, key: ModelKey) -> Path:
        """Return the folder of a model: the ROI's own, or one below it for another model key."""
        folder = self.roi_folder(key)
        return folder if key.is_default_model else child_folder(folder / "keys", key.model_key)

    def write(self, path: Path, data: bytes) -> None:
        """Write a file as ``write_atomic`` does, within the limit of the models folder.

        Raises:
            StorageFull, StorageFailed: If it cannot be written; the old file is untouched.
        """
        self.folder.ensure()
        self._held.check(path)
        more_bytes = len(data) - size_of(path)

        def put() -> None:
            self.disk.check(more_bytes)
            write_atomic(path, data)

        self.with_room(put, len(data))
        self._held.check(path)  # else it may lie in another folder than what is read
        self.disk.count(more_bytes)
        self.quarantine.forget(path)

    def with_room(self, store: Callable[[], None], n_bytes: int) -> None:
        """Call what stores something, again and again while the disk is full and there is something to give up for it.

        Args:
            store: What stores it.
            n_bytes: How much that is.

        Raises:
            StorageFull, StorageFailed: As ``store`` does in the end.
        """
        given_up: Iterator[object] | None = None
        while True:
            try:
                return store()
            except StorageFull as error:
                if given_up is None:
                    given_up = self.give_up(self.disk.short_of(n_bytes, error))
                if next(given_up, None) is None:
                    raise

    def give_up(self, n_bytes: int) -> Iterator[object]:
        """Delete what is worth less than anything new, and yield whenever it may be enough.

        Args:
            n_bytes: How much room is missing. Where less than that can be given up, nothing is.
        """
        _ = n_bytes
        yield from ()

    def keep_file(self, path: Path, name: Path) -> None:
        """Let a file that is about to be replaced live on under a second name.

        Raises:
            StorageFull, StorageFailed: If that cannot be done.
        """
        self._held.check(path, name)
        before = size_of(name)
        if give_second_name(path, name):
            self.disk.count(size_of(name) - before)
        elif (data := read_file(path)) is not None:
            self.write(name, data)

    def remove(self, *paths: Path) -> None:
        """Delete files durably; raises StorageFailed if one cannot be deleted."""
        self._held.check(*paths)
        sizes = sum(size_of(path) for path in paths)
        remove(*paths)
        self.disk.count(-sizes)
        for path in paths:
            self.quarantine.forget(path)

    def found_damaged(self, key: ModelKey, path: Path, parse: Callable[[bytes], object]) -> None:
        """Set a file aside if ``parse`` raises ValueError for its bytes in a second look, under the ROI's lock, too.

        Where the lock is taken, or the file cannot be renamed, it is only remembered: the next reader tries again.
        """
        try:
            with self.lock(key, timeout_s=0):
                if (data := read_file(path)) is not None:  # else it has been replaced since
                    try:
                        parse(data)
                    except ValueError:
                        self.quarantine.set_aside(path)
        except (InspectionError, OSError) as error:
            _log.warning("%s is damaged and could not be set aside: %s", path, error)
            self.quarantine.remember(path)

    @contextmanager
    def lock(self, key: ModelKey, *, timeout_s: float | None = None) -> Iterator[None]:
        """Hold the ROI against other writers, in this process and in others on the same folder.

        A thread that holds it already may take it again.

        Raises:
            Busy: If another writer holds it for longer than ``timeout_s``, or many wait for it already.
            StorageFull, StorageFailed: If the ROI's folder cannot be made.
        """
        folder = self.roi_folder(key)
        self.folder.ensure()
        lock = self._locks.acquire(folder, timeout_s)
        # Two new ids that differ by case alone may have come to one folder at the same moment.
        with self._held.holding(lock, folder, is_right=lambda: self.roi_folder(key) == folder):
            yield

    def _parsed(self, key: ModelKey, path: Path, parse: Callable[[bytes], T]) -> T | None:
        """Return what a file holds, or None when there is none and never was."""
        data = read_file(path)
        if data is None:
            if not set_aside_copies(path):
                return None
            data = read_file(path)  # again: a new one may have come since
            if data is None:
                self.quarantine.remember(path)
                raise unusable(ArtefactCorrupt, path.name)
        try:
            parsed = parse(data)
        except OutdatedFormat as error:
            raise unusable(ArtefactOutdated, path.name) from error
        except ValueError as error:
            self.found_damaged(key, path, parse)
            raise unusable(ArtefactCorrupt, path.name) from error
        self.quarantine.forget(path)
        return parsed
