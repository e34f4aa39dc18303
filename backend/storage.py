"""Where artefacts lie, and how a new one takes the place of an old one.

    models/<role_id>/<roi_id>/            recipe `default`; others under models/recipes/<recipe_id>/…
        memory.npz                        the memory bank: the one truth; replacing it is the switch to a new fit
        index.faiss                       its FAISS index, for other tools; derived, never read here
        calib.json                        the calibration(s); each names the memory that it belongs to
        images/, embeddings/              see backend/artifacts/image_store.py
        heatmaps/                         the newest heat maps that were asked for as files
        keys/<model_key>/                 the first three again, for a model key that is not the roi_id

A fit that brings its own calibration writes ``calib.json`` first, holding both the old memory's calibration and the
new one's; then it replaces ``memory.npz``. A reader takes the calibration that names the memory it has read. So one
rename switches both, and a crash between the two leaves the old pair in force. ``index.faiss`` is taken away before
that rename and put back after it: a reader finds the index of the memory beside it, or none.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from backend.artifacts.disk_limit import DiskLimit, size_of
from backend.artifacts.files import (
    TEMP_PREFIX,
    make_folder,
    read_file,
    remove,
    replace,
    staged,
    stamp,
    sync_folder,
    write_atomic,
    writing,
)
from backend.artifacts.formats import (
    LearnedFacts,
    bank_bytes,
    bank_from_bytes,
    calibration_bytes,
    calibrations_from_bytes,
    facts_of_damaged,
)
from backend.artifacts.image_store import ImageStore
from backend.artifacts.layout import child_folder
from backend.artifacts.model_key import DEFAULT_RECIPE, RECIPES_FOLDER, ModelKey, folder_name
from backend.artifacts.quarantine import Quarantine, set_aside_copies
from backend.calib import Calibration
from backend.errors import ArtefactCorrupt, InspectionError, Unavailable
from backend.memory_bank.index import faiss_bytes
from backend.patchcore import MemoryBank

_log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 600.0

_KEPT_CALIBRATIONS = 2
_MEMORY_DAMAGED = (
    "The stored memory of this ROI is damaged. Fit it again with /fit_ok: that also learns again what it had learned, "
    "or with mode=replace begins anew."
)
_CALIBRATION_DAMAGED = "The stored calibration of this ROI is damaged. Calibrate it again with /calibrate_ng."

Stamps = tuple[tuple[int, int, int] | None, tuple[int, int, int] | None]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """What the folder of a model holds at one moment.

    Attributes:
        bank: The memory, or None when the ROI was never fitted.
        calibrations: All stored calibrations, newest first.
        calibration_damaged: True when what is stored of a calibration cannot be used.
        stamps: Change whenever one of the files is replaced.
    """

    bank: MemoryBank | None
    calibrations: tuple[Calibration, ...] = ()
    calibration_damaged: bool = False
    stamps: Stamps

    @property
    def calibration(self) -> Calibration | None:
        """The calibration that belongs to this memory, or None.

        Raises:
            ArtefactCorrupt: If what is stored of it is damaged: that is not the same as never calibrated.
        """
        if self.calibration_damaged:
            raise _damaged("calib.json")
        checksum = None if self.bank is None else self.bank.checksum
        return next((each for each in self.calibrations if each.memory_checksum == checksum), None)

    @property
    def stale(self) -> bool:
        """True when there is a calibration, but only of another memory; raises as ``calibration``."""
        return self.calibration is None and self.bank is not None and bool(self.calibrations)


class ArtefactStore:
    """The artefacts below one models folder."""

    def __init__(self, models_dir: Path, *, max_disk_gb: float = 0.0) -> None:
        """Use ``models_dir``; nothing is made before the first write."""
        self.models_dir = models_dir
        self.quarantine = Quarantine(models_dir)
        self.disk = DiskLimit(models_dir, max_disk_gb)
        self._held = threading.local()

    def roi_folder(self, key: ModelKey) -> Path:
        """Return the folder of a ROI, whether it exists or not."""
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
        return ImageStore(self.roi_folder(key), _RoiFiles(self, key))

    def stamps(self, key: ModelKey) -> Stamps:
        """Return what changes whenever the memory or the calibration of a model is replaced.

        Raises:
            StorageFailed: If the disk does not tell.
        """
        folder = self.model_folder(key)
        return stamp(folder / "memory.npz"), stamp(folder / "calib.json")

    def load(self, key: ModelKey) -> StoredModel:
        """Return the model as stored; a damaged calibration is told of by whoever asks for it.

        Raises:
            ArtefactCorrupt: If the memory does not match its digest, or did not and was set aside for that.
            StorageFailed: If a file cannot be read.
        """
        for _ in range(5):  # A fit may replace both files while we read them; then read again.
            before = self.stamps(key)
            bank = self._bank(key)
            calibrations: list[Calibration] = []
            calibration_damaged = False
            try:
                calibrations = self.calibrations(key)
            except ArtefactCorrupt:
                calibration_damaged = True
            if self.stamps(key) == before:
                break
        return StoredModel(
            bank=bank, calibrations=tuple(calibrations), calibration_damaged=calibration_damaged, stamps=before
        )

    def save_bank(self, key: ModelKey, bank: MemoryBank, calibration: Calibration | None = None) -> None:
        """Make a memory, and its calibration where it brings one, the model's own. Call it under ``lock``.

        Raises:
            StorageFull, StorageFailed: If it cannot be written; the old model serves on.
        """
        path = self.model_folder(key) / "memory.npz"
        if calibration is not None:
            self.save_calibration(key, calibration)
        data, index = bank_bytes(bank), faiss_bytes(bank.vectors)
        with writing(), self.disk.room_for(path, len(data)), staged(path, data) as new:
            if index is None:
                _switch(new, path)
            else:
                with self.disk.room_for(_index_of(path), len(index)), staged(_index_of(path), index) as new_index:
                    _switch(new, path)
                    _put_index(new_index, path)
        self.quarantine.forget(path)

    def renew_index(self, key: ModelKey) -> bool:
        """Write the FAISS index again where a crash has taken it; return whether it did. Call it under ``lock``."""
        path = self.model_folder(key) / "memory.npz"
        bank = None if _index_of(path).exists() else self._bank(key)
        index = None if bank is None else faiss_bytes(bank.vectors)
        if index is None:
            return False
        self.write(_index_of(path), index)
        return True

    def save_calibration(self, key: ModelKey, calibration: Calibration) -> None:
        """Store a calibration; the one of another memory is kept beside it until the next. Call it under ``lock``.

        Raises:
            StorageFull, StorageFailed: If it cannot be written; the old one serves on.
        """
        path = self.model_folder(key) / "calib.json"
        try:
            others = [c for c in self.calibrations(key) if c.memory_checksum != calibration.memory_checksum]
        except ArtefactCorrupt:
            others = []
        if len(others) >= _KEPT_CALIBRATIONS:  # A fit whose memory could not be written left its calibration behind.
            in_force = self._checksum_in_force(key)
            others.sort(key=lambda other: other.memory_checksum != in_force)
        self.write(path, calibration_bytes([calibration, *others][:_KEPT_CALIBRATIONS]))

    def calibrations(self, key: ModelKey) -> list[Calibration]:
        """Return the stored calibrations, newest first, whatever memory they belong to.

        Raises:
            ArtefactCorrupt: If they do not match their digest, or did not and were set aside for that.
            StorageFailed: If they cannot be read.
        """
        return self._read(key, self.model_folder(key) / "calib.json", calibrations_from_bytes) or []

    def learned_facts(self, key: ModelKey) -> LearnedFacts | None:
        """Return what is still known for certain of a damaged memory, or None."""
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
        with self.disk.room_for(path, len(data)):
            write_atomic(path, data)
        self.quarantine.forget(path)

    def remove(self, *paths: Path) -> None:
        """Delete files durably.

        Raises:
            StorageFailed: If one cannot be deleted.
        """
        sizes = sum(size_of(path) for path in paths)
        remove(*paths)
        self.disk.freed(sizes)
        for path in paths:
            self.quarantine.forget(path)

    def found_damaged(self, key: ModelKey, path: Path, is_damaged: Callable[[bytes], bool]) -> None:
        """Set a file aside whose bytes were found damaged, if a second look under the ROI's lock finds the same.

        Where the lock is taken, or the file cannot be renamed, it is only remembered: the next reader tries again.
        """
        try:
            with self._lock_at_once(key):
                data = read_file(path)
                if data is None or not is_damaged(data):
                    return  # it has been replaced since, or the disk has thought better of it
                self.quarantine.set_aside(path)
        except (InspectionError, OSError) as error:
            _log.warning("%s is damaged and could not be set aside: %s", path, error)
            self.quarantine.remember(path, is_aside=False)

    @contextmanager
    def lock(self, key: ModelKey, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[None]:
        """Hold the ROI against other writers, in this process and in others on the same folder.

        Raises:
            Unavailable: If another writer holds it for longer than ``timeout_s``.
            StorageFull, StorageFailed: If the ROI's folder cannot be made.
        """
        folder = self.roi_folder(key)
        make_folder(folder)
        lock = FileLock(folder / ".lock", timeout=timeout_s, thread_local=False)
        with writing():
            try:
                lock.acquire()
            except Timeout as error:  # an OSError, too
                raise Unavailable(f"Another fit of {key} has been running for a long time. Try again later.") from error
        held: set[Path] = self._held.__dict__.setdefault("folders", set())
        held.add(folder)
        try:
            yield
        finally:
            held.discard(folder)
            lock.release()

    @contextmanager
    def _lock_at_once(self, key: ModelKey) -> Iterator[None]:
        """Hold the ROI if nobody else does, or if this thread does already."""
        if self.roi_folder(key) in self._held.__dict__.get("folders", ()):
            yield
        else:
            with self.lock(key, timeout_s=0):
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
                self.quarantine.remember(path, is_aside=True)
                raise _damaged(path.name)
        try:
            parsed = parse(data)
        except ValueError as error:
            self.found_damaged(key, path, lambda again: not _parses(again, parse))
            raise _damaged(path.name) from error
        self.quarantine.forget(path)
        return parsed

    def _checksum_in_force(self, key: ModelKey) -> str | None:
        try:
            bank = self._bank(key)
        except ArtefactCorrupt:
            return None
        return None if bank is None else bank.checksum


class _RoiFiles:
    """How the images of a ROI are written, deleted and set aside."""

    def __init__(self, store: ArtefactStore, key: ModelKey) -> None:
        self._store = store
        self._key = key

    def write(self, path: Path, data: bytes) -> None:
        self._store.write(path, data)

    def remove(self, *paths: Path) -> None:
        self._store.remove(*paths)

    def found_damaged(self, path: Path, is_damaged: Callable[[bytes], bool]) -> None:
        self._store.found_damaged(self._key, path, is_damaged)


def _switch(new: Path, path: Path) -> None:
    """Rename a new memory over the old one; the old one's index does not outlive it."""
    index = _index_of(path)
    hidden = index.with_name(f"{TEMP_PREFIX}{index.name}")
    try:
        if index.exists():
            replace(index, hidden)
            sync_folder(path.parent)
        replace(new, path)
    except BaseException:
        with suppress(OSError):
            if new.exists() and hidden.exists():
                replace(hidden, index)
        raise
    sync_folder(path.parent)
    with suppress(OSError):  # It is swept at the next start.
        hidden.unlink(missing_ok=True)


def _put_index(new_index: Path, path: Path) -> None:
    """Put the index beside its memory. The fit does not fail with it: the memory is in force and on disk already."""
    try:
        replace(new_index, _index_of(path))
        sync_folder(path.parent)
    except OSError:
        _log.exception("the FAISS index could not be put beside its memory; it is written at the next start")


def _index_of(memory: Path) -> Path:
    return memory.with_name("index.faiss")


def _parses(data: bytes, parse: Callable[[bytes], object]) -> bool:
    try:
        parse(data)
    except ValueError:
        return False
    return True


def _damaged(artefact: str) -> ArtefactCorrupt:
    sentence = _MEMORY_DAMAGED if artefact == "memory.npz" else _CALIBRATION_DAMAGED
    return ArtefactCorrupt(sentence, details={"artefact": artefact})
