"""The files of the models, and how a new one takes the place of an old one.

    models/<role_id>/<roi_id>/            recipe `default`; others under models/recipes/<recipe_id>/…
        memory.npz                        the memory bank: the one truth; replacing it is the switch to a new fit
        index.faiss                       its FAISS index, for other tools; derived, never read here
        calib.json                        the calibration(s); each names the memory that it belongs to
        images/, embeddings/              see backend/artifacts/image_store.py
        heatmaps/                         the newest heat maps that were asked for as files
        keys/<model_key>/                 the first three again, for a model key that is not the roi_id

A fit that brings its own calibration writes ``calib.json`` first, holding both the old memory's calibration and the
new one's; then it replaces ``memory.npz``. A reader takes the calibration that names the memory it has read. So one
rename switches both, and a crash between the two leaves the old pair in force. ``index.faiss`` is deleted before that
rename and written after it: whoever reads it finds the index of the memory beside it, or none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from backend.artifacts.disk_limit import DiskLimit, size_of
from backend.artifacts.files import read_file, remove, stamp, write_atomic
from backend.artifacts.folders import child_folder
from backend.artifacts.formats import (
    LearnedFacts,
    OutdatedFormat,
    bank_bytes,
    bank_from_bytes,
    calibration_bytes,
    calibrations_from_bytes,
    facts_of_damaged,
)
from backend.artifacts.held_locks import HeldLocks
from backend.artifacts.image_store import ImageStore
from backend.artifacts.model_key import DEFAULT_RECIPE, RECIPES_FOLDER, ModelKey, folder_name
from backend.artifacts.models_folder import ModelsFolder
from backend.artifacts.quarantine import Quarantine, set_aside_copies
from backend.artifacts.roi_locks import RoiLocks
from backend.artifacts.stored_model import Stamps, StoredModel, unusable
from backend.calib import Calibration
from backend.errors import ArtefactCorrupt, ArtefactOutdated, InspectionError, Unavailable
from backend.memory_bank.bank import MemoryBank
from backend.memory_bank.index import faiss_bytes

_log = logging.getLogger(__name__)

_KEPT_CALIBRATIONS = 2

T = TypeVar("T")


class ArtefactStore:
    """The artifacts below one models folder."""

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

    def images(self, key: ModelKey) -> ImageStore:
        """Return the images of a ROI."""
        return ImageStore(
            self.roi_folder(key),
            write=self.write,
            remove=self.remove,
            found_damaged=partial(self.found_damaged, key),
        )

    def stamps(self, key: ModelKey) -> Stamps:
        """Return what changes whenever the memory or the calibration is replaced; raises StorageFailed."""
        folder = self.model_folder(key)
        return stamp(folder / "memory.npz"), stamp(folder / "calib.json")

    def load(self, key: ModelKey) -> StoredModel:
        """Return the model as stored; a calibration that cannot be used is an error for whoever asks for it.

        Raises:
            ArtefactCorrupt: If the memory does not match its digest, or did not and was set aside for that.
            ArtefactOutdated: If an older version of this service wrote the memory.
            StorageFailed: If a file cannot be read.
        """
        for _ in range(5):  # A fit may replace both files while we read them; then read again.
            before = self.stamps(key)
            bank = self._bank(key)
            calibrations: list[Calibration] = []
            calibration_fault = None
            try:
                calibrations = self.calibrations(key)
            except ArtefactCorrupt as error:
                calibration_fault = type(error)
            if self.stamps(key) == before:
                break
        return StoredModel(
            bank=bank, calibrations=tuple(calibrations), calibration_fault=calibration_fault, stamps=before
        )

    def save_bank(
        self,
        key: ModelKey,
        bank: MemoryBank,
        calibration: Calibration | None = None,
        *,
        stored: Sequence[Calibration] | None = None,
    ) -> None:
        """Make a memory, and its calibration where it brings one, the model's own. Call it under ``lock``.

        Args:
            stored: As of ``save_calibration``.

        Raises:
            StorageFull, StorageFailed: If it cannot be written; the old model serves on.
        """
        path = self.model_folder(key) / "memory.npz"
        index = path.with_name("index.faiss")
        if calibration is not None:
            self.save_calibration(key, calibration, stored=stored)
        data, index_data = bank_bytes(bank), faiss_bytes(bank.vectors)
        if index.exists():
            self.remove(index)  # the old memory's does not outlive it
        self.write(path, data)
        try:
            if index_data is not None:
                self.write(index, index_data)
        except Unavailable:  # The fit does not fail with it: the memory is in force and on disk already.
            _log.exception("the FAISS index could not be written; a service writes it when it next sweeps the folder")

    def renew_index(self, key: ModelKey) -> bool:
        """Write the FAISS index again where a crash has taken it; return whether it did. Call it under ``lock``."""
        path = self.model_folder(key) / "index.faiss"
        bank = None if path.exists() else self._bank(key)
        index = None if bank is None else faiss_bytes(bank.vectors)
        if index is not None:
            self.write(path, index)
        return index is not None

    def save_calibration(
        self, key: ModelKey, calibration: Calibration, *, stored: Sequence[Calibration] | None = None
    ) -> None:
        """Store a calibration; the one of another memory is kept beside it until the next. Call it under ``lock``.

        Args:
            stored: Those that are stored, where the caller has read them under the lock; None reads them.

        Raises:
            StorageFull, StorageFailed: If it cannot be written; the old one serves on.
        """
        path = self.model_folder(key) / "calib.json"
        if stored is None:
            try:
                stored = self.calibrations(key)
            except ArtefactCorrupt:
                stored = ()
        others = [each for each in stored if each.memory_checksum != calibration.memory_checksum]
        if len(others) >= _KEPT_CALIBRATIONS:  # A fit whose memory could not be written left its calibration behind.
            with suppress(ArtefactCorrupt):
                bank = self._bank(key)
                others.sort(key=lambda other: bank is None or other.memory_checksum != bank.checksum)
        self.write(path, calibration_bytes([calibration, *others][:_KEPT_CALIBRATIONS]))

    def calibrations(self, key: ModelKey) -> list[Calibration]:
        """Return the stored calibrations, newest first, whatever memory they belong to.

        Raises:
            ArtefactCorrupt: If they do not match their digest, or did not and were set aside for that.
            StorageFailed: If they cannot be read.
        """
        return self._read(key, self.model_folder(key) / "calib.json", calibrations_from_bytes) or []

    def learned_facts(self, key: ModelKey) -> LearnedFacts | None:
        """Return what is still known for certain of a damaged or outdated memory, or None."""
        path = self.model_folder(key) / "memory.npz"
        newest = next(reversed(set_aside_copies(path)), path)
        data = read_file(path if path.exists() else newest)
        return None if data is None else facts_of_damaged(data)

    def learned_by_other_models(self, key: ModelKey) -> set[str]:
        """Return the digests that the ROI's models under other keys have learned.

        Raises:
            ArtefactCorrupt: If the memory of one is damaged, so that nobody knows.
        """
        roi = self.roi_folder(key)
        folders = [roi, *sorted(entry for entry in (roi / "keys").glob("*") if entry.is_dir())]
        own = self.model_folder(key)
        banks = (self._read(key, folder / "memory.npz", bank_from_bytes) for folder in folders if folder != own)
        return {digest for bank in banks if bank is not None for digest in bank.image_digests}

    def write(self, path: Path, data: bytes) -> None:
        """Write a file as ``write_atomic`` does, within the limit of the models folder.

        Raises:
            StorageFull, StorageFailed: If it cannot be written; the old file is untouched.
        """
        self.folder.ensure()
        self._held.check(path)
        more_bytes = len(data) - size_of(path)
        self.disk.check(more_bytes)
        write_atomic(path, data)
        self._held.check(path)  # else it may lie in another folder than what is read
        self.disk.count(more_bytes)
        self.quarantine.forget(path)

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

    def _bank(self, key: ModelKey) -> MemoryBank | None:
        return self._read(key, self.model_folder(key) / "memory.npz", bank_from_bytes)

    def _read(self, key: ModelKey, path: Path, parse: Callable[[bytes], T]) -> T | None:
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
